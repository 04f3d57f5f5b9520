"""The driver: gives leases to runners, commits what they wrote, replaces those that die.

It holds leases and counts, never rows. It is the only committer of the run's table, so what it does not commit never
happened, and a runner it has given up can do no harm.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from ray.exceptions import RayTaskError

from actors.keeper import Keeper
from actors.metrics import EXPORT_SECONDS
from actors.runner import Report, Written
from actors.setting import Names
from actors.watch import Watch
from rollout.dataset import RowFile, write_file
from rollout.errors import BoundaryError, RolloutError, Stalled, UserError, boundary
from rollout.live import Live
from rollout.metrics import Meters, Now, Sample
from rollout.rows import to_table
from rollout.scheduling import Orders, Orphan, Scheduler
from rollout.tally import Tally
from rollout.thread import DISK_SECONDS, threaded
from rollout.trajectory import FailureKind, Lease, StopReason, Trajectory
from rollout.waits import HERE

HOLD_SECONDS = 0.5
"""How long a runner with nothing to tell is waited for: also how fast the progress view and Ctrl-C react."""
MOST_LEASES = 256
"""In one order: the first of thousands are played while the others are still being chosen."""
MAX_DEATHS = 5
"""Runners that may die one after the other in the same place without a file being committed in between."""
STOP_SECONDS = 60.0
"""What a runner may take to write what it has when the run is stopped."""

log = logging.getLogger(__name__)


class Stuck(RolloutError):
    """The run cannot go on; what is committed stays and --resume goes on from there."""


@dataclass(slots=True)
class Driver:
    """One run from its first lease to its last commit."""

    scheduler: Scheduler
    keeper: Keeper
    new_runner: Callable[[str], Any]
    """Starts a runner actor; its `start` has not been called."""
    end_runner: Callable[[Any], None]
    live: Live
    names: Names
    total: int | None
    start_seconds: float
    silent_seconds: float
    export: Callable[[Iterable[Sample]], None] | None = None
    """Takes the run's metrics every few seconds."""
    committed: Callable[[list[RowFile]], None] | None = None
    """Hears of the files of every commit."""
    watch: Watch = field(default_factory=Watch)
    tally: Tally = field(default_factory=Tally)
    meters: Meters = field(default_factory=Meters)
    interrupted: bool = False
    budget: float | None = None
    """USD that the job may cost; None for whatever."""
    spent: float = 0.0
    """USD that rows cost which were there before."""
    _runners: dict[str, Any] = field(default_factory=dict[str, Any])
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _token: str = field(default_factory=lambda: uuid4().hex[:6])
    """Keeps the names of runners apart from those of earlier drivers of the run: files of turns are called after them.
    """
    _kept: int = 0
    """Files that were committed."""
    _fatal: RolloutError | None = None
    _poor: UserError | None = None
    """The budget of the job is spent."""
    _played: asyncio.Event = field(default_factory=asyncio.Event)
    """No runner is used any more."""

    async def run(self, runners: int) -> bool:
        """Plays everything there is; True when all is done, False when it was interrupted with work left.

        Raises Stuck when it cannot go on, UserError when a runner says that the job itself is wrong. Rows that ended
        are committed in every case.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._show())
            group.create_task(self._tidy())
            try:
                async with asyncio.TaskGroup() as keepers:
                    for _ in range(runners):
                        keepers.create_task(self._keep_runner())
            finally:
                self._played.set()
        self.live.update(self.tally, 0, self.total, None, time.time())
        self._export()
        if (error := self._fatal or self._poor) is not None:
            raise error
        return self.scheduler.finished and not self.interrupted

    def interrupt(self) -> None:
        """Stops handing out; runners break off what they play and write what has ended."""
        self.interrupted = True
        self.scheduler.stop()

    @property
    def _over(self) -> bool:
        return self.interrupted or self._fatal is not None or self.scheduler.finished

    async def _keep_runner(self) -> None:
        """One runner after the other in the same place until the run is over."""
        deaths = 0
        while not self._over:
            name, kept = f"runner-{self._token}-{next(self._numbers)}", self._kept
            try:
                await self._use_runner(name)
            except BoundaryError as error:
                deaths = deaths + 1 if self._kept == kept else 1
                await self._bury(name, error.failure.message)
                if deaths >= MAX_DEATHS:
                    self._give_up(Stuck(f"{deaths} runners died one after the other: {error.failure.message}"))
            except RolloutError as error:
                self._give_up(error)

    def _give_up(self, error: RolloutError) -> None:
        """Ends the run in order: what other runners have is still committed."""
        self._fatal = self._fatal or error
        self.scheduler.stop()

    async def _use_runner(self, name: str) -> None:
        runner = self.new_runner(name)
        self._runners[name] = runner
        self.scheduler.add_runner(name)
        async with boundary(FailureKind.LOST, name, self.start_seconds):
            with HERE.on("start", name):
                await _answer(runner.start.remote(name))
        files: list[Written] = []
        settled: list[str] = []
        full = False
        while not self._over:
            working = runner.work.remote(replace(self._orders(name, full), settled=tuple(settled)))
            settled = await self._keep(name, files)  # while the runner works: free slots must not wait for the disk
            async with boundary(FailureKind.LOST, name, HOLD_SECONDS + self.silent_seconds):
                with HERE.on("report", name, strict=True):
                    report = await _answer(working)
            files, full = self._absorb(name, report), report.full
            if self.scheduler.drained:
                settled += await self._keep(name, files)
                files = []
        async with boundary(FailureKind.LOST, name, STOP_SECONDS):
            with HERE.on("last report", name):
                report = await _answer(runner.stop.remote())
        await self._keep(name, [*files, *self._absorb(name, report)])
        self._end_runner(name)

    def _end_runner(self, name: str) -> None:
        self.end_runner(self._runners.pop(name))
        self.watch.lost(name)

    def _orders(self, name: str, full: bool) -> Orders:
        """New leases and drops; none while the runner waits for the disk, nor when the tasks turn out to be wrong,
        which ends the run in order."""
        if full:
            return Orders(draining=self.scheduler.drained, hold=HOLD_SECONDS)
        try:
            return self.scheduler.assign(name, time.monotonic(), HOLD_SECONDS, MOST_LEASES)
        except UserError as error:
            self._give_up(error)
            return Orders(hold=HOLD_SECONDS)

    def _absorb(self, name: str, report: Report) -> list[Written]:
        """Takes in what a runner tells, but for its files, which are left to commit."""
        self.watch.told(name, report)
        self.tally += report.tally
        self._count_cost()
        self._hear(report)
        self.scheduler.park(name, report.parked)
        self.scheduler.unpark(name, report.unparked)
        self.scheduler.finish(name, report.finished, report.bad)
        for episode_id, failure in report.given_back:
            log.info("%s will be tried again: %s at %s: %s", episode_id, failure.kind, failure.where, failure.message)
            self.scheduler.give_back(name, episode_id, time.monotonic())
        if report.fatal is not None:
            self._give_up(Stuck(report.fatal))
        return report.files

    def _count_cost(self) -> None:
        """Begins no further episode once the budget of the job is spent; those that are played go on to their end."""
        spent = self.spent + self.tally.usd
        if self.budget is not None and spent >= self.budget and self._poor is None:
            line = f"cost.job_usd: {spent:.2f} of {self.budget:g} USD are spent; raise it to go on with --resume"
            self._poor = UserError(line)
            self.scheduler.stop()

    def _hear(self, report: Report) -> None:
        now = time.monotonic()
        meters = self.meters
        meters.latencies.add(report.latencies)
        meters.routes.update(report.routes)
        meters.retries.update(failure.kind.value for _, failure in report.given_back)
        meters.hosts.hear(report.hosts, now)
        meters.loads.hear(report.loads, now)
        self.scheduler.observe(meters.loads.fresh(now), now)

    async def _keep(self, name: str, files: list[Written]) -> list[str]:
        """Commits the files whose samples the runner still holds; whose rows they are."""
        held = [written for written in files if self.scheduler.holds(name, written.episode_ids)]
        if held:
            await self._commit([written.file for written in held])
        for written in held:
            self.scheduler.settle(name, written.episode_ids)
            self._kept += 1
        if held and self.scheduler.finished:
            self._wake_runners()
        return [episode_id for written in held for episode_id in written.episode_ids]

    def _wake_runners(self) -> None:
        """Those that wait for something to tell wait for nothing."""
        for runner in self._runners.values():
            runner.wake.remote()

    async def _commit(self, files: list[RowFile]) -> None:
        began = time.monotonic()
        try:
            with HERE.on("commit", "the run's folder", strict=True):
                await self.keeper.commit(files)
        except OSError as error:
            raise Stuck(f"{self.keeper.committer.folder}: cannot commit: {error.strerror or error}") from error
        self.meters.latencies.observe("commit", time.monotonic() - began)
        self.meters.committed += sum(file.rows for file in files)
        if self.committed is not None:
            self.committed(files)

    async def _bury(self, name: str, why: str) -> None:
        """Gives a runner up: its samples go to others, or become failed rows when they have no attempt left."""
        log.warning("%s is lost: %s", name, why)
        self._end_runner(name)
        held = self.scheduler.held
        orphans = self.scheduler.lose_runner(name, why, time.monotonic())
        again = held - self.scheduler.held - len(orphans)
        self.meters.retries[FailureKind.LOST.value] += again
        if orphans:
            try:
                await self._write_orphans(orphans)
            except RolloutError as error:
                self._give_up(error)

    async def _write_orphans(self, orphans: list[Orphan]) -> None:
        rows = [self._lost(orphan) for orphan in orphans]
        folder = self.keeper.committer.folder
        try:
            file = await threaded(lambda: write_file(folder, to_table(rows)), DISK_SECONDS, "disk")
        except OSError as error:
            raise Stuck(f"{folder}: cannot write: {error.strerror or error}") from error
        await self._commit([file])
        for row in rows:
            self.tally += Tally.of(row)

    def _lost(self, orphan: Orphan) -> Trajectory:
        now = time.time()
        lease: Lease = orphan.lease
        return Trajectory(
            lease=lease,
            resource=self.names.resources[lease.task.resource],
            agent=self.names.agent,
            model=self.names.model,
            messages=lease.task.messages,
            turns=(),
            stop_reason=StopReason.FAILED,
            failure=orphan.failure,
            started_at=now,
            finished_at=now,
        )

    async def _tidy(self) -> None:
        """Merges small files until the run is over."""
        while not self._over:
            try:
                await self.keeper.tidy(lambda: not self._over)
            except RolloutError as error:
                self._give_up(error)
            await self._pause()

    async def _show(self) -> None:
        due = 0.0
        while not self._over:
            if self.scheduler.resting or self.scheduler.only_asking:  # the turn of a trainer, or of people
                self.watch.dog.ended(time.monotonic())
            outlook = self.watch.look()
            waiting = outlook.waiting or (None if self._runners else "a runner")
            self.live.update(
                self.tally, self.scheduler.running, self.total, waiting, time.time(), self.scheduler.asking
            )
            if outlook.stuck is not None:
                self._give_up(Stalled(outlook.stuck))
            if time.monotonic() >= due:
                due = time.monotonic() + EXPORT_SECONDS
                self._export()
            await self._pause()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(HOLD_SECONDS):
                await self._played.wait()

    def _export(self) -> None:
        if self.export is None:
            return
        running, held, parked = self.scheduler.running, self.scheduler.held, self.scheduler.parked
        left = None if self.total is None else max(0, self.total - self.live.already - self.tally.episodes)
        at = Now(len(self._runners), running, held - running - parked, left, self.scheduler.asking)
        self.export(self.meters.samples(self.tally, at, time.monotonic()))


async def _answer(reference: Any) -> Any:
    """The answer of a remote call, or the very error that was raised over there."""
    try:
        return await reference
    except RayTaskError as error:
        raise error.cause from error
