"""What a parser tells while a completion comes in, and the numbering of its parts.

A completion is a sequence of parts: reasoning, content, tool calls. Every event names its part, from 0. Parts are
separate texts: something stood between them (a marker), so what is joined across them may not be what was sampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rollout.turn import Segment, ToolCall

Said = Literal["reasoning", "content"]


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of a part that is reasoning. The deltas of a part add up to its text, without blanks at its edges."""

    part: int
    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of a part that is content; as with reasoning."""

    part: int
    text: str


@dataclass(frozen=True, slots=True)
class WasReasoning:
    """A part that was told as content is reasoning: what closes reasoning came, and nothing had opened it."""

    part: int


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A call whose name is known. Not told for one that ends before its name was read."""

    part: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of a call's arguments as JSON text. The deltas of a call without an error add up to its arguments."""

    part: int
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call, whole. `text` is its body as sampled; `error` says why it cannot be read, and then it must not run."""

    part: int
    id: str
    name: str
    arguments: str
    text: str
    error: str | None = None


Event = ReasoningDelta | ContentDelta | WasReasoning | CallStarted | ArgumentsDelta | CallEnded


class Parts:
    """Numbers parts and calls, takes the blanks off the edges of what is said, and collects events."""

    __slots__ = ("_calls", "_events", "_held", "_id", "_kind", "_name", "_number", "_pieces", "_said", "_turn")

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._events: list[Event] = []
        self._number = 0
        """Of the part that is open, or comes next."""
        self._kind: Said = "content"
        self._said = False
        """The open part has a text."""
        self._held: str = ""
        """Blanks that belong to the part only if something follows them."""
        self._calls = 0
        self._id = ""
        self._name = ""
        self._pieces: list[str] = []

    @property
    def named(self) -> bool:
        """The open call has told its name."""
        return bool(self._name)

    @property
    def arguments(self) -> str:
        """Of the open call, as far as they were told."""
        return "".join(self._pieces)

    def take(self) -> tuple[Event, ...]:
        """Events since the last time."""
        events, self._events = tuple(self._events), []
        return events

    def say(self, kind: Said, text: str) -> None:
        """More of what is said. A part has one kind: `cut` before another."""
        text = self._held + text if self._said else text.lstrip()
        told = text.rstrip()
        self._held = text[len(told) :]
        if told:
            self._kind, self._said = kind, True
            self._events.append((ReasoningDelta if kind == "reasoning" else ContentDelta)(self._number, told))

    def cut(self) -> None:
        """Ends what is said, if anything is."""
        if self._said:
            self._number += 1
            self._said = False
        self._held = ""

    def reconsider(self) -> None:
        """What is said in the open part is reasoning."""
        if self._said and self._kind == "content":
            self._kind = "reasoning"
            self._events.append(WasReasoning(self._number))

    def begin_call(self, name: str = "") -> None:
        """A call begins, and ends what was said."""
        self.cut()
        self._id, self._name, self._pieces = f"call_{self._turn}_{self._calls}", "", []
        self._calls += 1
        if name:
            self.name_call(name)

    def name_call(self, name: str) -> None:
        """The open call's name, once."""
        self._name = name
        self._events.append(CallStarted(self._number, self._id, name))

    def add_arguments(self, text: str) -> None:
        """More of the open call's arguments; its name is known."""
        if text:
            self._pieces.append(text)
            self._events.append(ArgumentsDelta(self._number, self._id, text))

    def end_call(self, text: str, error: str | None = None) -> None:
        """The open call is whole: its body as sampled, and what is wrong with it."""
        self._events.append(CallEnded(self._number, self._id, self._name, self.arguments, text.strip(), error))
        self._number += 1


def as_segments(events: Iterable[Event]) -> tuple[Segment, ...]:
    """The parts that events tell of, in order. A call with an error has no name and keeps what was sampled."""
    parts: dict[int, Segment] = {}
    for event in events:
        if isinstance(event, ReasoningDelta | ContentDelta):
            before = parts.get(event.part)
            kind = "reasoning" if isinstance(event, ReasoningDelta) else "content"
            parts[event.part] = Segment(kind, event.text if before is None else before.text + event.text)
        elif isinstance(event, CallEnded):
            name, arguments = ("", event.text) if event.error else (event.name, event.arguments)
            parts[event.part] = Segment("tool_call", event.text, ToolCall(event.id, name, arguments))
        elif isinstance(event, WasReasoning):
            parts[event.part] = Segment("reasoning", parts[event.part].text)
    return tuple(parts.values())
