"""The driver: gives leases to runners, commits what they wrote, replaces those that die.

It holds leases and counts, never rows. It is the only committer of the run's table, so what it does not commit never
happened, and a runner it has given up can do no harm.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayTaskError

from actors.runner import Report, Written
from actors.setting import Names
from rollout.dataset import Committer, RowFile, write_file
from rollout.errors import BoundaryError, RolloutError, UserError, boundary
from rollout.live import Live
from rollout.rows import to_table
from rollout.scheduling import Orphan, Scheduler
from rollout.tally import Tally
from rollout.trajectory import FailureKind, Lease, StopReason, Trajectory

HOLD_SECONDS = 0.5
"""How long a runner with nothing to tell is waited for: also how fast the progress view and Ctrl-C react."""
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
    committer: Committer
    new_runner: Callable[[str], Any]
    """Starts a runner actor; its `start` has not been called."""
    end_runner: Callable[[Any], None]
    live: Live
    names: Names
    total: int | None
    start_seconds: float
    silent_seconds: float
    tally: Tally = field(default_factory=Tally)
    interrupted: bool = False
    _runners: dict[str, Any] = field(default_factory=dict[str, Any])
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _kept: int = 0
    """Files that were committed."""
    _fatal: RolloutError | None = None
    _committing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, runners: int) -> bool:
        """Plays everything there is; True when all is done, False when it was interrupted with work left.

        Raises Stuck when it cannot go on, UserError when a runner says that the job itself is wrong. Rows that ended
        are committed in every case.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(runners):
                group.create_task(self._keep_runner())
            group.create_task(self._show())
        self.live.update(self.tally, 0, self.total, None, time.time())
        if self._fatal is not None:
            raise self._fatal
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
            name, kept = f"runner-{next(self._numbers)}", self._kept
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
            await _answer(runner.start.remote())
        files: list[Written] = []
        while not self._over:
            leases = self._assign(name)
            working = runner.work.remote(leases, self.scheduler.drained, HOLD_SECONDS)
            await self._keep(name, files)  # while the runner works: free slots must not wait for the disk
            async with boundary(FailureKind.LOST, name, HOLD_SECONDS + self.silent_seconds):
                report = await _answer(working)
            files = self._absorb(name, report)
            if self.scheduler.drained:
                await self._keep(name, files)
                files = []
        async with boundary(FailureKind.LOST, name, STOP_SECONDS):
            report = await _answer(runner.stop.remote())
        await self._keep(name, [*files, *self._absorb(name, report)])
        self.end_runner(self._runners.pop(name))

    def _assign(self, name: str) -> list[Lease]:
        """New leases; none when the tasks turn out to be wrong, which ends the run in order."""
        try:
            return self.scheduler.assign(name)
        except UserError as error:
            self._give_up(error)
            return []

    def _absorb(self, name: str, report: Report) -> list[Written]:
        """Takes in what a runner tells, but for its files, which are left to commit."""
        self.tally += report.tally
        self.scheduler.finish(name, report.finished)
        for episode_id, failure in report.given_back:
            log.info("%s will be tried again: %s at %s: %s", episode_id, failure.kind, failure.where, failure.message)
            self.scheduler.give_back(name, episode_id)
        if report.fatal is not None:
            self._give_up(Stuck(report.fatal))
        return report.files

    async def _keep(self, name: str, files: list[Written]) -> None:
        """Commits the files whose samples the runner still holds."""
        for written in files:
            if self.scheduler.holds(name, written.episode_ids):
                await self._commit([written.file])
                self.scheduler.settle(name, written.episode_ids)
                self._kept += 1

    async def _commit(self, files: list[RowFile]) -> None:
        async with self._committing:
            try:
                await asyncio.to_thread(self.committer.commit, files)
            except OSError as error:
                raise Stuck(f"{self.committer.folder}: cannot commit: {error.strerror or error}") from error

    async def _bury(self, name: str, why: str) -> None:
        """Gives a runner up: its samples go to others, or become failed rows when they have no attempt left."""
        log.warning("%s is lost: %s", name, why)
        self.end_runner(self._runners.pop(name))
        orphans = self.scheduler.lose_runner(name, why)
        if orphans:
            try:
                await self._write_orphans(orphans)
            except RolloutError as error:
                self._give_up(error)

    async def _write_orphans(self, orphans: list[Orphan]) -> None:
        rows = [self._lost(orphan) for orphan in orphans]
        folder = self.committer.folder
        try:
            file = await asyncio.to_thread(lambda: write_file(folder, to_table(rows)))
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
            resource=self.names.resource,
            agent=self.names.agent,
            model=self.names.model,
            messages=lease.task.messages,
            turns=(),
            stop_reason=StopReason.FAILED,
            failure=orphan.failure,
            started_at=now,
            finished_at=now,
        )

    async def _show(self) -> None:
        while not self._over:
            waiting = None if self._runners else "a runner"
            self.live.update(self.tally, self.scheduler.running, self.total, waiting, time.time())
            await asyncio.sleep(HOLD_SECONDS)


async def _answer(reference: Any) -> Any:
    """The answer of a remote call, or the very error that was raised over there."""
    try:
        return await reference
    except RayTaskError as error:
        raise error.cause from error
