"""Tool calls that begin while the policy still samples what comes behind them.

A call begins as soon as it is whole; when the turn acts, it finds the call under way and waits for what is left of it.
All that decides whether a call may run, and what becomes of its result, stays where it was. A completion that is cut
keeps the results of calls that had begun: they did happen. What began and belongs to no turn in the end (the model call
failed, or the episode was over before it ended) is cancelled and told as an event.

NVIDIA Dynamo calls it streaming tool dispatch (`--enable-streaming-tool-dispatch`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from rollout.protocols import Session
from rollout.streaming import CallComplete, Hears, StreamEvent
from rollout.tool_use import TRANSPORT_SECONDS
from rollout.trajectory import Event, Score, ToolCall, ToolResult, Transcript

Answer = tuple[ToolResult, bytes | None]


@dataclass(frozen=True, slots=True)
class _Begun:
    call: ToolCall
    turn: int
    task: asyncio.Task[Answer]


@dataclass(slots=True)
class EarlySession:
    """A session whose calls may have begun before they are made."""

    inner: Session
    seconds: Callable[[str], float]
    """What a call of a tool may take."""
    allowed: Container[str] = ()
    """Tools whose calls begin early."""
    _turn: int = 0
    """The one that is being sampled."""
    _context: Context = field(default_factory=copy_context)
    """That of the episode: who tells what was sampled may be at work for many."""
    _begun: dict[str, _Begun] = field(default_factory=dict[str, _Begun])
    """By the id of the call; those that no turn has asked for yet."""
    _strays: list[Event] = field(default_factory=list[Event])

    def listens(self, turn: int) -> Hears:
        """What is to hear of turn `turn`, which is about to be sampled."""
        self._turn, self._context = turn, copy_context()
        return self._hear

    def _hear(self, event: StreamEvent) -> None:
        """Begins a call behind which the policy may say more."""
        if not isinstance(event, CallComplete) or not event.sampling or event.call.name not in self.allowed:
            return
        call = event.call
        if call.id not in self._begun:  # an endpoint may give one id twice
            task = asyncio.create_task(self._run(call), context=self._context.copy())
            self._begun[call.id] = _Begun(call, self._turn, task)

    def under_way(self, calls: Sequence[ToolCall]) -> frozenset[str]:
        """Ids of those of `calls` that have begun."""
        return frozenset(call.id for call in calls if (one := self._begun.get(call.id)) and one.call == call)

    async def call(self, call: ToolCall, seconds: float) -> Answer:
        """See Session. Cancelling it cancels the call, whenever that began."""
        begun = self._begun.get(call.id)
        if begun is None or begun.call != call:
            return await self.inner.call(call, seconds)
        del self._begun[call.id]
        return await begun.task

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        """See Session."""
        return await self.inner.verify(transcript, seconds)

    async def close(self) -> None:
        """See Session."""
        await self.inner.close()

    async def settle(self) -> tuple[Event, ...]:
        """Cancels what no turn has asked for. All that ever was so, as events for the row."""
        strays, self._begun = list(self._begun.values()), {}
        for one in strays:
            one.task.cancel()
        answers = await asyncio.gather(*(one.task for one in strays), return_exceptions=True)
        for one, answer in zip(strays, answers, strict=True):
            result = None if isinstance(answer, BaseException) else answer[0].content
            detail = {"id": one.call.id, "arguments": one.call.arguments, "result": result}
            self._strays.append(Event(one.turn, "early_call", one.call.name, detail))
        return tuple(self._strays)

    async def _run(self, call: ToolCall) -> Answer:
        seconds = self.seconds(call.name)
        async with asyncio.timeout(seconds + TRANSPORT_SECONDS):
            return await self.inner.call(call, seconds)
