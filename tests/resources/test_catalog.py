from itertools import islice
from pathlib import Path

import pytest

from resources import catalog
from resources.counter import Counter
from rollout.conformance import check
from rollout.errors import UserError

COIN = """
from rollout.resource import Resource

class {name}(Resource):
    name = "coin"

    def __init__(self, sides: int = 2) -> None:
        self.sides = sides
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", catalog.names())
async def test_every_shipped_resource_conforms(name: str) -> None:
    if name == "gymnasium":
        pytest.importorskip("gymnasium")
    findings = await check(catalog.load_resource(name, {}), samples=2)
    assert [finding for finding in findings if not finding.ok] == []


@pytest.mark.parametrize("name", catalog.names())
def test_every_shipped_resource_says_what_it_and_its_options_are(name: str) -> None:
    entry = catalog.describe(name)
    assert entry.name == name
    assert entry.summary
    assert all(entry.options.values())


def test_options_reach_the_constructor_checked() -> None:
    counter = catalog.load_resource("counter", {"count": "2", "target": 1})
    assert [task.data["target"] for task in islice(counter.tasks(0), 5)] == [1, 1]


@pytest.mark.parametrize(
    ("reference", "options", "said"),
    [
        ("countr", {}, "no resource 'countr', and no module:Class or .py file; did you mean 'counter'?"),
        ("counter", {"targt": 1}, "has no option 'targt'; did you mean 'target'?"),
        ("counter", {"target": "many"}, "option target='many'"),
        ("counter", {"target": -1}, "greater than or equal to 0"),
        ("calculator", {"split": "test"}, "'train' or 'heldout'"),
        ("resources.nowhere:Counter", {}, "there is no module 'resources.nowhere'"),
        ("resources.counter:Countr", {}, "has no 'Countr'; did you mean 'Counter'?"),
        ("resources.counter:Count", {}, "no subclass of rollout.resource.Resource"),
        ("rollout.resource:Resource", {}, "has no `name`"),
        ("missing.py", {}, "there is no file missing.py"),
        ("gymnasium", {"env": "NoSuchGame-v0"}, "cannot make NoSuchGame-v0"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_one_line(reference: str, options: dict[str, object], said: str) -> None:
    if reference == "gymnasium":
        pytest.importorskip("gymnasium")
    with pytest.raises(UserError) as caught:
        catalog.load_resource(reference, options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_one_resource_needs_no_class_name(tmp_path: Path) -> None:
    file = tmp_path / "coin.py"
    file.write_text(COIN.format(name="Coin"))
    for reference in (str(file), f"{file}:Coin"):
        assert vars(catalog.load_resource(reference, {"sides": 3})) == {"sides": 3}


def test_a_file_with_two_resources_needs_a_class_name(tmp_path: Path) -> None:
    file = tmp_path / "coins.py"
    file.write_text(COIN.format(name="Coin") + COIN.format(name="Die"))
    assert type(catalog.load_resource(f"{file}:Die", {})).__name__ == "Die"
    with pytest.raises(UserError, match="2 resources"):
        catalog.load_resource(str(file), {})


def test_a_file_that_does_not_compile_is_the_users_to_mend(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def (")
    with pytest.raises(UserError, match="SyntaxError"):
        catalog.load_resource(str(file), {})


def test_the_digest_follows_the_code_and_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "digested"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "coin.py").write_text("from digested import sides\n" + COIN.format(name="Coin"))
    (package / "sides.py").write_text("SIDES = 2\n")
    (package / "other.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    coin = catalog.load_resource("digested.coin:Coin", {})
    before = catalog.code_digest(coin)
    (package / "other.py").write_text("changed = True\n")
    assert catalog.code_digest(coin) == before
    seen = {before}
    changes = {"sides.py": "SIDES = 3\n", "data/coin.jsonl": "{}", "coin.py": COIN.format(name="Coin")}
    for file, text in changes.items():
        (package / file).parent.mkdir(exist_ok=True)
        (package / file).write_text(text)
        seen.add(catalog.code_digest(coin))
    assert len(seen) == 1 + len(changes)


def test_the_digest_depends_neither_on_options_nor_on_where_a_file_lies(tmp_path: Path) -> None:
    assert catalog.code_digest(Counter(target=1)) == catalog.code_digest(Counter(target=2))
    digests: set[str] = set()
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "coin.py").write_text(COIN.format(name="Coin"))
        digests.add(catalog.code_digest(catalog.load_resource(str(tmp_path / place / "coin.py"), {})))
    assert len(digests) == 1
