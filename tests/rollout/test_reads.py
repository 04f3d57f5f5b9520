"""What a trainer has read, kept over its death."""

from __future__ import annotations

from pathlib import Path

import pytest
from deltalake import DeltaTable

from rollout.errors import UserError
from rollout.reads import Entry, Reads
from rollout.shelf import Ready, Verdict


def entry(task: int, verdict: Verdict, pull: int, version: int = 5) -> Entry:
    return Entry(Ready(task, f"run-{task}", oldest=3), verdict, version, pull)


def written(place: Path) -> list[tuple[int, str, int]]:
    rows = DeltaTable(str(place / "reads" / "trainer")).to_pyarrow_table().sort_by("number").to_pylist()
    assert [row["number"] for row in rows] == list(range(len(rows)))
    return [(row["task_index"], row["verdict"], row["pull"]) for row in rows]


def history(run: Path) -> None:
    """Pulls 1 and 2 were acknowledged, 3 was not; two groups were passed over."""
    reads = Reads(run, "trainer")
    reads.write([entry(0, Verdict.GIVEN, 1), entry(1, Verdict.GIVEN, 1)])
    reads.write([entry(0, Verdict.TRAINED, 1), entry(1, Verdict.TRAINED, 1), entry(2, Verdict.GIVEN, 2)])
    reads.write([entry(3, Verdict.FILTERED, 2), entry(2, Verdict.TRAINED, 2), entry(4, Verdict.STALE, 2)])
    reads.write([entry(5, Verdict.GIVEN, 3)])


@pytest.mark.parametrize(
    ("cursor", "again"),
    [(None, [5]), ("trainer/3", []), ("trainer/2", [5]), ("trainer/1", [2, 5]), ("trainer/0", [0, 1, 2, 5])],
)
def test_who_comes_back_gets_each_group_once(tmp_path: Path, cursor: str | None, again: list[int]) -> None:
    history(tmp_path)
    reads = Reads(tmp_path, "trainer")
    assert reads.come_back(cursor, version=6) == len(again)
    assert reads.settled() == set(range(6)) - set(again)
    assert reads.pull == 3, "numbers of pulls are never given twice"
    later = Reads(tmp_path, "trainer")
    assert later.come_back(None, version=6) == 0, "that was decided once"
    assert later.settled() == set(range(6)) - set(again)
    assert [row for row in written(tmp_path) if row[1] == "returned"] == [
        (task, "returned", {0: 1, 1: 1, 2: 2, 5: 3}[task]) for task in again
    ]


@pytest.mark.parametrize("cursor", ["trainer/4", "other/1", "trainer/", "1", "trainer/-1"])
def test_a_cursor_that_was_never_given_is_refused(tmp_path: Path, cursor: str) -> None:
    history(tmp_path)
    with pytest.raises(
        UserError, match=r"resume: .*no cursor of this run and trainer; there are trainer/0 to trainer/3"
    ):
        Reads(tmp_path, "trainer").come_back(cursor, version=6)


def test_every_trainer_has_reads_of_its_own(tmp_path: Path) -> None:
    history(tmp_path)
    assert Reads(tmp_path, "second").settled() == set()
    with pytest.raises(UserError, match="expected letters, digits, - and _"):
        Reads(tmp_path, "../x")


def test_many_small_files_become_few(tmp_path: Path) -> None:
    reads = Reads(tmp_path, "trainer")
    for pull in range(1, 41):
        reads.write([entry(pull, Verdict.TRAINED, pull)])
    again = Reads(tmp_path, "trainer")
    assert (again.pull, again.settled()) == (40, set(range(1, 41)))
    assert len(DeltaTable(again.place).file_uris()) == 1
    assert len(written(tmp_path)) == 40
