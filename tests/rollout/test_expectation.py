"""What an earlier run tells about its tasks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import lease

from rollout.dataset import Committer, write_file
from rollout.errors import UserError
from rollout.expectation import History, read_history, task_key
from rollout.rows import to_table
from rollout.trajectory import Failure, FailureKind, StopReason, Task, Trajectory


def row(task: str, seconds: float, resource: str = "counter", **other: object) -> Trajectory:
    chosen = lease(Task(task, (), {}, 0))
    ended = Trajectory(
        chosen, resource, "agent", "m", (), (), StopReason.DONE, started_at=1e9, finished_at=1e9 + seconds
    )
    return replace(ended, **other)


def commit(folder: Path, *files: list[Trajectory]) -> None:
    committer = Committer(str(folder / "episodes"), "run")
    for rows in files:
        committer.commit([write_file(committer.folder, to_table(rows))])


def test_a_task_takes_the_mean_of_its_episodes_whichever_file_they_are_in(tmp_path: Path) -> None:
    commit(tmp_path, [row("a", 2.0), row("b", 10.0)], [row("a", 4.0), row("a", 6.0), row("c", 1.5)])
    history = read_history(tmp_path)
    assert [history.expected("counter", task) for task in ("a", "b", "c")] == [4.0, 10.0, 1.5]
    assert len(history) == 3


def test_a_task_that_is_not_known_is_taken_for_a_usual_one(tmp_path: Path) -> None:
    commit(tmp_path, [row("a", 2.0), row("b", 10.0), row("c", 1.5)])
    assert read_history(tmp_path).expected("counter", "new") == 2.0
    assert read_history(tmp_path).expected("ledger", "b") == 2.0, "a task of another environment"


def test_failures_say_nothing_and_stragglers_took_at_least_so_long(tmp_path: Path) -> None:
    broken = row("a", 500.0, failure=Failure(FailureKind.TOOL, "host 0", "gone"), stop_reason=StopReason.FAILED)
    dropped = row("b", 90.0, drop_reason="straggler", stop_reason=StopReason.DROPPED)
    never = row("b", 0.0, drop_reason="straggler", stop_reason=StopReason.DROPPED)
    commit(tmp_path, [row("a", 2.0), broken, dropped, never, row("b", 10.0)])
    history = read_history(tmp_path)
    assert (history.expected("counter", "a"), history.expected("counter", "b")) == (2.0, 50.0)


def test_a_history_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scheduler\.history: .*no run here: expected .*episodes"):
        read_history(tmp_path)
    commit(tmp_path)
    with pytest.raises(UserError, match=r"scheduler\.history: .*holds no episode that has ended"):
        read_history(tmp_path)


def test_a_million_tasks_cost_twelve_bytes_each() -> None:
    keys = np.arange(10**6, dtype=np.uint64)
    history = History.of(keys, np.ones(10**6), np.ones(10**6, np.int64))
    assert history.keys.nbytes + history.seconds.nbytes == 12 * 10**6
    assert task_key("counter", "a") != task_key("counte", "ra")
