"""Readers of a completion that is still being sampled: from token ids, and from the deltas of a chat endpoint.

What they tell is what the ledger will record (`rollout.segments`, `rollout.tokens`): the deltas of a stretch put
together are the text of its segment, and a call is told only when it is whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal, Protocol

from rollout import parsing
from rollout.parsing import Machine
from rollout.streaming import (
    CallComplete,
    CallDelta,
    CallStarted,
    Delta,
    ReasoningDelta,
    SegmentDone,
    StreamEvent,
    TextDelta,
)
from rollout.template import ChatTemplate
from rollout.trajectory import Segment, ToolCall, ToolSpec

_REPLACEMENT = "\ufffd"
"""What bytes that are no character yet are decoded to."""


class Detokenizer:
    """Text of ids that come piece by piece; all of it together is a beginning of what the template decodes.

    An id is decoded together with those before it, as its text may depend on them, and held back while it ends within a
    character. Ends of turn are held back until something follows them. (The way of vLLM's detokenizer.)
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._ids: array[int] = array("i")
        self._shown = 0
        """Ids before this one are only there for those behind them."""
        self._told = 0
        """Ids before this one have been told."""

    def feed(self, ids: Sequence[int]) -> str:
        """What `ids` add."""
        self._ids.extend(ids)
        end = len(self._ids)
        while end > self._told and self._ids[end - 1] in self._template.eos_ids:
            end -= 1
        if end <= self._told:
            return ""
        before = self._decode(self._shown, self._told)
        now = self._decode(self._shown, end)
        if len(now) <= len(before) or now.endswith(_REPLACEMENT):
            return ""
        self._shown, self._told = self._told, end
        return now[len(before) :]

    def _decode(self, start: int, end: int) -> str:
        """Ends of turn that something follows stay in the text, as they do where all of it is decoded at once."""
        return self._template.decode_all(self._ids[start:end])


class TokenReader:
    """See Reader, for ids. Without a machine that reads text as it comes it tells everything at the end."""

    def __init__(self, template: ChatTemplate, machine: Machine | None) -> None:
        self._detokenizer = Detokenizer(template)
        self._machine = machine
        self._whole: list[Segment] = []
        """Parts that were told to their end."""
        self._kind: Literal["reasoning", "content"] = "content"
        self._text = ""
        """What was said so far in the part under way."""
        self._called = False
        """The part under way is a call that was told to have begun."""

    def feed(self, delta: Delta) -> Sequence[StreamEvent]:
        """See Reader."""
        if self._machine is None or not (text := self._detokenizer.feed(delta.ids)):
            return ()
        return [event for read in self._machine.feed(text) for event in self._told(read)]

    def finish(self, segments: Sequence[Segment]) -> Sequence[StreamEvent]:
        """See Reader. Where something else was recorded than was told, all from there on is told as it was recorded."""
        same = next(
            (place for place, told in enumerate(self._whole) if place >= len(segments) or segments[place] != told),
            len(self._whole),
        )
        text, called = (self._text, self._called) if same == len(self._whole) else ("", False)
        events: list[StreamEvent] = []
        for place, segment in enumerate(segments[same:], start=same):
            if segment.call is not None:
                events += [*([] if called else [CallStarted(place)]), CallComplete(place, segment.call, False)]
            else:
                rest = segment.text[len(text) :] if segment.text.startswith(text) else ""
                events += [*_said(place, segment.kind, rest), SegmentDone(place, segment)]
            text, called = "", False
        return events

    def _told(self, read: parsing.Event) -> list[StreamEvent]:
        over = self._over() if read.part > len(self._whole) else []
        match read:
            case parsing.ReasoningDelta() | parsing.ContentDelta():
                self._kind = "reasoning" if isinstance(read, parsing.ReasoningDelta) else "content"
                self._text += read.text
                return [*over, *_said(read.part, self._kind, read.text)]
            case parsing.WasReasoning():
                self._kind = "reasoning"
                return over
            case parsing.CallStarted():
                self._called = True
                return [*over, CallStarted(read.part)]
            case parsing.CallEnded():
                [segment] = parsing.as_segments((read,))
                assert segment.call is not None, "a call that ended is one"
                began: list[StreamEvent] = [] if self._called else [CallStarted(read.part)]
                self._whole.append(segment)
                self._called = False
                return [*over, *began, CallComplete(read.part, segment.call)]
            case parsing.ArgumentsDelta():
                return over

    def _over(self) -> list[StreamEvent]:
        """What was said under way is whole."""
        segment = Segment(self._kind, self._text)
        self._whole.append(segment)
        self._text = ""
        return [SegmentDone(len(self._whole) - 1, segment)]


def _said(place: int, kind: str, text: str) -> list[StreamEvent]:
    if not text:
        return []
    return [ReasoningDelta(place, text) if kind == "reasoning" else TextDelta(place, text)]


class MessageReader:
    """See Reader, for endpoints that read their text themselves: reasoning, content and calls come apart.

    A call is whole when the next one begins or the completion ends: what is JSON already may still get longer.
    """

    def __init__(self, turn: int, tools: Sequence[ToolSpec] = ()) -> None:
        self._turn = turn
        self._places: dict[str, int] = {}
        self._told: dict[str, list[str]] = {}
        self._calls: list[ToolCall] = []
        """Those that were told."""
        self._open: list[CallDelta] = []
        """What came of the call that is being written."""
        self._begun = 0

    def feed(self, delta: Delta) -> Sequence[StreamEvent]:
        """See Reader."""
        events = [*self._said("reasoning", delta.reasoning), *self._said("content", delta.content)]
        for part in delta.calls:
            if part.place >= self._begun:
                events += [*self._completed(), CallStarted(self._place(f"call {part.place}"))]
                self._begun, self._open = part.place + 1, []
            self._open.append(part)
        return events

    def finish(self, segments: Sequence[Segment]) -> Sequence[StreamEvent]:
        """See Reader."""
        events: list[StreamEvent] = []
        number = 0
        for segment in segments:
            if segment.call is None:
                so_far = "".join(self._told.get(segment.kind, ()))
                rest = segment.text[len(so_far) :] if segment.text.startswith(so_far) else ""
                events += [*self._said(segment.kind, rest), SegmentDone(self._place(segment.kind), segment)]
                continue
            if number >= self._begun:
                events.append(CallStarted(self._place(f"call {number}")))
            if number >= len(self._calls) or self._calls[number] != segment.call:
                events.append(CallComplete(self._place(f"call {number}"), segment.call, False))
            number += 1
        return events

    def _said(self, kind: str, text: str) -> list[StreamEvent]:
        if not text:
            return []
        self._told.setdefault(kind, []).append(text)
        place = self._place(kind)
        return [ReasoningDelta(place, text) if kind == "reasoning" else TextDelta(place, text)]

    def _completed(self) -> list[StreamEvent]:
        """The call before the one that begins, whole."""
        if not self._open:
            return []
        number = self._open[0].place
        name = "".join(part.name for part in self._open if part.name)
        given = next((part.id for part in self._open if part.id), None)
        arguments = [part.arguments for part in self._open if part.arguments is not None]
        call = ToolCall(given or f"call_{self._turn}_{number}", name, "".join(arguments) if arguments else "{}")
        self._calls.append(call)
        return [CallComplete(self._place(f"call {number}"), call)]

    def _place(self, what: str) -> int:
        return self._places.setdefault(what, len(self._places))


class NewMachine(Protocol):
    """`Format.open`, or what is left of it."""

    def __call__(self, turn: int, tools: Sequence[ToolSpec]) -> Machine:
        """What reads the text of turn `turn`."""
        ...


def token_reader(
    template: ChatTemplate, new_machine: NewMachine | None, turn: int, tools: Sequence[ToolSpec] = ()
) -> TokenReader:
    """A reader of turn `turn`; `new_machine` makes what reads a completion piece by piece, None where nothing does."""
    return TokenReader(template, None if new_machine is None else new_machine(turn, tools))
