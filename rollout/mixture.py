"""Several environments in one job: how their tasks are numbered, and what each may have in flight.

An environment has a name where a job has several; the only one of a job has the empty name. A lane is one
environment as the scheduler sees it.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from rollout.config import JobConfig
from rollout.epochs import epochs
from rollout.errors import UserError
from rollout.expectation import History
from rollout.journal import taken_up
from rollout.lanes import LOOK_AHEAD, Lane
from rollout.resource import Resource
from rollout.scheduling import samples
from rollout.tasks import count_tasks, read_tasks
from rollout.trajectory import Lease, Task

LANE_TASKS = 10**12
"""Task numbers that belong to one environment: more than any run can play."""


def lanes_of(
    config: JobConfig,
    resources: Mapping[str, Resource],
    run_id: str,
    done: Container[int],
    history: History | None = None,
    left: dict[str, str] | None = None,
    endless: bool = False,
) -> list[Lane]:
    """The lanes of a job that have something left, in the order of their names. `done` has the sample numbers that
    have a row, `history` what tasks took before, `left` whose turns an earlier driver's runners have left. With
    `endless` the tasks of each lane come again and again (`rollout.epochs`).

    The task at position p of lane n has the index n * LANE_TASKS + p: known without a look at the other lanes, which
    may be endless, and the same at every resumption. What is done stays a few ranges, however fast each lane goes.
    """
    run, knobs = config.run, config.scheduler
    lanes: list[Lane] = []
    for number, (name, environment) in enumerate(config.environments.items()):
        resource = resources[name]
        give = epochs if endless else read_tasks
        tasks = _numbered(give(environment.tasks, resource, run.seed), number, name)
        source = samples(tasks, run_id, run.group_size, run.seed, done, knobs.max_attempts)
        if (lease := next(source, None)) is None:
            continue
        waiting = itertools.chain([lease], source)
        lane = Lane(
            source=taken_up(_told(waiting, history, environment.name), {} if left is None else left),
            name=name,
            weight=environment.weight,
            limit=environment.hosts * (environment.max_sessions or resource.max_sessions),
            expected=partial(_expected, history, environment.name) if history else None,
            look_ahead=LOOK_AHEAD * knobs.in_flight,
        )
        lanes.append(lane)
    return lanes


def count_episodes(config: JobConfig, resources: Mapping[str, Resource]) -> int | None:
    """All episodes of a job; None when an environment does not know its tasks beforehand."""
    counts = [count_tasks(one.tasks, resources[name]) for name, one in config.environments.items()]
    known = [count for count in counts if count is not None]
    return sum(known) * config.run.group_size if len(known) == len(counts) else None


def key_of(name: str, rest: str) -> str:
    """A configuration key of an environment: `resources.NAME.hosts`, or `resource.hosts`. Its tasks' keys stand at
    the top where it has no name."""
    if name:
        return f"resources.{name}.{rest}"
    return rest if rest.startswith("tasks.") else f"resource.{rest}"


@contextmanager
def told_of(name: str) -> Generator[None]:
    """Says of which environment a UserError is, where a job has several."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        within = f"resources.{name}"
        line = str(error)
        raise UserError(f"{within}.{line}" if line.startswith("tasks.path:") else f"{within}: {line}") from error


def _told(leases: Iterator[Lease], history: History | None, resource: str) -> Iterator[Lease]:
    """The leases, with what is known of how long their episodes take."""
    if history is None or not history.usual:
        return leases
    usual = history.usual
    return (replace(one, longer=history.expected(resource, one.task.id) / usual) for one in leases)


def _expected(history: History, resource: str, task: Task) -> float:
    return history.expected(resource, task.id)


def _numbered(tasks: Iterable[Task], number: int, name: str) -> Iterator[Task]:
    first = number * LANE_TASKS
    with told_of(name):
        for task in tasks:
            yield replace(task, index=first + task.index, resource=name)
