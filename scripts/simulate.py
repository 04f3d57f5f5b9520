"""What scheduling is worth: the real scheduler and simulated engines, to a million episodes and a thousand replicas.

    python -m scripts.simulate                                        # seconds
    python -m scripts.simulate --episodes 1000000 --replicas 1000     # minutes
    python -m scripts.simulate --only adaptive

A discrete-event simulation with seeded latencies, in which `rollout.scheduling.Scheduler` is the one that runs jobs.
Tasks are of very different length (log-normal, cut off at ten times the mean, as limits would), episodes of a task of
nearly the same, and history knows the length but for 30 %. An engine slows down with its batch (it is at half speed
with BATCH turns in it) and has a KV cache: where the contexts of its sessions do not fit, turns share what there is,
and each is thrown out and computes its context anew. Runners report once a second, rows are committed five seconds
after the first of a file, one attempt in five hundred fails. Every simulated job checks that each sample has one row.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from rollout.lanes import LOOK_AHEAD, Lane
from rollout.load import Load
from rollout.pacing import OBSERVE_SECONDS, Pace
from rollout.progress import Done
from rollout.scheduling import Scheduler, samples
from rollout.trajectory import Lease, Task

BATCH = 32
"""Turns in an engine at which each takes twice as long as alone."""
TURNS = 5
MEAN_SECONDS, SPREAD, LONGEST = 60.0, 1.0, 10.0
"""An episode alone: mean, sigma of the log-normal over tasks, and the longest in means."""
SPREAD_WITHIN = 0.3
"""Sigma of the log-normal over the episodes of a task."""
RECOMPUTE = 0.5
"""Seconds to compute a context anew, for each second it took to come about. A prompt is faster to read than to write,
but reading it is not shared with the rest of the batch, and tools have written most of it in no time."""
TICK, COMMIT_SECONDS = 1.0, 5.0
FAILS = 0.002
EACH_RUNNER = 2000
"""Episodes a runner plays at once."""


@dataclass(frozen=True)
class Work:
    """Seconds of every episode when it is alone on an engine, and what is expected of its task."""

    seconds: npt.NDArray[np.float64]
    """tasks x samples."""
    expected: npt.NDArray[np.float64]

    @staticmethod
    def draw(tasks: int, each: int, seed: int, within: float = SPREAD_WITHIN) -> Work:
        random = np.random.default_rng(seed)
        task = np.minimum(random.lognormal(-(SPREAD**2) / 2, SPREAD, tasks), LONGEST)
        noise = random.lognormal(-(within**2) / 2, within, (tasks, each))
        guess = task * random.lognormal(0.0, 0.3, tasks)
        return Work(MEAN_SECONDS * np.minimum(task[:, None] * noise, LONGEST), MEAN_SECONDS * guess)

    def bound(self, sizes: Sizes) -> float:
        """No schedule is faster: engines full from beginning to end, or the longest episode by itself."""
        full = sizes.replicas * sizes.slots / (1 + sizes.slots / BATCH)
        return max(float(self.seconds.sum()) / full, float(self.seconds.max()) * (1 + 1 / BATCH))


@dataclass(slots=True)
class Engine:
    """A replica: sessions stick to it, and one of its turns takes the longer the more it has."""

    name: str
    cache: float
    """Seconds of context that its KV cache holds."""
    sessions: int = 0
    context: float = 0.0
    preemptions: int = 0

    def turn(self, own: float, context: float) -> float:
        """How long a turn takes that begins now and takes `own` alone."""
        crowding = self.context / self.cache
        if crowding <= 1:
            return own * (1 + self.sessions / BATCH)
        self.preemptions += 1
        return (own + RECOMPUTE * context) * (crowding + self.sessions / BATCH)

    def load(self) -> Load:
        """What a real one would report."""
        crowding = max(1.0, self.context / self.cache)
        running = int(self.sessions / crowding)
        return Load(running, self.sessions - running, min(1.0, self.context / self.cache), self.preemptions)


@dataclass(slots=True, eq=False)
class Play:
    """An episode on an engine."""

    lease: Lease
    runner: str
    engine: Engine
    own: float
    """Seconds of one turn alone."""
    turns: int = 0


@dataclass
class Job:
    """One run of one scheduler. `now` is the simulated clock, in seconds."""

    scheduler: Scheduler
    engines: list[Engine]
    works: Sequence[Work]
    random: np.random.Generator
    now: float = 0.0
    cpu: float = 0.0
    dropped: int = 0
    last: dict[int, float] = field(default_factory=dict[int, float])
    """When the last row of an environment was there."""
    _events: list[tuple[float, int, Play | str]] = field(default_factory=list[tuple[float, int, "Play | str"]])
    _entries: int = 0
    _playing: dict[str, Play] = field(default_factory=dict[str, Play])
    _ended: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict[str, tuple[list[str], list[str]]])
    """By runner: episodes that ended since its last report, and those of them that were broken off."""
    _files: dict[str, tuple[float, list[str]]] = field(default_factory=dict[str, tuple[float, list[str]]])
    """By runner: rows that are not committed, and since when."""

    def __post_init__(self) -> None:
        self.rows = np.zeros(sum(work.seconds.size for work in self.works), np.int8)

    def run(self, runners: int) -> None:
        """Plays all."""
        began, observed = time.process_time(), 0.0
        for number in range(runners):
            self.scheduler.add_runner(name := f"r{number}")
            self._ended[name], self._files[name] = ([], []), (0.0, [])
            self._at(TICK * number / runners, name)
        while not self.scheduler.finished:
            self.now, _, what = heapq.heappop(self._events)
            if isinstance(what, Play):
                self._turn(what)
                continue
            if self.now - observed >= OBSERVE_SECONDS:
                observed = self.now
                self.scheduler.observe({engine.name: engine.load() for engine in self.engines}, self.now)
            self._report(what)
            self._at(self.now + TICK, what)
        assert (self.rows == 1).all(), "every sample has one row"
        self.cpu = time.process_time() - began

    def _at(self, when: float, what: Play | str) -> None:
        self._entries += 1
        heapq.heappush(self._events, (when, self._entries, what))

    def _turn(self, play: Play) -> None:
        """A turn has ended, or the episode is about to begin."""
        engine = play.engine
        episode_id = play.lease.episode_id
        if self._playing.get(episode_id) is not play:
            return  # broken off
        if play.turns == TURNS:
            self._leave(play)
            if not play.lease.final and self.random.random() < FAILS:
                self.scheduler.give_back(play.runner, episode_id, self.now)
            else:
                self._ended[play.runner][0].append(episode_id)
            return
        play.turns += 1
        engine.context += play.own
        self._at(self.now + engine.turn(play.own, play.turns * play.own), play)

    def _leave(self, play: Play) -> None:
        del self._playing[play.lease.episode_id]
        play.engine.sessions -= 1
        play.engine.context -= play.turns * play.own

    def _report(self, runner: str) -> None:
        """A runner reports, its old rows are committed, and it is told what to do next."""
        ended, bad = self._ended[runner]
        since, rows = self._files[runner]
        self._ended[runner] = [], []
        self.scheduler.finish(runner, ended, bad)
        since, rows = since if rows else self.now, rows + ended
        if rows and (self.scheduler.drained or self.now - since >= COMMIT_SECONDS):
            self._commit(runner, rows)
            rows = []
        orders = self.scheduler.assign(runner, self.now)
        for lease in orders.leases:
            self._begin(runner, lease)
        for episode_id in orders.drops:
            if (play := self._playing.get(episode_id)) is not None:
                self._leave(play)
                self._ended[runner][0].append(episode_id)
                self._ended[runner][1].append(episode_id)
        self.dropped += len(orders.drops) + len(orders.unplayed)
        rows += [lease.episode_id for lease, _ in orders.unplayed]
        self._files[runner] = since, rows

    def _commit(self, runner: str, rows: list[str]) -> None:
        assert self.scheduler.holds(runner, rows)
        for episode_id in rows:
            _, task, sample = episode_id.split("-")
            self.rows[int(task) * self.works[0].seconds.shape[1] + int(sample)] += 1
            self.last[int(task) % len(self.works)] = self.now
        self.scheduler.settle(runner, rows)

    def _begin(self, runner: str, lease: Lease) -> None:
        """On the emptier of two engines."""
        one, two = (self.engines[int(self.random.random() * len(self.engines))] for _ in range(2))
        engine = one if one.sessions <= two.sessions else two
        engine.sessions += 1
        task, environment = divmod(lease.task.index, len(self.works))
        own = float(self.works[environment].seconds[task, lease.sample_index]) / TURNS
        play = Play(lease, runner, engine, own)
        self._playing[lease.episode_id] = play
        self._turn(play)


@dataclass(frozen=True)
class Sizes:
    """How large the simulated jobs are."""

    episodes: int
    replicas: int
    slots: int
    """Episodes in flight a replica."""
    seed: int

    @property
    def in_flight(self) -> int:
        return self.replicas * self.slots


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    name: str
    seconds: float
    bound: float | None
    job: Job
    pace: Pace | None = None


def leases(work: Work, width: int = 1, number: int = 0) -> Iterator[Lease]:
    """Of all tasks of a lane, whose indices are `number`, `number + width`, ..."""
    count, each = work.seconds.shape
    tasks = (Task(str(index), (), {}, index * width + number) for index in range(count))
    return samples(tasks, "run", each, 0, Done(), 3)


def play(
    sizes: Sizes,
    lanes: Sequence[Lane],
    works: Sequence[Work],
    wanted: int | None = None,
    pace: Pace | None = None,
    cache: float = float("inf"),
) -> Job:
    """A job to its end. Task i belongs to the environment i % len(works)."""
    scheduler = Scheduler(lanes, sizes.in_flight, 3, wanted, pace)
    engines = [Engine(f"replica-{number}", cache) for number in range(sizes.replicas)]
    job = Job(scheduler, engines, works, np.random.default_rng(sizes.seed))
    job.run(-(-sizes.in_flight // EACH_RUNNER))
    return job


def longest_first(sizes: Sizes) -> Iterator[Line]:
    """Groups of four, as they come and by what history knows."""
    work = Work.draw(sizes.episodes // 4, 4, sizes.seed)
    bound = work.bound(sizes)
    job = play(sizes, [Lane(leases(work))], [work])
    yield Line("first come, first served", job.now, bound, job)
    expected = work.expected.tolist()
    lane = Lane(leases(work), expected=lambda task: expected[task.index], look_ahead=LOOK_AHEAD * sizes.in_flight)
    job = play(sizes, [lane], [work])
    yield Line("longest expected first", job.now, bound, job)


def over_sampling(sizes: Sizes) -> Iterator[Line]:
    """A training step: groups of eight whose samples all run at once and differ much; two more of each."""
    work = Work.draw(sizes.in_flight // 10, 10, sizes.seed, within=0.8)
    eight = Work(work.seconds[:, :8], work.expected)
    job = play(sizes, [Lane(leases(eight))], [eight])
    yield Line("a step, 8 of 8", job.now, eight.bound(sizes), job)
    job = play(sizes, [Lane(leases(work))], [work], wanted=8)
    yield Line("a step, 8 of 10", job.now, None, job)


def adaptive(sizes: Sizes) -> Iterator[Line]:
    """Engines whose caches hold the contexts of two fifths of what may be in flight."""
    work = Work.draw(sizes.episodes // 8, 4, sizes.seed)
    held = float((work.seconds**2).sum() / work.seconds.sum()) / 2  # long episodes are the more often found in play
    cache = 0.4 * sizes.slots * held
    job = play(sizes, [Lane(leases(work))], [work], cache=cache)
    yield Line("full caches, as configured", job.now, None, job)
    told = replace(sizes, slots=max(1, 4 * sizes.slots // 10))
    job = play(told, [Lane(leases(work))], [work], cache=cache)
    yield Line("full caches, as many as fit", job.now, None, job)
    pace = Pace(sizes.in_flight)
    job = play(sizes, [Lane(leases(work))], [work], pace=pace, cache=cache)
    yield Line("full caches, adaptive", job.now, None, job, pace)


def fair_share(sizes: Sizes) -> Iterator[Line]:
    """Two environments with as many episodes, those of one ten times as long: when the quick one is done. Its bound
    is that of half of the slots."""
    quick = Work.draw(sizes.episodes // 16, 4, sizes.seed)
    slow = Work(10 * quick.seconds, quick.expected)
    half = 2 * quick.bound(sizes)
    one, other = leases(quick, 2), leases(slow, 2, 1)
    mixed = (lease for _ in quick.seconds for source in (one, other) for lease in islice(source, 4))
    job = play(sizes, [Lane(mixed)], [quick, slow])
    yield Line("beside slow ones, one queue", job.last[0], half, job)
    job = play(sizes, [Lane(leases(quick, 2)), Lane(leases(slow, 2, 1))], [quick, slow])
    yield Line("beside slow ones, two lanes", job.last[0], half, job)


PARTS = {part.__name__: part for part in (longest_first, over_sampling, adaptive, fair_share)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--slots", type=int, default=32, help="episodes in flight a replica")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PARTS, help="one part of the table")
    options = parser.parse_args()
    sizes = Sizes(options.episodes, options.replicas, options.slots, options.seed)
    table = Table("simulated job", "episodes", "seconds", "bound", "of bound", "dropped", "retries", "limit", "CPU s")
    for name, part in PARTS.items():
        if options.only in (None, name):
            for line in part(sizes):
                table.add_row(*_cells(line))
            table.add_section()
    console = Console(width=120)
    console.print(table)
    console.print(f"{sizes.replicas:,} replicas, at most {sizes.in_flight:,} in flight, seed {sizes.seed}")
    console.print("bound: engines full from beginning to end, or the longest episode by itself")


def _cells(line: Line) -> Iterator[str]:
    job, pace = line.job, line.pace
    yield line.name
    yield f"{len(job.rows):,}"
    yield f"{line.seconds:,.0f}"
    yield f"{line.bound:,.0f}" if line.bound else ""
    yield f"{line.seconds / line.bound:.2f}" if line.bound else ""
    yield f"{job.dropped:,}"
    yield f"{job.scheduler.retries:,}"
    yield f"{job.scheduler.limit:,} ({pace.cuts} cuts)" if pace else f"{job.scheduler.limit:,}"
    yield f"{job.cpu:.1f}"


if __name__ == "__main__":
    main()
