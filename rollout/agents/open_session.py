"""A session that somebody is at: what was said in it before, its state, and where what comes is written down.

A person's own functions (tools, hooks, guardrails, instructions) find it by `at_hand()` and change `state` as any dict;
what has changed is written down behind each turn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from rollout.agents.conversations import (
    ConversationLog,
    Event,
    TurnSummary,
    checked_json,
    opened,
    said,
    state_removed,
    state_set,
    turn_ended,
)
from rollout.agents.handoffs import last
from rollout.errors import BoundaryError, UserError, boundary
from rollout.trajectory import Failure, FailureKind, Json, Message

BROKEN_OFF = "error: broken off before its result was kept; whether it ran is not known"
"""What the policy reads of a call whose result nobody wrote down."""
_SILENT = ("system", "developer")
"""Roles of messages that are no part of a conversation: whoever goes on with it has instructions of its own."""
_GRACE = 5.0
"""What may pass beyond a store's own deadline."""


@dataclass(slots=True)
class OpenSession:
    """See the head of this file. Without a `log` it ends with whoever is at it."""

    id: str
    app: str
    user: str
    history: tuple[Message, ...] = ()
    """What was said before, as far as it is taken up."""
    state: dict[str, Json] = field(default_factory=dict[str, Json])
    log: ConversationLog | None = None
    number: int = 0
    """Of the next event."""
    waits: bool = False
    """What was said last has no answer yet."""
    seconds: float = 10.0
    """What writing an event may take."""
    clock: Callable[[], float] = time.time
    _kept: dict[str, str] = field(default_factory=dict[str, str])
    """The state as it was written down last, as JSON."""

    def __post_init__(self) -> None:
        self._kept = {key: _text(value) for key, value in self.state.items()}

    async def hear(self, messages: Iterable[Message]) -> None:
        """Writes messages of either side down. Raises BoundaryError of kind agent when the store does not take one,
        also because the session has gone on elsewhere."""
        for message in messages:
            if message["role"] not in _SILENT:
                await self._add(lambda at, message=message: said(message, at))

    async def keep_state(self) -> dict[str, Mapping[str, Json]]:
        """Writes down what of the state has changed; by key {value}, or nothing for one that is gone.

        Raises BoundaryError of kind agent for a state that is no JSON, and as `hear` does.
        """
        try:
            now = {key: _text(checked_json(value, f"session.state.{key}")) for key, value in self.state.items()}
        except UserError as error:
            raise BoundaryError(Failure(FailureKind.AGENT, f"session {self.id}", str(error))) from error
        changed: dict[str, Mapping[str, Json]] = {}
        for key, text in now.items():
            if self._kept.get(key) != text:
                changed[key] = {"value": json.loads(text)}
                await self._add(lambda at, key=key, value=changed[key]["value"]: state_set(key, value, at))
        for key in [key for key in self._kept if key not in now]:
            changed[key] = {}
            await self._add(lambda at, key=key: state_removed(key, at))
        self._kept = now
        return changed

    async def end_turn(self, summary: TurnSummary) -> None:
        """Writes down what a turn came to. Raises as `hear` does."""
        await self._add(lambda at: turn_ended(summary, at))

    async def copied(self, id: str, log: ConversationLog | None) -> OpenSession:
        """One of another id that begins with what this one has; it is written down whole where there is a log.

        Raises as `hear` does.
        """
        copy = OpenSession(id, self.app, self.user, self.history, {}, log, seconds=self.seconds, clock=self.clock)
        await copy.hear(self.history)
        copy.state.update(json.loads(_text(self.state)))
        await copy.keep_state()
        return copy

    async def _add(self, event: Callable[[float], Event]) -> None:
        if self.log is None:
            return
        async with boundary(FailureKind.AGENT, f"session {self.id}", 2 * self.seconds + _GRACE):
            if self.number == 0:
                await self.log.append(self.id, 0, opened(self.app, self.user, self.clock()))
                self.number = 1
            await self.log.append(self.id, self.number, event(self.clock()))
            self.number += 1


_AT_HAND: ContextVar[OpenSession | None] = ContextVar("session", default=None)


def at_hand() -> OpenSession | None:
    """The session of the episode in which this is called; None where the job has no sessions."""
    return _AT_HAND.get()


@contextmanager
def working_at(session: OpenSession) -> Generator[None]:
    """Functions that are called here find the session."""
    token = _AT_HAND.set(session)
    try:
        yield
    finally:
        _AT_HAND.reset(token)


def taken_up(messages: Sequence[Message], most: int | None) -> tuple[Message, ...]:
    """The last of the messages, `most` of them at most, from something that the user said on, where there is that; a
    call and its results stay together."""
    if most is None:
        return tuple(messages)
    kept = last(messages, most)
    first = next((place for place, message in enumerate(kept) if message["role"] == "user"), 0)
    return tuple(kept[first:])


def broken_off(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Results for calls at the end that have none: of every call the policy reads one."""
    place = next((at for at in reversed(range(len(messages))) if messages[at]["role"] != "tool"), None)
    if place is None:
        return ()
    calls = messages[place].get("tool_calls", [])[len(messages) - place - 1 :]
    return tuple(
        {"role": "tool", "content": BROKEN_OFF, "tool_call_id": call.get("id", ""), "name": call["function"]["name"]}
        for call in calls
    )


def unanswered(messages: Sequence[Message]) -> bool:
    """Whether it is for the policy to speak: the last word is not its own, or was a call."""
    return bool(messages) and (messages[-1]["role"] != "assistant" or bool(messages[-1].get("tool_calls")))


def _text(value: Json) -> str:
    return json.dumps(value, allow_nan=False)
