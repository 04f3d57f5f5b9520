"""Several environments in one job: how their tasks are numbered, and what each may have in flight.

An environment has a name where a job has several; the only one of a job has the empty name. A lane is one
environment as the scheduler sees it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rollout.config import JobConfig
from rollout.errors import UserError
from rollout.resource import Resource
from rollout.scheduling import samples
from rollout.tasks import count_tasks, read_tasks
from rollout.trajectory import Lease, Task

LANE_TASKS = 10**12
"""Task numbers that belong to one environment: more than any run can play."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One environment of a job: what it has to be played, and its share of what is in flight."""

    name: str
    source: Iterator[Lease]
    """First leases of its samples that have no row yet, lazily."""
    weight: float
    limit: int
    """Episodes it can have in flight: the sessions that its hosts may hold."""


def lanes_of(config: JobConfig, resources: Mapping[str, Resource], run_id: str, done: Container[int]) -> list[Lane]:
    """The lanes of a job that have something left, in the order of their names. `done` has the sample numbers that
    have a row.

    The task at position p of lane n has the index n * LANE_TASKS + p: known without a look at the other lanes, which
    may be endless, and the same at every resumption. What is done stays a few ranges, however fast each lane goes.
    """
    run, attempts = config.run, config.scheduler.max_attempts
    lanes: list[Lane] = []
    for number, (name, environment) in enumerate(config.environments.items()):
        resource = resources[name]
        tasks = _numbered(read_tasks(environment.tasks, resource, run.seed), number, name)
        source = samples(tasks, run_id, run.samples_per_task, run.seed, done, attempts)
        if (lease := next(source, None)) is None:
            continue
        source = itertools.chain([lease], source)
        limit = environment.hosts * (environment.max_sessions or resource.max_sessions)
        lanes.append(Lane(name=name, source=source, weight=environment.weight, limit=limit))
    return lanes


def count_episodes(config: JobConfig, resources: Mapping[str, Resource]) -> int | None:
    """All episodes of a job; None when an environment does not know its tasks beforehand."""
    counts = [count_tasks(one.tasks, resources[name]) for name, one in config.environments.items()]
    known = [count for count in counts if count is not None]
    return sum(known) * config.run.samples_per_task if len(known) == len(counts) else None


def interleaved(lanes: Sequence[Lane]) -> Iterator[Lease]:
    """The leases of all lanes, each lane as often as its weight says while it lasts.

    Stride scheduling (Waldspurger and Weihl, 1995): a lane moves on by 1/weight at every lease, and the one that is
    least far on is next.
    """
    waiting = [(1 / lane.weight, number) for number, lane in enumerate(lanes)]
    heapq.heapify(waiting)
    while waiting:
        reached, number = waiting[0]
        lane = lanes[number]
        if (lease := next(lane.source, None)) is None:
            heapq.heappop(waiting)
            continue
        heapq.heapreplace(waiting, (reached + 1 / lane.weight, number))
        yield lease


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


def _numbered(tasks: Iterable[Task], number: int, name: str) -> Iterator[Task]:
    first = number * LANE_TASKS
    with told_of(name):
        for task in tasks:
            yield replace(task, index=first + task.index, resource=name)
