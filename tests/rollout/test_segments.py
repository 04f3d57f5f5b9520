"""Completions read into ordered segments: in any chunking, and however malformed."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rollout.parsing import Event, as_message, as_segments, format_named
from rollout.segments import hermes
from rollout.trajectory import ToolCall

CALL = '<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'


def kinds(text: str, in_reasoning: bool = False) -> list[tuple[str, str]]:
    return [(part.kind, part.text) for part in hermes(text, 0, in_reasoning)]


def calls(text: str) -> list[ToolCall]:
    return [part.call for part in hermes(text, 3) if part.call is not None]


def test_reasoning_calls_and_content_come_in_the_order_sampled() -> None:
    text = f"<think>r0</think>{CALL}<think>r1</think>said{CALL}the end"
    assert [kind for kind, _ in kinds(text)] == [
        "reasoning",
        "tool_call",
        "reasoning",
        "content",
        "tool_call",
        "content",
    ]
    assert [call.id for call in calls(text)] == ["call_3_0", "call_3_1"]
    message = as_message(hermes(text, 0))
    assert message["content"] == "said\nthe end"
    assert message.get("reasoning_content") == "r0\nr1"
    assert [call["function"]["name"] for call in message.get("tool_calls", [])] == ["add", "add"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("plain", [("content", "plain")]),
        ("<think></think>", []),
        ("<think>never closed", [("reasoning", "never closed")]),
        ("thought</think>said", [("reasoning", "thought"), ("content", "said")]),
        ("</think>said", [("content", "said")]),
        ("<think>a</think>b</think>c", [("reasoning", "a"), ("reasoning", "b"), ("content", "c")]),
        ("a</tool_call>b", [("content", "a"), ("content", "b")]),
        ("<think>a<think>b</think>c", [("reasoning", "a"), ("reasoning", "b"), ("content", "c")]),
        ("a < b <th", [("content", "a < b <th")]),
        ("<tool_call></tool_call>", [("tool_call", "")]),
        ("<think>a</tool_call>b", [("reasoning", "a"), ("reasoning", "b")]),
    ],
)
def test_markup_that_is_odd_is_read_as_it_was_meant(text: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(text) == expected


def test_a_completion_may_start_inside_its_reasoning() -> None:
    assert kinds("thought</think>said", in_reasoning=True) == [("reasoning", "thought"), ("content", "said")]
    assert kinds("thought", in_reasoning=True) == [("reasoning", "thought")]


def test_a_call_ends_reasoning_that_was_not_closed() -> None:
    assert [kind for kind, _ in kinds(f"<think>so{CALL}done")] == ["reasoning", "tool_call", "content"]
    assert [kind for kind, _ in kinds(f"<think>so{CALL}more</think>done")] == [
        "reasoning",
        "tool_call",
        "reasoning",
        "content",
    ]


def test_inside_a_call_only_its_end_counts() -> None:
    (call,) = calls('<tool_call>{"name": "say", "arguments": {"text": "<think> <tool_call> </think>"}}</tool_call>')
    assert json.loads(call.arguments) == {"text": "<think> <tool_call> </think>"}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "not json",
        "[]",
        "{}",
        '{"name": 5}',
        '{"name": "add", "arguments": "1"}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": {"amount": NaN}}',
        '{"name": "add", "arguments": {"amount": 1e999}}',
        '{"name": "add", "arguments": {"amount": "\\ud800"}}',
        '{"name": "\\udfff"}',
        '{"name": "add", "arguments": {"amount": 1}',
        "[" * 5000,
        '{"name":' * 5000,
    ],
)
def test_a_call_that_cannot_be_read_has_no_name_and_keeps_what_was_sampled(body: str) -> None:
    (call,) = calls(f"<tool_call>{body}</tool_call>")
    assert call == ToolCall("call_3_0", "", body)


def test_invariant_4_a_call_the_completion_ends_in_counts_as_called() -> None:
    (whole,) = calls('<tool_call>{"name": "add", "arguments": {}}')
    (cut,) = calls('<tool_call>{"name": "add", "argu')
    assert whole.name == "add"
    assert cut == ToolCall("call_3_0", "", '{"name": "add", "argu')


def test_arguments_keep_their_characters() -> None:
    (call,) = calls('<tool_call>{"name": "say", "arguments": {"text": "für €"}}</tool_call>')
    assert call.arguments == '{"text": "für €"}'


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<",
        "</",
        "<th",
        "tool_call>",
        "k>",
        CALL,
        "a",
        " ",
        "\n",
        "ü",
    ]
)
MARKUP = st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=12).map("".join)


@given(MARKUP, st.lists(st.integers(0, 200), max_size=20), st.booleans())
def test_any_chunking_gives_the_same_segments(text: str, cuts: list[int], in_reasoning: bool) -> None:
    machine, told = format_named("hermes").open(in_reasoning=in_reasoning), list[Event]()
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        told += machine.feed(text[start:end])
    assert as_segments((*told, *machine.finish())) == hermes(text, 0, in_reasoning)


GAP = r"(?:</?think>|</?tool_call>|\s)*"


@given(MARKUP)
@example("<<tool_call>tool_call>")
@example("<tool<think>_call>said")
def test_segments_lose_nothing_but_markers_and_blanks_around_them(text: str) -> None:
    """The text is its segments in order and, between them, markers and blanks. Joined segments prove less: where a
    marker was taken out, what is left of it and right of it may look like another."""
    parts = [re.escape(part.text) for part in hermes(text, 0) if part.text]
    assert re.fullmatch(GAP.join(["", *parts, ""]), text)


@given(MARKUP)
def test_invariant_4_every_call_has_a_segment_an_id_and_an_entry_in_the_message(text: str) -> None:
    segments = hermes(text, 0)
    assert all((part.call is not None) == (part.kind == "tool_call") for part in segments)
    ids = [part.call.id for part in segments if part.call is not None]
    assert len(set(ids)) == len(ids)
    assert [call["id"] for call in as_message(segments).get("tool_calls", [])] == ids
