"""What travels with a job that is handed to a cluster."""

from pathlib import Path

import pytest

from actors.submit import _pack
from rollout.config import load, validate


def test_files_of_several_environments_that_are_named_alike_both_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resources = {}
    for name in ("a", "b"):
        (here := tmp_path / f"at-{name}").mkdir()
        (here / "own.py").write_text(f"# {name}")
        (here / "tasks.jsonl").write_text(name)
        resources[name] = {"name": f"at-{name}/own.py:Own", "tasks": {"path": f"at-{name}/tasks.jsonl"}}
    raw = {"run": {"dir": "r"}, "resources": resources, "model": {"engine": "scripted", "turns": ["x"]}}
    (there := tmp_path / "there").mkdir()
    _pack(validate(raw, "test"), there)
    monkeypatch.chdir(there)
    for name, packed in load(Path("job.yaml")).environments.items():
        assert packed.tasks.path is not None
        assert Path(packed.tasks.path).read_text() == name
        file, _, attribute = packed.name.partition(":")
        assert (Path(file).read_text(), attribute) == (f"# {name}", "Own")
