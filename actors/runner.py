"""An actor that plays hundreds of episodes on one event loop and writes their rows.

The driver calls `work` again and again: leases go in, what ended comes out. Rows leave the runner only as files; the
driver decides whether a file becomes part of the dataset.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from actors.setting import Job, build_setting, close_setting
from rollout.dataset import RowFile, write_file
from rollout.episode import Setting, run_episode
from rollout.errors import RolloutError, describe
from rollout.rows import to_table, weight
from rollout.tally import Tally
from rollout.trajectory import Failure, FailureKind, Lease, StopReason, Trajectory

GATHER_SECONDS = 0.01
"""How long the first thing to report waits for company."""
FULL = 4
"""Times `dataset.commit_mib` that may wait for a slow disk."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """A file of rows and whose they are."""

    file: RowFile
    episode_ids: tuple[str, ...]


@dataclass(slots=True)
class Report:
    """What happened at a runner since the last report."""

    finished: list[str] = field(default_factory=list[str])
    given_back: list[tuple[str, Failure]] = field(default_factory=list[tuple[str, Failure]])
    files: list[Written] = field(default_factory=list[Written])
    tally: Tally = field(default_factory=Tally)
    full: bool = False
    """So much waits for the disk that the runner should get no more episodes for now."""
    fatal: str | None = None
    """The runner cannot go on: one line for the person who started the job."""

    @property
    def empty(self) -> bool:
        """True when there is nothing to tell."""
        return not (self.finished or self.given_back or self.files or self.fatal)


class EpisodeRunner:
    """Plain asyncio: `cluster` makes it an actor."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._setting: Setting | None = None
        self._playing: dict[str, asyncio.Task[None]] = {}
        self._rows: list[Trajectory] = []
        self._oldest = 0.0
        self._waiting_bytes = 0
        """Of rows that are in no file yet, those being written among them."""
        self._writing_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._report = Report()
        self._news = asyncio.Event()
        self._draining = False

    async def start(self) -> None:
        """Connects to model and hosts, once. Raises UserError for what a person got wrong."""
        if self._setting is None:
            self._setting = await build_setting(self._job)

    async def work(self, leases: list[Lease], draining: bool, hold: float) -> Report:
        """Takes leases; reports what ended, after at most `hold` seconds of nothing.

        `draining` says that no more leases wait: rows are written as soon as nothing is played any more.
        """
        self._draining = draining
        for lease in leases:
            self._playing[lease.episode_id] = asyncio.create_task(self._play(lease))
        self._flush_if_due()
        try:
            async with asyncio.timeout(hold):
                await self._news.wait()
            await asyncio.sleep(GATHER_SECONDS)
        except TimeoutError:
            pass
        self._flush_if_due()
        self._news.clear()
        report, self._report = self._report, Report()
        report.full = self._waiting_bytes >= FULL * self._job.config.dataset.commit_mib << 20
        return report

    async def stop(self) -> Report:
        """Breaks off what is played (its sessions are closed), writes the rows of what has ended."""
        playing = list(self._playing.values())
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
        if self._writing is not None:
            await self._writing
        if self._rows:
            await self._write()
        if self._setting is not None:
            await close_setting(self._setting)
            self._setting = None
        report, self._report = self._report, Report()
        return report

    async def _play(self, lease: Lease) -> None:
        assert self._setting is not None, "start comes first"
        try:
            trajectory = await run_episode(lease, self._setting)
        except RolloutError as error:  # the job is wrong (a template that cannot go on, say): no episode can work
            self._tell_fatal(str(error))
            return
        except Exception as error:  # the one place where a bug becomes a row: it must not cost the other episodes
            log.exception("episode %s", lease.episode_id)
            trajectory = _broken(lease, self._setting, error)
        finally:
            self._playing.pop(lease.episode_id, None)
        self._end(trajectory)

    def _end(self, trajectory: Trajectory) -> None:
        lease, failure = trajectory.lease, trajectory.failure
        if failure is not None and not lease.final and failure.kind is not FailureKind.INTERNAL:
            self._report.given_back.append((lease.episode_id, failure))
        else:
            if not self._rows:
                self._oldest = time.monotonic()
            self._rows.append(trajectory)
            self._waiting_bytes += weight(trajectory)
            self._report.finished.append(lease.episode_id)
            self._report.tally += Tally.of(trajectory)
        self._flush_if_due()
        self._news.set()

    def _flush_if_due(self) -> None:
        dataset = self._job.config.dataset
        waiting = self._waiting_bytes - self._writing_bytes
        full = len(self._rows) >= dataset.commit_rows or waiting >= dataset.commit_mib << 20
        old = bool(self._rows) and time.monotonic() - self._oldest >= dataset.commit_seconds
        last = bool(self._rows) and self._draining and not self._playing
        if (full or old or last) and self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Off the event loop: encoding and flushing a file takes longer than a turn may wait."""
        rows, self._rows = self._rows, []
        self._writing_bytes = self._waiting_bytes
        try:
            file = await asyncio.to_thread(lambda: write_file(self._job.table, to_table(rows)))
        except OSError as error:
            self._tell_fatal(f"{self._job.table}: cannot write: {error.strerror or error}")
            return
        finally:
            self._writing = None
            self._waiting_bytes -= self._writing_bytes
            self._writing_bytes = 0
        self._report.files.append(Written(file, tuple(row.lease.episode_id for row in rows)))
        self._news.set()
        self._flush_if_due()

    def _tell_fatal(self, line: str) -> None:
        self._report.fatal = line
        self._news.set()


def _broken(lease: Lease, setting: Setting, error: Exception) -> Trajectory:
    now = time.time()
    return Trajectory(
        lease=lease,
        resource=setting.resource,
        agent=setting.agent.name,
        model=setting.model,
        messages=lease.task.messages,
        turns=(),
        stop_reason=StopReason.FAILED,
        failure=Failure(FailureKind.INTERNAL, "run_episode", describe(error)),
        started_at=now,
        finished_at=now,
    )
