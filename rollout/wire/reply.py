"""One reply, whichever API it goes out through: events in the order sampled.

    Begun, the events of the completion's parts, Finished

A completion is a sequence of parts: reasoning, content, calls. Every event names its part, from 0, and one part is over
before the next begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rollout.parsing.events import ArgumentsDelta, CallEnded, CallStarted, ContentDelta, ReasoningDelta, WasReasoning
from rollout.turn import FinishReason, Message, ToolCall
from rollout.wire.asked import Asked
from rollout.wire.history import Draft


@dataclass(frozen=True, slots=True)
class Begun:
    """The prompt is known. `cached_tokens` of it were read from the cache, as far as that is known by now."""

    input_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens. `cached` are part of `input`, `reasoning` of `output`."""

    input: int
    cached: int = 0
    output: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing follows. `stop_sequence` is the one that was met, where one was."""

    reason: FinishReason
    usage: Usage
    stop_sequence: str | None = None

    @property
    def cut(self) -> bool:
        """The policy had not come to its end."""
        return self.reason is not FinishReason.STOP


Event = Begun | ReasoningDelta | ContentDelta | WasReasoning | CallStarted | ArgumentsDelta | CallEnded | Finished


class OneCall:
    """Lets through a reply's first call and nothing after it but the end: for clients that take one at a time."""

    __slots__ = ("_parallel", "full")

    def __init__(self, parallel: bool) -> None:
        self._parallel = parallel
        self.full = False
        """Nothing that the model may still say will be shown."""

    def passes(self, event: Event) -> bool:
        """Whether the client gets to see it."""
        if self.full:
            return isinstance(event, Finished)
        if not self._parallel and isinstance(event, CallEnded) and event.error is None:
            self.full = True
        return True


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a reply. A call that the reply's end cut off has `cut` set, and its arguments so far."""

    kind: Literal["reasoning", "content", "call"]
    text: str
    call: ToolCall | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Whole:
    """A reply that is over."""

    parts: tuple[Part, ...]
    finished: Finished

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls that can be made."""
        return tuple(part.call for part in self.parts if part.call is not None and not part.cut)

    @property
    def message(self) -> Message:
        """The reply as it stands in a conversation: without a call that was cut."""
        draft = Draft()
        for part in self.parts:
            if part.kind == "reasoning":
                draft.reason(part.text)
            elif part.kind == "content":
                draft.say(part.text)
            elif part.call is not None and not part.cut:
                draft.call(part.call.id, part.call.name, part.call.arguments)
        return draft.message()


@dataclass(slots=True)
class _Open:
    kind: Literal["reasoning", "content", "call"]
    texts: list[str] = field(default_factory=list[str])
    started: CallStarted | None = None
    ended: CallEnded | None = None


class Fold:
    """Puts events together again."""

    def __init__(self) -> None:
        self._parts: dict[int, _Open] = {}
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Takes an event in."""
        match event:
            case ReasoningDelta(part, text):
                self._part(part, "reasoning").texts.append(text)
            case ContentDelta(part, text):
                self._part(part, "content").texts.append(text)
            case WasReasoning(part):
                self._part(part, "content").kind = "reasoning"
            case CallStarted(part):
                self._part(part, "call").started = event
            case ArgumentsDelta(part, _, text):
                self._part(part, "call").texts.append(text)
            case CallEnded(part):
                self._part(part, "call").ended = event
            case Finished():
                self._finished = event
            case Begun():
                pass

    def _part(self, number: int, kind: Literal["reasoning", "content", "call"]) -> _Open:
        if (part := self._parts.get(number)) is None:
            part = self._parts[number] = _Open(kind)
        return part

    def whole(self) -> Whole:
        """The reply. Raises ValueError while it has no end."""
        if self._finished is None:
            raise ValueError("the reply has no end")
        last = max(self._parts, default=-1)
        found = (_part(self._parts[at], self._finished.cut and at == last) for at in sorted(self._parts))
        return Whole(tuple(part for part in found if part.text or part.call is not None), self._finished)


def _part(part: _Open, cut: bool) -> Part:
    """A part that is over; a call that cannot be read is what was sampled, unless it was cut off."""
    text, ended = "".join(part.texts), part.ended
    if part.kind != "call":
        return Part(part.kind, text)
    if ended is not None and ended.error is None:
        return Part("call", "", ToolCall(ended.id, ended.name, ended.arguments))
    if ended is not None and not cut:
        return Part("content", ended.text)
    if part.started is None:
        return Part("call", "")
    return Part("call", "", ToolCall(part.started.id, part.started.name, text), cut=True)


def collected(asked: Asked, events: Iterable[Event]) -> Whole:
    """The reply as the client of this request gets to see it. Raises ValueError when it has no end."""
    one, fold = OneCall(asked.parallel_calls), Fold()
    for event in events:
        if one.passes(event):
            fold.add(event)
    return fold.whole()
