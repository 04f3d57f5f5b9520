"""A resource's sessions: seeded, used, closed, or closed for whoever forgot them.

`SessionTable` is what a resource host runs, and what tests and small jobs use directly: it knows neither Ray nor
processes. The clock is passed in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from rollout.deadlines import deadline
from rollout.errors import NotRestored, ResourceDown, ToolError, Unavailable, describe, nearest
from rollout.protocols import Seeded
from rollout.resource import BoundTool, Resource, as_score
from rollout.tool_answer import tool_answer
from rollout.trajectory import Message, Score, Task, ToolCall, ToolResult, ToolSpec, Transcript

SNAPSHOT_SECONDS = 2.0
"""What a resource may take to give a snapshot: less than a call's answer may be late."""

CLOSE_SECONDS = 60.0
"""What closing a session that nobody waits for may take: one that hangs must not keep later sweeps from the others."""
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    state: Any
    expires: float
    running: int = 0
    """Calls, now."""
    begun: int = 0
    """Calls, ever."""


@dataclass(slots=True)
class SessionTable:
    """Sessions of one resource by id."""

    resource: Resource
    clock: Callable[[], float] = time.monotonic
    max_sessions: int | None = None
    """Sessions it may hold; the resource's own number when not given."""
    opened: int = 0
    closed: int = 0
    expired: int = 0
    _seeding: int = 0
    _open: dict[str, _Open] = field(default_factory=dict[str, _Open])
    _tools: dict[str, BoundTool] = field(default_factory=dict[str, BoundTool])

    def __post_init__(self) -> None:
        self._tools = self.resource.bound_tools()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools as the policy is told of them."""
        return tuple(bound.spec for bound in self._tools.values())

    async def seed(
        self, task: Task, seed: int, seconds: float, snapshot: bytes | None = None
    ) -> tuple[str, tuple[Message, ...]]:
        """Opens a session that is closed after `seconds` at the latest; its id and the opening messages.

        With a snapshot the session goes on from it. Raises Unavailable when the host holds as many as it may,
        NotRestored when the resource cannot make a session from the snapshot.
        """
        if len(self._open) + self._seeding >= (self.max_sessions or self.resource.max_sessions):
            raise Unavailable(f"{self.resource.name} holds {len(self._open)} sessions, its most")
        self._seeding += 1
        try:
            if snapshot is None:
                state = await self.resource.seed_session(task, seed)
            else:
                state = await self._restored(task, seed, snapshot)
        finally:
            self._seeding -= 1
        session_id = uuid4().hex
        self._open[session_id] = _Open(state, self.clock() + seconds)
        self.opened += 1
        try:
            return session_id, self.resource.opening(state, task)
        except BaseException:  # nobody will ever hear of this session
            await self.close(session_id)
            raise

    async def _restored(self, task: Task, seed: int, snapshot: bytes) -> Any:
        try:
            return await self.resource.restore(task, seed, snapshot)
        except ResourceDown:
            raise
        except Exception as error:  # the resource's bug costs the turns, not the episode: it starts again
            raise NotRestored(f"{self.resource.name}: {describe(error)}") from error

    async def answer(self, session_id: str, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        """The same as `call`, and the session's state after it, of resources that give snapshots.

        There is none while another call of the session runs: that one brings it.
        """
        if self.resource.restores != "snapshot":
            return await self.call(session_id, call, seconds), None
        self._state(session_id)
        entry = self._open[session_id]
        entry.running += 1
        entry.begun += 1
        try:
            result = await self.call(session_id, call, seconds)
        finally:
            entry.running -= 1
        return result, None if entry.running else await self._snapshot(entry)

    async def _snapshot(self, entry: _Open) -> bytes | None:
        begun = entry.begun
        try:
            async with deadline(SNAPSHOT_SECONDS):
                snapshot = await self.resource.snapshot(entry.state)
        except Exception as error:  # the resource's bug costs the turn's safety, not the turn
            _LOG.warning("%s gave no snapshot: %s", self.resource.name, describe(error))
            return None
        return snapshot if entry.begun == begun else None

    async def call(self, session_id: str, call: ToolCall, seconds: float) -> ToolResult:
        """Runs one tool under its deadline. Everything but ResourceDown becomes a result the policy reads."""
        return await tool_answer(self._run(self._state(session_id), call, seconds), call.name, seconds, self.clock)

    async def _run(self, state: Any, call: ToolCall, seconds: float) -> Any:
        bound = self._tools.get(call.name)
        if bound is None:
            raise ToolError(f"there is no tool '{call.name}'{nearest(call.name, self._tools)}")
        async with deadline(seconds):
            return await bound.function(state, **bound.parse(call.arguments))

    async def verify(self, session_id: str, transcript: Transcript, seconds: float) -> Score:
        """Judges the session's episode within `seconds`; raises what the verifier raises."""
        async with deadline(seconds):
            return as_score(await self.resource.verify(self._state(session_id), transcript))

    async def close(self, session_id: str) -> None:
        """Closes a session; unknown ids are closed already."""
        if (entry := self._open.pop(session_id, None)) is not None:
            self.closed += 1
            await self.resource.close(entry.state)

    async def sweep(self) -> int:
        """Closes the sessions whose time is up; how many there were. One that fails to close stops no other."""
        now = self.clock()
        late = [session_id for session_id, entry in self._open.items() if entry.expires <= now]
        self.expired += len(late)
        await self._close(late)
        return len(late)

    async def close_all(self) -> int:
        """Closes whatever is open; how many sessions there were."""
        left = list(self._open)
        await self._close(left)
        return len(left)

    async def _close(self, session_ids: list[str]) -> None:
        closes = (asyncio.wait_for(self.close(session_id), CLOSE_SECONDS) for session_id in session_ids)
        ends = await asyncio.gather(*closes, return_exceptions=True)
        for session_id, end in zip(session_ids, ends, strict=True):
            if isinstance(end, Exception):
                _LOG.warning("%s: session %s did not close: %s", self.resource.name, session_id, describe(end))

    def _state(self, session_id: str) -> Any:
        if session_id not in self._open:
            raise ResourceDown(f"{self.resource.name} has no session {session_id}: closed or expired")
        return self._open[session_id].state


@dataclass(frozen=True, slots=True)
class LocalSession:
    """A session in this process."""

    table: SessionTable
    session_id: str

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        return await self.table.answer(self.session_id, call, seconds)

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        return await self.table.verify(self.session_id, transcript, seconds)

    async def close(self) -> None:
        await self.table.close(self.session_id)


@dataclass(frozen=True, slots=True)
class LocalSessions:
    """A resource in this process."""

    table: SessionTable

    async def seed_session(self, task: Task, seed: int, seconds: float) -> Seeded:
        return await self._open(task, seed, seconds, None)

    async def restore_session(self, task: Task, seed: int, snapshot: bytes, seconds: float) -> Seeded:
        return await self._open(task, seed, seconds, snapshot)

    async def _open(self, task: Task, seed: int, seconds: float, snapshot: bytes | None) -> Seeded:
        resource = self.table.resource
        session_id, messages = await self.table.seed(task, seed, seconds, snapshot)
        session = LocalSession(self.table, session_id)
        return Seeded(session, messages, self.table.specs, resource.text_tool, resource.instructions)
