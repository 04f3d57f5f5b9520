"""A job without end that a trainer reads from: the driver's run, the shelf of whole groups, and new weights.

All of it lives on one event loop, which is not the trainer's (`actors.online`): a training step would keep the driver
from hearing its runners.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from actors.check import check, make_resources
from actors.cluster import application, started
from actors.connection import check_room, connect, disconnect
from actors.driver import Driver
from actors.job import new_driver, new_scheduler
from actors.publisher import Publisher, read_edition
from actors.weights import Weights
from rollout.config import JobConfig
from rollout.dataset import Committer, RowFile
from rollout.demand import Demand
from rollout.errors import RolloutError, UserError, describe
from rollout.expectation import read_history
from rollout.journal import left_behind
from rollout.live import Live
from rollout.mixture import lanes_of
from rollout.reads import Entry, Reads
from rollout.resource import Resource
from rollout.run_folder import Run, check_folder, create_or_resume, locked, take_back
from rollout.shelf import Ready, Shelf, Verdict, read_groups, read_heads
from rollout.storage import is_remote
from rollout.template import resolve_model
from rollout.terms import Batch, Terms
from rollout.thread import DISK_SECONDS, threaded
from rollout.weights_folder import Shapes, check_weights, read_shapes

COMMIT_SECONDS = 0.5
"""A trainer waits for rows: their oldest waits no longer than this for company."""

log = logging.getLogger(__name__)


class Service:
    """One run as its trainer sees it. Everything but `stop` and `report` is for the loop that `run` runs in."""

    def __init__(self, config: JobConfig, terms: Terms) -> None:
        """Raises UserError for terms that cannot be kept."""
        terms.check(config)
        seconds = min(COMMIT_SECONDS, config.dataset.commit_seconds)
        quick = config.dataset.model_copy(update={"commit_seconds": seconds})
        self._config = config.model_copy(update={"dataset": quick})
        self._terms = terms
        self._demand = Demand(terms.max_behind)
        self._shelf = Shelf(config.run.group_size, config.run.samples_per_task, terms.by, terms.keeps_equal)
        self._counts: Counter[str] = Counter()
        self._pulls = 0
        self._given: list[tuple[int, Sequence[Ready]]] = []
        """Pulls that the trainer has not acknowledged."""
        self._behind: tuple[int, ...] = ()
        self._waited = 0.0
        self._news = asyncio.Event()
        self._arrived: asyncio.Queue[list[RowFile]] = asyncio.Queue()
        self._pulling, self._publishing, self._writing = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._end: RolloutError | None = None
        self._must_publish: str | None = None
        self._shapes: Shapes | None = None
        self._driver: Driver
        self._publisher: Publisher
        self._reads: Reads
        self._table = ""

    @property
    def version(self) -> int:
        """Of the weights that the replicas have."""
        return self._demand.version

    def report(self) -> dict[str, Any]:
        """How it goes, in numbers: groups by what became of them, ages in versions, seconds."""
        behind = self._behind
        return {
            "version": self.version,
            **{verdict.value: self._counts[verdict.value] for verdict in Verdict},
            "ready": len(self._shelf),
            "begun": self._demand.stock - len(self._shelf),
            "behind_mean": sum(behind) / len(behind) if behind else 0.0,
            "behind_max": max(behind, default=0),
            "waited_seconds": self._waited,
        }

    async def run(self, ready: Callable[[], None]) -> None:
        """Serves until `stop` is called; calls `ready` when the first pull may come. Raises as `run_job` does."""
        try:
            await self._run(ready)
        except RolloutError as error:
            self._end = error
            raise
        finally:
            self._end = self._end or RolloutError("the service is closed")
            self._news.set()

    def stop(self) -> None:
        """Ends `run` in order: episodes in flight are broken off, a resumed service goes on with them."""
        self._driver.interrupt()

    async def pull(self, groups: int) -> Batch:
        """See `actors.online.OnlineService.pull`."""
        if groups < 1:
            raise UserError(f"pull: expected a number of groups, found {groups}")
        async with self._pulling:
            await self._acknowledge()
            await self._wait_for(groups)
            chosen = self._shelf.first(groups)
            rows = await threaded(lambda: read_groups(self._table, chosen), DISK_SECONDS, "disk")
            number = self._pulls + 1
            await self._decide(chosen, Verdict.GIVEN, number)
            self._shelf.take(chosen)
            self._demand.read(len(chosen))
            self._pulls = number
            self._given.append((number, chosen))
            self._behind = tuple(group.behind(self.version) for group in chosen)
            ids = tuple(group.group_id for group in chosen)
            return Batch(rows, self._reads.cursor(number), ids, self.version, self._behind)

    async def done(self, batch: Batch | None = None) -> None:
        """Acknowledges a batch and those before it; all without one."""
        last = self._pulls if batch is None else batch.pull
        await self._acknowledge(last)

    async def publish(self, place: str | Path) -> int:
        """See `actors.online.OnlineService.publish`."""
        async with self._publishing:
            self._check()
            await self._acknowledge()
            path = await threaded(lambda: self._checked(Path(place)), DISK_SECONDS, "disk")
            version = await self._publisher.publish(path)
            self._must_publish, self._demand.closed = None, False
            self._demand.publish(version)
            await self._set_stale_aside()
            return version

    async def _run(self, ready: Callable[[], None]) -> None:
        config, resume = self._config, bool(self._terms.resume)
        check_folder(config.run.dir, resume)
        resources = make_resources(config)
        digests = {**check(config, resources), "order": "epochs"}  # a job that ends numbers its tasks otherwise
        with locked(config.run.dir):
            run = create_or_resume(config, digests, resume, force=False)
            committer = Committer(run.episodes, run.run_id)
            committer.take_over(config.dataset.keep_hours)
            joined = ray.is_initialized()
            try:
                if not joined and connect(self._terms.address, config.logs):
                    check_room(config)
                await self._serve(run, resources, committer, ready)
            except UserError:
                if not resume and not committer.files():
                    take_back(run)
                raise
            finally:
                if not joined:
                    disconnect()

    async def _serve(
        self, run: Run, resources: Mapping[str, Resource], committer: Committer, ready: Callable[[], None]
    ) -> None:
        config = self._config
        self._table, self._reads = run.episodes, Reads(run.place, self._terms.trainer)
        edition, highest = read_edition(run.place)
        self._demand.version = edition.version
        if edition.folder is not None and (reason := self._unusable(Path(edition.folder))) is not None:
            edition = type(edition)(edition.number, edition.version, None)
            self._must_publish, self._demand.closed = reason, True
        self._take_up(committer)
        left = left_behind(run.turns) if config.run.keep_turns else {}
        history = read_history(path) if (path := config.scheduler.history) else None
        done = committer.done(config.run.group_size)
        lanes = lanes_of(config, resources, run.run_id, done, history, left, endless=True)
        weights = ray.remote(Weights).options(num_cpus=0, max_restarts=-1, max_concurrency=1000).remote(edition)
        async with started(config, run.run_id, run.episodes, weights=weights) as cluster:
            live = Live(Console(quiet=True))
            scheduler = new_scheduler(config, lanes, self._demand)
            self._driver = new_driver(config, cluster, scheduler, committer, live, None)
            self._driver.committed = self._arrived.put_nowait
            self._publisher = Publisher(weights, run.place, edition, highest, lambda: _live(run.run_id))
            helpers = [asyncio.create_task(self._take_in()), asyncio.create_task(self._publisher.remind())]
            try:
                ready()
                await self._driver.run(config.scheduler.runners)
            finally:
                for helper in helpers:
                    helper.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
        if not is_remote(run.place):
            committer.discard_uncommitted()

    def _take_up(self, committer: Committer) -> None:
        """Puts what an earlier service has left onto the shelf."""
        cursor = self._terms.resume if isinstance(self._terms.resume, str) else None
        self._counts[Verdict.RETURNED] += self._reads.come_back(cursor, self.version)
        self._pulls = self._reads.pull
        settled = self._reads.settled()
        aside: list[tuple[Ready, Verdict]] = []
        for file in committer.files():
            heads = [head for head in read_heads(self._table, file.path) if head.task_index not in settled]
            aside += self._shelf.add(file.path, heads)
        self._reads.write([Entry(group, verdict, self.version, self._pulls) for group, verdict in aside])
        self._counts.update(verdict.value for _, verdict in aside)
        self._demand.stock = len(self._shelf)

    async def _take_in(self) -> None:
        """Puts rows onto the shelf as they are committed."""
        try:
            while True:
                for file in await self._arrived.get():
                    heads = await threaded(lambda name=file.path: read_heads(self._table, name), DISK_SECONDS, "disk")
                    for group, verdict in self._shelf.add(file.path, heads):
                        await self._decide([group], verdict, self._pulls)
                        self._demand.set_aside(1)
                self._news.set()
        except OSError as error:
            self._end = RolloutError(f"{self._table}: cannot be read: {describe(error)}")
            self._driver.interrupt()
        except RolloutError as error:
            self._end = error
            self._driver.interrupt()

    async def _wait_for(self, groups: int) -> None:
        began = time.monotonic()
        self._demand.ask(groups)
        try:
            while True:
                self._check()
                if self._must_publish is not None:
                    raise RolloutError(f"publish first: version {self.version} is not there: {self._must_publish}")
                await self._set_stale_aside()
                if len(self._shelf) >= groups:
                    return
                self._news.clear()
                await self._news.wait()
        finally:
            self._demand.withdraw()
            self._waited += time.monotonic() - began

    async def _set_stale_aside(self) -> None:
        if old := self._shelf.stale(self.version, self._terms.max_behind):
            await self._decide(old, Verdict.STALE, self._pulls)
            self._demand.set_aside(len(old))

    async def _acknowledge(self, last: int | None = None) -> None:
        for number, groups in tuple(self._given):
            if last is None or number <= last:
                self._given.remove((number, groups))
                await self._decide(groups, Verdict.TRAINED, number)

    async def _decide(self, groups: Sequence[Ready], verdict: Verdict, pull: int) -> None:
        entries = [Entry(group, verdict, self.version, pull) for group in groups]
        async with self._writing:
            await threaded(lambda: self._reads.write(entries), DISK_SECONDS, "disk")
        self._counts[verdict.value] += len(entries)

    def _check(self) -> None:
        if self._end is not None:
            raise self._end

    def _unusable(self, place: Path) -> str | None:
        try:
            self._checked(place)
        except UserError as error:
            return str(error)
        return None

    def _checked(self, place: Path) -> str:
        """Where the weights lie, for whoever works elsewhere. Raises UserError when the model cannot take them."""
        model = self._config.model
        if model.engine == "vllm":
            self._shapes = self._shapes or read_shapes(resolve_model(model.path))
            check_weights(place, self._shapes)
        elif not place.is_dir():
            raise UserError(f"{place}: no such folder")
        return str(place.resolve())


def _live(run_id: str) -> set[str]:
    from actors.model import replicas_of

    return {one["replica_id"] for one in replicas_of(application(run_id)) if one.get("state") == "RUNNING"}
