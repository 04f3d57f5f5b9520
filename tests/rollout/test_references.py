"""Functions by name: from files and modules, and what is said of those that are not there."""

from pathlib import Path

import pytest

from rollout.errors import UserError
from rollout.references import load_function

FILE = "NUMBER = 1\n\ndef double(n):\n    return 2 * n\n"


def test_functions_of_files_and_modules(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    assert load_function(f"{tmp_path}/mine.py:double", "hooks.before")(2) == 4
    assert load_function("os.path:basename", "hooks.before")("a/b") == "b"


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("double", "expected module:function or file.py:function"),
        ("mine.py:", "expected module:function or file.py:function"),
        ("nowhere:f", "there is no module 'nowhere'"),
        ("none.py:f", "there is no file none.py"),
        ("mine.py:duble", "mine.py has no 'duble'; did you mean 'double'?"),
        ("mine.py:NUMBER", "mine.py:NUMBER is no function but int"),
        ("broken.py:f", "broken.py:1: ValueError: no"),
    ],
)
def test_what_is_not_there_is_one_line_that_names_the_key(
    reference: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FILE)
    Path("broken.py").write_text("raise ValueError('no')\n")
    with pytest.raises(UserError) as caught:
        load_function(reference, "hooks.before")
    assert str(caught.value).startswith("hooks.before: ")
    assert line in str(caught.value)
