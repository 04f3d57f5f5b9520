"""Groups on their way to a trainer: whole ones only, none too old, none that teaches nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.dataset import Committer, write_file
from rollout.rows import to_table
from rollout.shelf import By, Head, Ready, Shelf, Verdict, read_groups, read_heads
from rollout.trajectory import Completion, FinishReason, Lease, Sampling, Score, StopReason, Task, Trajectory, Turn
from rollout.trajectory import VersionSpan as Span


def head(task: int, reward: float | None, step: int = 0, version: int | None = None) -> Head:
    return Head(task, f"run-{task}", reward, step, step if version is None else version)


def shelf(size: int = 2, wanted: int | None = None, by: By = "start", keeps_equal: bool = False) -> Shelf:
    return Shelf(size, size if wanted is None else wanted, by, keeps_equal)


def ids(groups: list[Ready]) -> list[int]:
    return [group.task_index for group in groups]


def test_a_group_is_there_when_all_its_rows_are() -> None:
    kept = shelf()
    assert kept.add("a", [head(0, 1.0), head(1, 0.0)]) == []
    assert len(kept) == 0
    assert kept.add("b", [head(1, 1.0), head(0, 0.0)]) == []
    [one, zero] = kept.first(5)
    assert (ids([one, zero]), one.files) == ([1, 0], {"a", "b"})
    kept.take([one])
    assert ids(kept.first(5)) == [0]


def test_equal_rewards_are_set_aside_unless_they_are_wanted() -> None:
    rows = [head(0, 1.0), head(0, 1.0)]
    [(group, verdict)] = shelf().add("a", rows)
    assert (group.task_index, verdict) == (0, Verdict.FILTERED)
    assert shelf(keeps_equal=True).add("a", rows) == []
    assert shelf(size=1).add("a", rows[:1]) == [], "a single sample is equal to nothing"


def test_a_surplus_row_needs_no_reward_and_a_missing_reward_is_a_reason() -> None:
    assert shelf(size=3, wanted=2).add("a", [head(0, 1.0), head(0, None), head(0, 0.0)]) == []
    [(_, verdict)] = shelf().add("a", [head(0, 1.0), head(0, None)])
    assert verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize(("by", "stale"), [("start", []), ("token", [0])])
def test_age_counts_from_the_oldest_start_or_the_oldest_token(by: By, stale: list[int]) -> None:
    kept = shelf(by=by)
    kept.add("a", [head(0, 1.0, step=4, version=2), head(0, 0.0, step=3, version=3)])
    assert [group.behind(5) for group in kept.first(1)] == [2 if by == "start" else 3]
    assert ids(kept.stale(5, max_behind=2)) == stale
    assert len(kept) == 1 - len(stale)


def test_the_oldest_go_first_and_of_equals_those_that_were_whole_first() -> None:
    kept = shelf(size=1)
    kept.add("a", [head(0, 1.0, step=2), head(1, 1.0, step=1), head(2, 1.0, step=1)])
    assert ids(kept.first(2)) == [1, 2]
    assert ids(kept.first(9)) == [1, 2, 0]


def row(task: int, sample: int) -> Trajectory:
    lease = Lease("run", Task(f"t{task}", (), index=task), sample, 1, True, 0, step=3)
    spans = (Span("3", 0, 1), Span("10", 1, 2))
    completion = Completion(FinishReason.STOP, ids=[5, 6], logprobs=[-1.0, -1.0], versions=spans)
    turn = Turn(agent="agent", segment=0, prompt_ids=[1], completion=completion, segments=(), sampling=Sampling())
    return Trajectory(lease, "r", "a", "m", (), (turn,), StopReason.DONE, Score(float(sample)))


def test_rows_are_read_from_their_files_and_after_a_merge_from_the_table(tmp_path: Path) -> None:
    table = str(tmp_path / "episodes")
    committer = Committer(table, "run")
    parts = [to_table([row(1, 1), row(0, 0)]), to_table([row(0, 1), row(1, 0), row(2, 0)])]
    files = [write_file(table, part) for part in parts]
    committer.commit(files)
    heads = read_heads(table, files[0].path)
    assert heads == [Head(1, "run-1", 1.0, 3, 3), Head(0, "run-0", 0.0, 3, 3)]
    kept = shelf()
    for file in files:
        kept.add(file.path, read_heads(table, file.path))
    wanted = kept.first(2)
    before = read_groups(table, wanted)
    keys = list(zip(before["task_index"].to_pylist(), before["sample_index"].to_pylist(), strict=True))
    assert sorted(keys) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert keys == [(index, sample) for index in ids(wanted) for sample in (0, 1)]
    merged = write_file(table, read_groups(table, [*wanted, Ready(2, "run-2", {files[1].path})]))
    committer.replace(files, merged)
    for file in files:
        (tmp_path / "episodes" / file.path).unlink()
    assert read_groups(table, wanted).equals(before)
