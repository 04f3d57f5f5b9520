"""Which weights the replicas of a model are to have: they ask for news, nobody has to know who and where they are.

    service --announce--> Weights <--newer (held until there is news)-- Follower in each replica -> engine.update

A replica that starts late asks before it serves. What is announced is said again every few seconds, so an actor that
was restarted knows it as well. Editions count announcements: one goes up also where a version goes back to the one
before, because a replica could not take the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rollout.errors import RolloutError, describe

HOLD_SECONDS = 5.0
"""How long a question for news is held."""
ASK_SECONDS = 30.0
"""What an answer may take beyond that."""
PAUSE_SECONDS = 1.0
"""Before a question that was not answered is asked again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Edition:
    """One announcement."""

    number: int
    version: int
    folder: str | None
    """Where the weights are; None for the job's own."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a replica says of the newest edition it has heard of."""

    number: int
    error: str | None = None
    """Why it goes on with the weights of before."""


class Weights:
    """The newest edition and who has it. Plain asyncio: `new_weights` makes it an actor."""

    def __init__(self, first: Edition) -> None:
        self._newest = first
        self._news = asyncio.Event()
        self._taken: dict[str, Taken] = {}

    async def announce(self, edition: Edition) -> dict[str, Taken]:
        """Makes it the newest, when it is; what the replicas have said so far, by their names."""
        if edition.number > self._newest.number:
            self._newest = edition
            self._news.set()
            self._news = asyncio.Event()
        return self._taken

    async def newer(self, replica: str, taken: Taken, hold: float) -> Edition:
        """The newest edition, as soon as it is another than the replica has, after `hold` seconds in any case."""
        self._taken[replica] = taken
        if self._newest.number <= taken.number:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(hold):
                    await self._news.wait()
        return self._newest


def new_weights(first: Edition) -> Any:
    """A `Weights` that is starting. Each replica holds a call of it."""
    return ray.remote(Weights).options(num_cpus=0, max_restarts=-1, max_concurrency=1000).remote(first)


class Follower:
    """A replica's side: has its engine take what is announced."""

    def __init__(self, weights: Any, replica: str, update: Callable[[int, str | None], Awaitable[None]]) -> None:
        """`update` takes version and folder and raises RolloutError when it cannot; see `Engine.update`."""
        self._weights = weights
        self._replica = replica
        self._update = update
        self._taken = Taken(-1)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Takes the newest weights, and from then on each edition. Raises RolloutError when it cannot take them."""
        if self._task is not None:
            return
        edition = await self._newer(HOLD_SECONDS)
        await self._update(edition.version, edition.folder)
        self._taken = Taken(edition.number)
        self._task = asyncio.create_task(self._follow())

    def stop(self) -> None:
        """Takes no more."""
        if self._task is not None:
            self._task.cancel()

    async def _follow(self) -> None:
        while True:
            try:
                edition = await self._newer(HOLD_SECONDS)
            except (TimeoutError, RayError) as error:
                log.debug("no news of the weights: %s", describe(error))
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if edition.number > self._taken.number:
                await self._take(edition)

    async def _take(self, edition: Edition) -> None:
        began = time.monotonic()
        try:
            await self._update(edition.version, edition.folder)
        except RolloutError as error:
            log.warning("version %d of the weights cannot be used: %s", edition.version, error)
            self._taken = Taken(edition.number, str(error))
        else:
            log.info("version %d of the weights after %.2f s", edition.version, time.monotonic() - began)
            self._taken = Taken(edition.number)

    async def _newer(self, hold: float) -> Edition:
        return await asyncio.wait_for(self._weights.newer.remote(self._replica, self._taken, hold), hold + ASK_SECONDS)
