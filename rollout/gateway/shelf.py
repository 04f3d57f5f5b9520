"""Stored responses as requests see them: each episode has its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from rollout.errors import RolloutError
from rollout.turn import Message
from rollout.wire import responses
from rollout.wire.asked import Asked
from rollout.wire.errors import Kind, Refused
from rollout.wire.reply import Whole
from rollout.wire.stored import Kept, ResponseStore, conversation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shelf:
    """A part of a store. All of it raises Refused when the store does not answer."""

    store: ResponseStore
    scope: str
    """Stands before the ids of what is kept here."""

    async def continued(self, asked: Asked) -> Asked:
        """The request behind what it goes on from. Raises Refused where that is not kept."""
        if asked.previous is None:
            return asked
        return responses.continued(asked, conversation(await self._chain(asked.previous)))

    async def keep(self, asked: Asked, new: tuple[Message, ...], reply: Whole, body: dict[str, Any]) -> None:
        """Keeps a response, where it is to be kept; `new` is what the request added to the conversation."""
        if asked.store:
            previous = None if asked.previous is None else self.scope + asked.previous
            kept = Kept(self.scope + body["id"], previous, (*new, reply.message), body)
            await _answered(self.store.put(kept))

    async def find(self, id: str) -> dict[str, Any]:
        """The body of a response. Raises Refused for one that is not kept."""
        return (await self._chain(id))[-1].body

    async def forget(self, id: str) -> None:
        """Raises Refused for a response that is not kept."""
        if not await _answered(self.store.delete(self.scope + id)):
            raise responses.no_such_response(id)

    async def _chain(self, id: str) -> tuple[Kept, ...]:
        if not (chain := await _answered(self.store.chain(self.scope + id))):
            raise responses.no_such_response(id)
        return chain


async def _answered(asked: Awaitable[T]) -> T:
    try:
        return await asked
    except (TimeoutError, RolloutError, sqlite3.Error) as error:
        raise Refused(Kind.OVERLOADED, "stored responses cannot be reached now", retry_after=1.0) from error
