"""What a trainer imports: a run that never ends, groups to pull, weights to publish.

    async with open_service("conf/train.yaml", max_behind=1) as service:
        while service.version < 100:
            batch = await service.pull(32)
            train(batch.samples())
            await service.publish(save())

`open_service_sync` is the same for trainers without an event loop. Either way the driver has a loop and a thread of its
own, so a training step may take as long as it likes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from actors.service import Service
from rollout.config import JobConfig, find_conf, load
from rollout.errors import RolloutError
from rollout.shelf import By
from rollout.terms import Batch, Terms

__all__ = ["Batch", "OnlineService", "SyncService", "open_service", "open_service_sync"]

T = TypeVar("T")


@asynccontextmanager
async def open_service(
    conf: str | Path | JobConfig,
    overrides: Sequence[str] = (),
    *,
    trainer: str = "trainer",
    max_behind: int = 1,
    by: By = "start",
    address: str | None = None,
    resume: bool | str = False,
    keeps_equal: bool = False,
) -> AsyncGenerator[OnlineService]:
    """Starts what a conf asks for and serves groups of its episodes until the block is left.

    Tasks come in epochs, shuffled by run.seed; a group is all samples of one task in one epoch. No group is given that
    is more than `max_behind` versions old, counted from when its oldest episode began, or `by` its oldest token.
    Groups whose rewards are all equal are passed over unless `keeps_equal`, and so are those that lack a reward.
    What became of each stands in RUN/reads/TRAINER.

    `resume` goes on with the run that is there. With a batch's cursor, everything that was read after that batch is
    given again; with True, only what no pull, publish or `done` has acknowledged. `address` names a Ray cluster.
    Raises UserError for what a person got wrong, RolloutError when the run cannot begin or go on.
    """
    thread = _Thread(_service(conf, overrides, Terms(trainer, max_behind, by, keeps_equal, address, resume)))
    try:
        await asyncio.shield(asyncio.wrap_future(thread.ready))
        online = OnlineService(thread)
        yield online
        await online.done()
    finally:
        thread.stop()
        await asyncio.wait([asyncio.wrap_future(thread.ended)])
    thread.result()


@contextmanager
def open_service_sync(
    conf: str | Path | JobConfig,
    overrides: Sequence[str] = (),
    *,
    trainer: str = "trainer",
    max_behind: int = 1,
    by: By = "start",
    address: str | None = None,
    resume: bool | str = False,
    keeps_equal: bool = False,
) -> Generator[SyncService]:
    """`open_service` for trainers without an event loop."""
    thread = _Thread(_service(conf, overrides, Terms(trainer, max_behind, by, keeps_equal, address, resume)))
    try:
        thread.ready.result()
        service = SyncService(thread)
        yield service
        service.done()
    finally:
        thread.stop()
        thread.thread.join()
    thread.result()


class OnlineService:
    """What `open_service` gives."""

    def __init__(self, thread: _Thread) -> None:
        self._thread = thread

    @property
    def version(self) -> int:
        """Of the weights that the replicas have; 0 are the conf's own."""
        return self._thread.service.version

    async def pull(self, groups: int) -> Batch:
        """The next `groups` whole groups, those of the oldest weights first; waits for them.

        Acknowledges the batches before it. Cancelling it loses nothing. Raises RolloutError when the run has ended.
        """
        return await self._thread.wrapped(self._thread.service.pull(groups))

    async def publish(self, folder: str | Path) -> int:
        """Has every replica take the weights in a folder of safetensors; the version they have then.

        Generation is paused, not thrown away: an episode may span versions, and each token says which. The folder must
        stay until the next publish returns: a replica that starts late reads it. Acknowledges the batches before it.
        Raises UserError in one line for weights that do not fit the model, RolloutError when a replica cannot take
        them; either way the old weights go on serving.
        """
        return await self._thread.wrapped(self._thread.service.publish(folder))

    async def done(self, batch: Batch | None = None) -> None:
        """Acknowledges a batch and those before it; without one, all that were pulled."""
        await self._thread.wrapped(self._thread.service.done(batch))

    def report(self) -> dict[str, Any]:
        """Groups by what became of them, how old the last batch was in versions, how long pulls have waited."""
        return self._thread.service.report()


class SyncService:
    """What `open_service_sync` gives: an OnlineService whose methods block."""

    def __init__(self, thread: _Thread) -> None:
        self._thread = thread

    @property
    def version(self) -> int:
        """See OnlineService."""
        return self._thread.service.version

    def pull(self, groups: int) -> Batch:
        """See OnlineService."""
        return self._thread.submitted(self._thread.service.pull(groups)).result()

    def publish(self, folder: str | Path) -> int:
        """See OnlineService."""
        return self._thread.submitted(self._thread.service.publish(folder)).result()

    def done(self, batch: Batch | None = None) -> None:
        """See OnlineService."""
        self._thread.submitted(self._thread.service.done(batch)).result()

    def report(self) -> dict[str, Any]:
        """See OnlineService."""
        return self._thread.service.report()


def _service(conf: str | Path | JobConfig, overrides: Sequence[str], terms: Terms) -> Service:
    config = conf if isinstance(conf, JobConfig) else load(find_conf(str(conf)), overrides)
    return Service(config, terms)


class _Thread:
    """A service on a loop and a thread of its own."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.ready: Future[None] = Future()
        self.ended: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None]
        self.thread = threading.Thread(target=self._run, name="rollout service", daemon=True)
        self.thread.start()

    def submitted(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs it over there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def wrapped(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it over there, for a caller in a loop."""
        return await asyncio.wrap_future(self.submitted(coroutine))

    def stop(self) -> None:
        """Ends the service in order; at once while it is still starting."""
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._stopping.set()
        if not self.ready.done():
            self._task.cancel()
        elif not self._task.done():
            self.service.stop()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())
        self.ended.set_result(None)

    async def _main(self) -> None:
        """Until it is stopped: who asks a service that has ended is told so."""
        self._task = asyncio.create_task(self.service.run(lambda: self.ready.set_result(None)))
        await asyncio.wait([self._task])
        if not self.ready.done():
            error = asyncio.CancelledError() if self._task.cancelled() else self._task.exception()
            self.ready.set_exception(error or RolloutError("the service has ended before it began"))
        await self._stopping.wait()

    def result(self) -> None:
        """Raises what ended the service, when it ended by itself."""
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error
