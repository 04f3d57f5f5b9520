"""Stored responses that all replicas of a gateway share: an actor that keeps them, and the store over it.

An actor and no file that all of them open: replicas may be on several nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from rollout.errors import boundary
from rollout.gateway.section import ResponsesConfig
from rollout.trajectory import FailureKind
from rollout.wire.stored import Kept, MemoryResponses, ResponseStore, SqliteResponses

SECONDS = 10.0
"""What the keeper may take to answer."""
_AT_ONCE = 1000
_WHERE = "stored responses"


class ResponsesKeeper:
    """Keeps responses for all replicas, and what they say of themselves when they end."""

    def __init__(self, config: ResponsesConfig) -> None:
        seconds = config.keep_hours * 3600
        self._store: ResponseStore = (
            MemoryResponses(seconds) if config.path is None else SqliteResponses(Path(config.path), seconds)
        )
        self._told: list[dict[str, Any]] = []

    async def put(self, kept: Kept) -> None:
        """See ResponseStore."""
        await self._store.put(kept)

    async def chain(self, id: str) -> tuple[Kept, ...]:
        """See ResponseStore."""
        return await self._store.chain(id)

    async def delete(self, id: str) -> bool:
        """See ResponseStore."""
        return await self._store.delete(id)

    async def ended(self, told: dict[str, Any]) -> None:
        """A replica has ended and did this."""
        self._told.append(told)

    async def close(self) -> list[dict[str, Any]]:
        """Closes its file. What the replicas did that have ended."""
        if isinstance(self._store, SqliteResponses):
            await self._store.close()
        return self._told


def new_keeper(config: ResponsesConfig, node: str) -> Any:
    """A keeper on that node, whose file it opens."""
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": _AT_ONCE,
        "label_selector": {"ray.io/node-id": node},
    }
    return ray.remote(ResponsesKeeper).options(**options).remote(config)


class SharedResponses:
    """The ResponseStore behind a keeper. All of it raises BoundaryError when the keeper does not answer."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    async def put(self, kept: Kept) -> None:
        """See ResponseStore."""
        async with boundary(FailureKind.INTERNAL, _WHERE, SECONDS):
            await self._keeper.put.remote(kept)

    async def chain(self, id: str) -> tuple[Kept, ...]:
        """See ResponseStore."""
        async with boundary(FailureKind.INTERNAL, _WHERE, SECONDS):
            return await self._keeper.chain.remote(id)

    async def delete(self, id: str) -> bool:
        """See ResponseStore."""
        async with boundary(FailureKind.INTERNAL, _WHERE, SECONDS):
            return await self._keeper.delete.remote(id)
