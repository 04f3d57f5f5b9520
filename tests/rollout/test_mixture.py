"""Several environments in one job: numbers that stay, fair shares, and no more at once than hosts can hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import GOLD, says, setting

from resources.counter import Counter
from rollout.config import JobConfig, validate
from rollout.episode import run_episode
from rollout.errors import UserError
from rollout.expectation import History, task_key
from rollout.lanes import Lane
from rollout.mixture import LANE_TASKS, count_episodes, lanes_of
from rollout.progress import Done
from rollout.resource import Resource
from rollout.rows import to_row
from rollout.scheduling import Scheduler
from rollout.sessions import LocalSessions, SessionTable
from rollout.trajectory import Lease, StopReason, Task


def job(**resources: dict[str, Any]) -> JobConfig:
    run = {"dir": "r", "samples_per_task": 2, "seed": 5}
    model = {"engine": "scripted", "turns": ["a"]}
    sections = {name: {"name": "counter", **section} for name, section in resources.items()}
    return validate({"run": run, "model": model, "resources": sections}, "test")


def counters(**counts: int | None) -> dict[str, Resource]:
    return {name: Counter(count) for name, count in counts.items()}


def lanes(config: JobConfig, done: Done | None = None, **counts: int | None) -> dict[str, Lane]:
    return {lane.name: lane for lane in lanes_of(config, counters(**counts), "run", done or Done())}


def numbers(leases: Iterator[Lease]) -> list[int]:
    return [lease.task.index * 2 + lease.sample_index for lease in leases]


def test_a_lease_knows_how_long_its_episodes_took_before() -> None:
    keys = np.array([task_key("counter", f"counter-{number}") for number in range(3)], np.uint64)
    history = History.of(keys, np.array([10.0, 20.0, 80.0]), np.array([1, 1, 1]))
    made = counters(a=5)["a"]
    known = {task.id: history.expected("counter", task.id) for task in made.tasks(5)}
    for past in (history, None):
        (lane,) = lanes_of(job(a={}), {"a": made}, "run", Done(), past)
        told = {lease.task.id: lease.longer for lease in lane.source}
        assert told == {name: seconds / 20.0 if past else 1.0 for name, seconds in known.items()}
    assert set(known.values()) == {10.0, 20.0, 80.0}


def test_a_task_knows_its_environment_and_has_a_number_that_no_other_has() -> None:
    found = lanes(job(b={}, a={}), a=None, b=None)
    first = {name: list(islice(lane.source, 4)) for name, lane in found.items()}
    assert [(lease.task.resource, lease.task.index, lease.sample_index) for lease in first["a"]] == [
        ("a", 0, 0),
        ("a", 0, 1),
        ("a", 1, 0),
        ("a", 1, 1),
    ]
    assert [lease.task.index for lease in first["b"]] == [LANE_TASKS, LANE_TASKS, LANE_TASKS + 1, LANE_TASKS + 1]
    assert len({lease.seed for given in first.values() for lease in given}) == 8


def test_the_only_environment_of_a_job_has_its_tasks_as_they_are() -> None:
    raw = {"run": {"dir": "r"}, "model": {"engine": "scripted", "turns": ["a"]}, "resource": {"name": "counter"}}
    [lane] = lanes_of(validate(raw, "test"), {"": Counter(3)}, "run", Done())
    assert [lease.task for lease in lane.source] == list(Counter(3).tasks(0))


def test_invariant_1_what_is_done_in_each_environment_is_not_done_again() -> None:
    config = job(fast={}, slow={})
    found = lanes(config, fast=6, slow=6)
    played = numbers(islice(found["fast"].source, 9)) + numbers(islice(found["slow"].source, 2))
    done = Done.of(np.array(played, dtype=np.int64))
    assert len(done.starts) == 2, "a range for each environment, however far it has come"
    rest = lanes(config, done, fast=6, slow=6)
    left = [number for lane in rest.values() for number in numbers(lane.source)]
    assert sorted(played + left) == [first * 2 + at for first in (0, LANE_TASKS) for at in range(12)]


def test_an_environment_that_is_done_has_no_lane_and_leaves_the_others_their_numbers() -> None:
    done = Done.of(np.arange(4, dtype=np.int64))
    rest = lanes(job(a={}, b={}), done, a=2, b=1)
    assert {name: numbers(lane.source) for name, lane in rest.items()} == {"b": [2 * LANE_TASKS, 2 * LANE_TASKS + 1]}


def test_all_episodes_are_counted_where_every_environment_knows_its_tasks() -> None:
    config = job(a={"tasks": {"count": 4}}, b={})
    assert count_episodes(config, counters(a=None, b=3)) == 14
    assert count_episodes(config, counters(a=None, b=None)) is None


def test_a_lane_has_as_many_in_flight_as_its_hosts_can_hold() -> None:
    config = job(a={"hosts": 3, "max_sessions": 5}, b={"hosts": 2})
    assert {name: lane.limit for name, lane in lanes(config, a=1, b=1).items()} == {
        "a": 15,
        "b": 2 * Counter.max_sessions,
    }


async def test_a_capped_table_is_never_full_under_the_lanes_limit() -> None:
    """With as many at once as the limit says, every session that is asked for is there."""
    config = job(only={"max_sessions": 3, "tasks": {"count": 30}})
    counter = Counter(target=2)
    [lane] = lanes_of(config, {"only": counter}, "run", Done())
    scheduler = Scheduler([lane], 50, 1)
    scheduler.add_runner("r")
    table = SessionTable(counter, max_sessions=3)
    most, ended = 0, list[StopReason]()
    chosen = setting(says(*GOLD), LocalSessions(table))
    async with asyncio.TaskGroup() as group:

        async def play(lease: Lease) -> None:
            nonlocal most
            most = max(most, scheduler.running)
            ended.append((await run_episode(lease, chosen)).stop_reason)
            scheduler.finish("r", [lease.episode_id])
            start()

        def start() -> None:
            for lease in scheduler.assign("r", 0.0).leases:
                group.create_task(play(lease))

        start()
    assert (most, len(ended), set(ended)) == (3, 60, {StopReason.ENVIRONMENT})
    assert (table.opened, table.closed) == (60, 60)


def test_a_wrong_task_is_told_with_its_environment(tmp_path: Path) -> None:
    (path := tmp_path / "tasks.jsonl").write_text('{"id": "a", "prompt": "x"}\n{"id": "b"}\n')
    found = lanes(job(a={}, b={"tasks": {"path": str(path)}}), a=1, b=1)
    with pytest.raises(UserError, match=r"^resources\.b: .*tasks\.jsonl:2: "):
        list(found["b"].source)


async def test_a_row_tells_the_environment_with_the_task() -> None:
    counter = Counter(target=2)
    for name in ("", "counts"):
        task: Task = replace(next(counter.tasks(0)), resource=name)
        row = to_row(await run_episode(Lease("run", task, 0, 1, True, 0), setting(says(*GOLD), counter)))
        assert json.loads(row["task"]).get("resource", "") == name
