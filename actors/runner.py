"""An actor that plays hundreds of episodes on one event loop and writes their rows.

The driver calls `work` again and again: leases go in, what ended comes out. Rows leave the runner only as files; the
driver decides whether a file becomes part of the dataset.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import ray

from actors.external import with_program
from actors.setting import Job, build_settings, close_settings, heard
from rollout.config import OpenAIConfig
from rollout.dataset import RowFile, write_file
from rollout.episode import Setting, run_episode
from rollout.errors import RolloutError, describe
from rollout.journal import Journal
from rollout.latency import Latencies
from rollout.load import HostLoad, Load
from rollout.logs import about, mark_lines
from rollout.openai_load import EndpointLoad
from rollout.parking import Parking
from rollout.process import collect_rarely, open_many_files
from rollout.rows import to_table, weight
from rollout.scheduling import Orders
from rollout.tally import Tally
from rollout.thread import DISK_SECONDS, threaded
from rollout.trajectory import Failure, FailureKind, Lease, StopReason, Trajectory
from rollout.waits import HERE, Sight

SIGHT_SECONDS = 1.0
"""How often a runner tells what it waits for."""
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
    """Episodes whose rows are on the way."""
    bad: list[str] = field(default_factory=list[str])
    """Those of them that failed or were dropped."""
    given_back: list[tuple[str, Failure]] = field(default_factory=list[tuple[str, Failure]])
    parked: list[str] = field(default_factory=list[str])
    """Episodes that wait for a person,"""
    unparked: list[str] = field(default_factory=list[str])
    """and those whose wait is over."""
    files: list[Written] = field(default_factory=list[Written])
    tally: Tally = field(default_factory=Tally)
    latencies: Latencies = field(default_factory=Latencies)
    loads: dict[str, Load] = field(default_factory=dict[str, Load])
    """What replicas told of themselves since then, by name,"""
    hosts: dict[str, HostLoad] = field(default_factory=dict[str, HostLoad])
    """and resource hosts."""
    routes: Counter[str] = field(default_factory=Counter[str])
    """Model calls by why they went to the replica they went to."""
    sight: Sight | None = None
    """What the runner waits for; told once in a while."""
    full: bool = False
    """So much waits for the disk that the runner should get no more episodes for now."""
    fatal: str | None = None
    """The runner cannot go on: one line for the person who started the job."""

    @property
    def empty(self) -> bool:
        """True when there is nothing to tell."""
        return not (self.finished or self.given_back or self.parked or self.unparked or self.files or self.fatal)


class EpisodeRunner:
    """Plain asyncio: `cluster` makes it an actor."""

    def __init__(self, job: Job) -> None:
        mark_lines()
        self._job = job
        self._settings: dict[str, Setting] = {}
        self._endpoint: EndpointLoad | None = None
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
        self._drops: dict[str, str] = {}
        """Why episodes that are still played are being broken off."""
        self._journal: Journal | None = None
        self._parking = Parking(self._playing, self._news.set)
        self._seen = 0.0

    async def start(self, name: str | None = None) -> None:
        """Connects to model and hosts, once. Raises UserError for what a person got wrong.

        With a name, which no other runner of the run has or had, it keeps the turns it plays from now on.
        """
        if not self._settings:
            open_many_files()
            settings = await build_settings(self._job, _own_name(), self._parking)
            self._settings = await with_program(self._job, settings)
            if isinstance(model := self._job.config.model, OpenAIConfig):
                self._endpoint = EndpointLoad(model)
            collect_rarely()
        restored = any(setting.restores for setting in self._settings.values())
        if name is not None and self._job.turns is not None and restored:
            self._journal = journal = Journal(self._job.turns, name)
            self._settings = {key: replace(one, keep=journal.add) for key, one in self._settings.items()}

    async def work(self, orders: Orders) -> Report:
        """Does as it is told; reports what ended, after at most `orders.hold` seconds of nothing."""
        assert self._settings, "start comes first"
        self._draining = orders.draining
        if self._journal is not None:
            self._journal.settle(orders.settled)
        for lease in orders.leases:
            self._playing[lease.episode_id] = asyncio.create_task(self._play(lease))
        self._parking.resume(orders.resumed)
        for episode_id, reason in orders.drops.items():
            if (task := self._playing.get(episode_id)) is not None:
                self._drops[episode_id] = reason
                task.cancel()
        for lease, reason in orders.unplayed:
            self._keep(replace(_nothing(lease, self._settings[lease.task.resource]), drop_reason=reason))
        self._flush_if_due()
        try:
            async with asyncio.timeout(orders.hold):
                await self._news.wait()
            await asyncio.sleep(GATHER_SECONDS)
        except TimeoutError:
            pass
        self._flush_if_due()
        self._news.clear()
        report = self._take_report()
        report.full = self._waiting_bytes >= FULL * self._job.config.dataset.commit_mib << 20
        if (now := time.monotonic()) - self._seen >= SIGHT_SECONDS:
            report.sight, self._seen = HERE.sight(), now
        return report

    async def wake(self) -> None:
        """Lets `work` return now if it waits for something to tell."""
        self._news.set()

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
        report = self._take_report()
        settings, self._settings = self._settings, {}
        await close_settings(settings)
        if self._journal is not None:
            await self._journal.close()
            self._journal = None
        if self._endpoint is not None:
            await self._endpoint.aclose()
            self._endpoint = None
        return report

    def _take_report(self) -> Report:
        report, self._report = self._report, Report()
        report.parked, report.unparked = self._parking.take()
        for setting in self._settings.values():
            heard(setting, report.loads, report.hosts, report.latencies, report.routes)
        if self._endpoint is not None:
            report.loads.update(self._endpoint.take())
        return report

    async def _play(self, lease: Lease) -> None:
        setting = self._settings[lease.task.resource]
        about((lease.run_id, lease.episode_id, lease.attempt, 0))
        try:
            saved = () if self._journal is None else await self._journal.take_over(lease.episode_id, lease.played_by)
            trajectory = await run_episode(lease, setting, saved, self._drops)
        except RolloutError as error:  # the job is wrong (a template that cannot go on, say): no episode can work
            self._tell_fatal(str(error))
            return
        except Exception as error:  # the one place where a bug becomes a row: it must not cost the other episodes
            log.exception("a bug")
            trajectory = _broken(lease, setting, error)
        finally:
            self._playing.pop(lease.episode_id, None)
            self._drops.pop(lease.episode_id, None)
        self._end(trajectory)

    def _end(self, trajectory: Trajectory) -> None:
        lease, failure = trajectory.lease, trajectory.failure
        if failure is not None:
            log.info("failed: %s at %s: %s", failure.kind, failure.where, failure.message)
        if failure is not None and not lease.final and failure.kind is not FailureKind.INTERNAL:
            self._report.given_back.append((lease.episode_id, failure))
            if self._journal is not None:
                self._journal.leave(lease.episode_id)
        else:
            self._report.finished.append(lease.episode_id)
            if failure is not None or trajectory.drop_reason is not None:
                self._report.bad.append(lease.episode_id)
            self._keep(trajectory)
        self._flush_if_due()
        self._news.set()

    def _keep(self, trajectory: Trajectory) -> None:
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append(trajectory)
        self._waiting_bytes += weight(trajectory)
        self._report.tally += Tally.of(trajectory)
        self._report.latencies.take(trajectory)

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
            file = await threaded(lambda: write_file(self._job.table, to_table(rows)), DISK_SECONDS, "disk")
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


def _own_name() -> str:
    """What hosts know this runner by: the id of its actor, without one (asking would start Ray) nothing."""
    return (ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None) or ""


def _broken(lease: Lease, setting: Setting, error: Exception) -> Trajectory:
    failure = Failure(FailureKind.INTERNAL, "run_episode", describe(error))
    return replace(_nothing(lease, setting), stop_reason=StopReason.FAILED, failure=failure)


def _nothing(lease: Lease, setting: Setting) -> Trajectory:
    """The row of a sample nothing was played of."""
    now = time.time()
    return Trajectory(
        lease=lease,
        resource=setting.resource,
        agent=setting.agent.name,
        model=setting.model,
        messages=lease.task.messages,
        turns=(),
        stop_reason=StopReason.DROPPED,
        started_at=now,
        finished_at=now,
    )
