"""What a program sends back is what was sampled, in whatever form it is kept; anything else is another conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rollout.external.comparing import answered, keys, opening_key
from rollout.serving.capture import Called
from rollout.trajectory import Completion, FinishReason, Segment, ToolCall, ToolSpec

ASK: list[Any] = [{"role": "system", "content": "You are."}, {"role": "user", "content": "Go."}]
ADD = ToolSpec("add", "Adds.", {"type": "object", "properties": {}})
ARGUMENTS = '{"a":1, "b": [true, "\\u00e4"]}'


def call(id: str, name: str = "add", arguments: str = ARGUMENTS) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def called(*segments: Segment, reason: FinishReason = FinishReason.STOP) -> Called:
    return Called(ASK, Completion(reason, ids=[1], prompt_ids=[2]), segments)


SAID = (
    Segment("reasoning", "Let me add."),
    Segment("content", "Adding:\n"),
    Segment("tool_call", ARGUMENTS, ToolCall("c1", "add", ARGUMENTS)),
    Segment("reasoning", "And again."),
    Segment("tool_call", "{}", ToolCall("c2", "add", "{}")),
)
START = opening_key((), {})


def goes_on(one: Called, *messages: Any) -> bool:
    before = keys(START, ASK)[-1][0]
    return keys(START, [*ASK, *messages])[-1][0] in answered(before, one)


def said(content: Any = "Adding:", *calls: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **more}


TWO = (call("c1"), call("c2", arguments="{}"))


@pytest.mark.parametrize(
    "messages",
    [
        [said("Adding:", *TWO)],
        [said("  Adding:\n\n", *TWO, reasoning_content="Summed up.")],
        [said([{"type": "text", "text": "Adding:"}], *TWO)],
        [said("Adding:"), said(None, *TWO)],
        [said("Adding:", TWO[0]), said(None, TWO[1])],
        [said("Adding:", call("c1", arguments='{"b":[true,"ä"],"a":1.0}'), call("c2", arguments=""))],
        [said("Adding:", call("c1", arguments=json.loads(ARGUMENTS)), TWO[1])],
        [said("Adding:", TWO[0])],
    ],
    ids=[
        "same",
        "blanks",
        "parts",
        "two messages",
        "a message a call",
        "other JSON",
        "an object",
        "one call at a time",
    ],
)
def test_what_says_the_same_goes_on(messages: list[Any]) -> None:
    assert goes_on(called(*SAID), *messages)


@pytest.mark.parametrize(
    "messages",
    [
        [said("Adding!", *TWO)],
        [said("Adding:", *reversed(TWO))],
        [said("Adding:", call("c1", arguments='{"a": 2, "b": [true, "ä"]}'), TWO[1])],
        [said("Adding:", call("c1", arguments='{"a": true, "b": [true, "ä"]}'), TWO[1])],
        [said("Adding:", call("x1"), TWO[1])],
        [said("Adding:", call("c1", name="sub"), TWO[1])],
        [said("Adding:")],
        [said("Adding:", *TWO), said("And more.")],
    ],
    ids=["text", "order", "arguments", "true for 1", "ids", "name", "no calls", "an answer nobody sampled"],
)
def test_what_says_something_else_does_not(messages: list[Any]) -> None:
    assert not goes_on(called(*SAID), *messages)


def test_an_answer_goes_on_without_what_nobody_could_read_or_was_cut_off() -> None:
    unread = called(Segment("content", "So: "), Segment("tool_call", "<tool_call>{", ToolCall("c1", "", "{")))
    assert goes_on(unread, said("So:")) and goes_on(unread, said("So: <tool_call>{"))
    cut = called(Segment("content", "So: "), *SAID[2:3], reason=FinishReason.LENGTH)
    assert goes_on(cut, said("So:")) and goes_on(cut, said("So:", TWO[0]))
    assert not goes_on(called(Segment("content", "So: "), *SAID[2:3]), said("So:"))


def test_what_others_said_and_what_stands_in_every_prompt_has_to_be_the_same() -> None:
    def end(messages: list[Any], *opening: Any) -> bytes:
        return keys(opening_key(*opening), messages)[-1][0]

    assert end(ASK, (), {}) == end([ASK[0], {"role": "user", "content": [{"type": "text", "text": "Go."}]}], (), {})
    assert end(ASK, (), {}) != end([ASK[0], {"role": "user", "content": "Go. "}], (), {})
    assert end(ASK, (), {}) != end(ASK, (ADD,), {})
    assert end(ASK, (), {}) != end(ASK, (), {"enable_thinking": False})
    results = [{"role": "tool", "content": "3", "tool_call_id": id} for id in ("c1", "c2")]
    assert end([*ASK, results[0]], (), {}) != end([*ASK, results[1]], (), {})
    assert end([*ASK, {"role": "user", "content": "half \ud83d"}], (), {})
