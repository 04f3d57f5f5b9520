"""Segments as messages and back, through chat templates, and what earlier reasoning is still shown."""

from __future__ import annotations

import json

import pytest
from fakes import template
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.parsing import FORMATS, as_message, form_for, reformed, segments_of, shown
from rollout.parsing.history import Keep
from rollout.trajectory import Message, Segment, ToolCall

USER: Message = {"role": "user", "content": "Go."}
TOOL: Message = {"role": "tool", "content": "3", "tool_call_id": "call_0_0"}
LETTERS = st.characters(codec="utf-8", exclude_characters="<")
WORDS = st.text(LETTERS, min_size=1, max_size=6).map(str.strip).filter(bool)


def call(number: int, note: str) -> Segment:
    arguments = json.dumps({"note": note}, ensure_ascii=False)
    return Segment("tool_call", arguments, ToolCall(f"call_0_{number}", "add", arguments))


@st.composite
def interleaved(draw: st.DrawFn, most_reasoning: int = 9) -> tuple[Segment, ...]:
    """Reasoning before each call and behind the last, some of it missing; content before the first call."""
    parts: list[Segment] = []
    calls = draw(st.integers(0, 3))
    for number in range(calls + 1):
        behind = number == calls and calls
        if number < most_reasoning and draw(st.booleans()):
            parts.append(Segment("reasoning", draw(WORDS)))
        if number == 0 and draw(st.booleans()):
            parts.append(Segment("content", draw(WORDS)))
        if number < calls and not behind:
            parts.append(call(number, draw(WORDS)))
    return tuple(parts)


def said(prompt: str) -> str:
    """The last turn of the policy in a prompt."""
    return prompt.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")


def alike(parts: tuple[Segment, ...]) -> list[tuple[str, object]]:
    return [(part.kind, part.call or part.text) for part in parts]


@given(interleaved())
@settings(deadline=None)
def test_a_message_keeps_the_order_in_a_list(parts: tuple[Segment, ...]) -> None:
    message = as_message(parts, "list")
    calls, reasoning = len(message.get("tool_calls", [])), message.get("reasoning_content", [])
    assert isinstance(reasoning, list)
    assert len(reasoning) <= calls + 1
    assert segments_of(message) == parts


@given(interleaved())
@settings(max_examples=50, deadline=None)
def test_the_order_survives_a_template_that_reads_lists(parts: tuple[Segment, ...]) -> None:
    chosen = template("interleaved")
    assert form_for(chosen.source) == "list"
    prompt = chosen.render([USER, as_message(parts, "list")], (), prompted=False)
    assert alike(FORMATS["hermes"].read(said(prompt))) == alike(parts)


@given(interleaved(most_reasoning=1))
@settings(max_examples=50, deadline=None)
def test_reasoning_that_comes_first_survives_a_template_that_reads_text(parts: tuple[Segment, ...]) -> None:
    chosen = template("qwen3")
    assert form_for(chosen.source) == "text"
    message = as_message(parts, form_for(chosen.source))
    answers: list[Message] = [{**TOOL, "tool_call_id": each["id"]} for each in message.get("tool_calls", [])]
    prompt = chosen.render([USER, message, *answers], (), prompted=False)
    turn = prompt.partition("<|im_start|>assistant\n")[2].partition("<|im_end|>")[0]
    assert alike(FORMATS["hermes"].read(turn)) == alike(parts)


def test_reasoning_takes_other_forms() -> None:
    parts = (Segment("reasoning", "a"), call(0, "x"), Segment("reasoning", "b"))
    listed: Message = {**as_message(parts, "list"), "name": "solver"}
    assert listed.get("reasoning_content") == ["a", "b"]
    assert reformed(listed, "text") == {**listed, "reasoning_content": "a\nb"}
    inline = reformed(listed, "inline")
    assert "reasoning_content" not in inline
    assert (inline["content"], inline.get("name")) == ("<think>\na\n</think>\n\n<think>\nb\n</think>\n", "solver")
    assert reformed(USER, "inline") is USER


@pytest.mark.parametrize(("keep", "left"), [("keep", [1, 3, 5]), ("drop_before_last_user", [5]), ("drop_all", [])])
def test_earlier_reasoning_is_kept_or_dropped(keep: Keep, left: list[int]) -> None:
    thinking: Message = {"role": "assistant", "content": "so", "reasoning_content": "hm"}
    messages = [USER, thinking, TOOL, thinking, USER, thinking, TOOL]
    found = shown(messages, keep)
    assert [at for at, message in enumerate(found) if "reasoning_content" in message] == left
    assert [message["content"] for message in found] == [message["content"] for message in messages]
    assert "reasoning_content" in messages[1]


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ("{{ message.content }}", "inline"),
        ("{% if message.reasoning_content is string %}{{ message.reasoning_content }}{% endif %}", "text"),
        ("{% for part in message.reasoning_content %}{{ part }}{% endfor %}", "list"),
    ],
)
def test_a_template_says_which_form_it_reads(source: str, form: str) -> None:
    assert form_for(source) == form
