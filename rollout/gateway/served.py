"""A model as a gateway serves it: what samples, what renders, what reads, and what clients may know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from rollout.gateway.scribe import Anew
from rollout.parsing import (
    CallEnded,
    CallStarted,
    ContentDelta,
    Event,
    Format,
    Keep,
    Machine,
    ReasoningDelta,
)
from rollout.parsing.events import ArgumentsDelta
from rollout.protocols import Policy
from rollout.segments import Parser
from rollout.serving.catalog import ModelProfile
from rollout.serving.prefixes import Rules
from rollout.template import ChatTemplate
from rollout.turn import Sampling, Segment, ToolSpec

_OPENING = "<think>"
_TAIL = 16
"""Tokens at the end of a prompt that may spell what opens reasoning."""


@dataclass(frozen=True)
class Served:
    """One model. Its name and its reach in tokens are those of the profile."""

    policy: Policy
    """Takes token ids; a StreamingPolicy is listened to."""
    template: ChatTemplate
    reading: Format | Parser
    """How its text is read; a Parser reads a completion when it has ended."""
    profile: ModelProfile
    sampling: Sampling = field(default_factory=Sampling)
    """How it samples where a request says nothing."""
    rules: Rules = field(default_factory=Rules)
    """What is taken out of prompts."""
    keep: Keep = "keep"
    """Which reasoning of earlier turns a prompt shows."""
    created: int = 0
    """Unix seconds."""
    vocabulary: int | None = None
    """Token ids the model has; None when nobody knows."""

    @cached_property
    def anew(self) -> Anew:
        """The scribe of calls that belong to no episode."""
        return Anew(self.template)

    @property
    def format_name(self) -> str:
        """The name of its format; empty where a Parser reads."""
        return self.reading.name if isinstance(self.reading, Format) else ""

    def opens_reasoning(self, ids: Sequence[int]) -> bool:
        """Whether what follows these ids stands within reasoning."""
        return self.template.decode_all(ids[-_TAIL:]).rstrip().endswith(_OPENING)

    def machine(self, turn: int, tools: Sequence[ToolSpec], in_reasoning: bool) -> Machine:
        """What reads one completion; `turn` makes the ids of its calls."""
        if isinstance(self.reading, Format):
            return self.reading.open(turn, tools, in_reasoning)
        return _AtTheEnd(self.reading, turn, tools)


class _AtTheEnd:
    """A Machine of a Parser: it tells everything when the completion is over."""

    def __init__(self, parser: Parser, turn: int, tools: Sequence[ToolSpec]) -> None:
        self._parser, self._turn, self._tools = parser, turn, tools
        self._pieces: list[str] = []

    def feed(self, text: str) -> tuple[Event, ...]:
        """See Machine."""
        self._pieces.append(text)
        return ()

    def finish(self) -> tuple[Event, ...]:
        """See Machine."""
        segments = self._parser("".join(self._pieces), self._turn, tools=self._tools)
        return tuple(event for part, segment in enumerate(segments) for event in _events(part, segment))


def _events(part: int, segment: Segment) -> tuple[Event, ...]:
    call = segment.call
    if call is None:
        return ((ReasoningDelta if segment.kind == "reasoning" else ContentDelta)(part, segment.text),)
    if not call.name:
        return (CallEnded(part, call.id, "", "", segment.text, "it cannot be read"),)
    return (
        CallStarted(part, call.id, call.name),
        ArgumentsDelta(part, call.id, call.arguments),
        CallEnded(part, call.id, call.name, call.arguments, segment.text),
    )
