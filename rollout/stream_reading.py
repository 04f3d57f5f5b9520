"""Readers of a completion that is still being sampled: from token ids, and from the deltas of a chat endpoint.

What they tell is what the ledger will record (`rollout.segments`, `rollout.tokens`): the deltas of a stretch put
together are the text of its segment, and a call is told only when it is whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from rollout.segments import Segmenter
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
from rollout.trajectory import Segment, ToolCall

_REPLACEMENT = "\ufffd"
"""What bytes that are no character yet are decoded to."""


class Incremental(Protocol):
    """A parser that reads a completion piece by piece."""

    def feed(self, text: str) -> Sequence[Segment]:
        """Segments that `text` completes."""
        ...

    def under_way(self) -> tuple[Literal["reasoning", "content", "tool_call"], str]:
        """The kind of the stretch that is open, and what has come of it since this was asked last."""
        ...


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


class _Stretch:
    """What was told of the stretch under way."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.held = ""
        """White space that is part of the segment only if something follows it."""
        self.called = False
        """A call has begun."""

    def more(self, place: int, kind: str, fresh: str) -> list[StreamEvent]:
        """What `fresh` adds to it, without white space at its ends."""
        if kind == "tool_call":
            started, self.called = self.called, True
            return [] if started else [CallStarted(place)]
        text = self.held + fresh
        if not self.told:
            text = text.lstrip()
        shown = text.rstrip()
        self.held = text[len(shown) :]
        return self._told(place, kind, shown)

    def whole(self, place: int, segment: Segment, sampling: bool) -> list[StreamEvent]:
        """The rest of it, now that it is whole."""
        if segment.call is not None:
            started: list[StreamEvent] = [] if self.called else [CallStarted(place)]
            return [*started, CallComplete(place, segment.call, sampling)]
        so_far = "".join(self.told)
        rest = segment.text[len(so_far) :] if segment.text.startswith(so_far) else ""
        return [*self._told(place, segment.kind, rest), SegmentDone(place, segment)]

    def _told(self, place: int, kind: str, text: str) -> list[StreamEvent]:
        if not text:
            return []
        self.told.append(text)
        return [ReasoningDelta(place, text) if kind == "reasoning" else TextDelta(place, text)]


class TokenReader:
    """See Reader, for ids. Without an incremental parser it tells everything at the end."""

    def __init__(self, template: ChatTemplate, parser: Incremental | None) -> None:
        self._detokenizer = Detokenizer(template)
        self._parser = parser
        self._whole: list[Segment] = []
        self._stretch = _Stretch()

    def feed(self, delta: Delta) -> Sequence[StreamEvent]:
        """See Reader."""
        if self._parser is None or not (text := self._detokenizer.feed(delta.ids)):
            return ()
        events: list[StreamEvent] = []
        for segment in self._parser.feed(text):
            events += self._stretch.whole(len(self._whole), segment, True)
            self._whole.append(segment)
            self._stretch = _Stretch()
        kind, fresh = self._parser.under_way()
        return [*events, *self._stretch.more(len(self._whole), kind, fresh)]

    def finish(self, segments: Sequence[Segment]) -> Sequence[StreamEvent]:
        """See Reader. Where something else was recorded than was told, all from there on is told as it was recorded."""
        same = next(
            (place for place, told in enumerate(self._whole) if place >= len(segments) or segments[place] != told),
            len(self._whole),
        )
        if same < len(self._whole):
            self._stretch = _Stretch()
        events: list[StreamEvent] = []
        for place, segment in enumerate(segments[same:], start=same):
            events += self._stretch.whole(place, segment, False)
            self._stretch = _Stretch()
        return events


class MessageReader:
    """See Reader, for endpoints that read their text themselves: reasoning, content and calls come apart.

    A call is whole when the next one begins or the completion ends: what is JSON already may still get longer.
    """

    def __init__(self, turn: int) -> None:
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


def token_reader(template: ChatTemplate, new_parser: Callable[[int], Incremental] | None, turn: int) -> TokenReader:
    """A reader of turn `turn`; `new_parser` makes what reads a completion piece by piece, None where nothing does."""
    return TokenReader(template, None if new_parser is None else new_parser(turn))


def hermes_parser(in_reasoning: bool, turn: int) -> Incremental:
    """What reads the format of `rollout.segments.hermes` piece by piece."""
    return Segmenter(turn, in_reasoning)
