"""Replies as parsers tell them."""

from __future__ import annotations

from rollout.turn import FinishReason
from rollout.wire.reply import (
    ArgumentsDelta,
    Begun,
    CallEnded,
    CallStarted,
    ContentDelta,
    Event,
    Finished,
    ReasoningDelta,
    Usage,
)

ADD = '{"a": 1, "b": 2}'
LOOK = '{"where": "Zürich"}'
USAGE = Usage(input=40, cached=16, output=25, reasoning=9)


def call(part: int, id: str, name: str, arguments: str) -> list[Event]:
    half = len(arguments) // 2
    return [
        CallStarted(part, id, name),
        ArgumentsDelta(part, id, arguments[:half]),
        ArgumentsDelta(part, id, arguments[half:]),
        CallEnded(part, id, name, arguments, arguments),
    ]


def reply(*middle: Event, reason: FinishReason = FinishReason.STOP, met: str | None = None) -> list[Event]:
    return [Begun(USAGE.input), *middle, Finished(reason, USAGE, met)]


TEXT = reply(ContentDelta(0, "Good "), ContentDelta(0, "day."))
THOUGHT = reply(ReasoningDelta(0, "They "), ReasoningDelta(0, "greet."), ContentDelta(1, "Good day."))
INTERLEAVED = reply(
    ReasoningDelta(0, "First add."),
    *call(1, "call_0", "add", ADD),
    ReasoningDelta(2, "Then "),
    ReasoningDelta(2, "look."),
    *call(3, "call_1", "look", LOOK),
)
SPOKEN = reply(ContentDelta(0, "I add."), *call(1, "call_0", "add", ADD), ContentDelta(2, "Added."))
CUT_TEXT = reply(ContentDelta(0, "Good d"), reason=FinishReason.LENGTH)
CUT_CALL = reply(
    ContentDelta(0, "I add."),
    CallStarted(1, "call_0", "add"),
    ArgumentsDelta(1, "call_0", '{"a": 1'),
    CallEnded(1, "call_0", "add", '{"a": 1', '{"name": "add", "arguments": {"a": 1', "it ends too early"),
    reason=FinishReason.LENGTH,
)
UNREADABLE = reply(CallEnded(0, "call_0", "", "", "add(1, 2", "no JSON"))
EMPTY = reply()
ALL = {
    "text": TEXT,
    "thought": THOUGHT,
    "interleaved": INTERLEAVED,
    "spoken": SPOKEN,
    "cut_text": CUT_TEXT,
    "cut_call": CUT_CALL,
    "unreadable": UNREADABLE,
    "empty": EMPTY,
}
