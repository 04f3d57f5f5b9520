"""What holds of every format, whatever a model says and however it is cut into pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.parsing import (
    FORMATS,
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    ContentDelta,
    Event,
    ReasoningDelta,
    WasReasoning,
    as_segments,
    written,
)
from rollout.trajectory import Segment, ToolCall, ToolSpec

SPEC = ToolSpec("f", "", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}})
CALL = Segment("tool_call", "", ToolCall("", "f", '{"a": 1, "b": "x"}'))
TAGS = {
    "qwen3_coder": ["</function>", "<parameter=", "a>", "</parameter>", "<function=f>"],
    "glm": ["<arg_key>", "a</arg_key>", "<arg_value>", "</arg_value>", "f"],
    "deepseek_v3": ["function", "f\n```json\n", "\n```"],
    "llama_json": ['{"name": "f", "parameters":', ";"],
    "llama_pythonic": ["[f(", ")]", "a=", "'", ", f("],
    "harmony": ["assistant", "analysis", "final", "commentary", " to=functions.f", "json"],
}
"""What stands inside calls, by format."""
COMMON = [
    '{"name": "f", "arguments": {',
    '"b": "',
    '"',
    "}",
    "}}",
    "\\",
    '\\"',
    "\n",
    " ",
    "<",
    "</",
    "<|",
    "a",
    "ü",
    "1",
    ",",
]


def markup(form: str) -> st.SearchStrategy[str]:
    """Texts full of the format's markers, whole and in part."""
    markers = FORMATS[form].markers
    pieces = [
        *markers,
        *markers,
        *TAGS.get(form, ()),
        *COMMON,
        *(marker[:-2] for marker in markers),
        written((CALL,), form),
    ]
    return st.lists(st.one_of(st.sampled_from(pieces), st.text(max_size=3)), max_size=14).map("".join)


def read(form: str, pieces: Sequence[str], in_reasoning: bool = False) -> list[Event]:
    """Events, with neighbouring deltas of a part joined."""
    machine = FORMATS[form].open(tools=(SPEC,), in_reasoning=in_reasoning)
    events = [event for piece in pieces for event in machine.feed(piece)]
    joined: list[Event] = []
    for event in (*events, *machine.finish()):
        last = joined[-1] if joined else None
        if isinstance(last, DELTAS) and isinstance(event, type(last)) and last.part == event.part:
            joined[-1] = replace(last, text=last.text + event.text)
        else:
            joined.append(event)
    return joined


DELTAS = (ReasoningDelta, ContentDelta, ArgumentsDelta)
each_format = pytest.mark.parametrize("form", FORMATS)


@each_format
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_streaming_is_not_streaming(form: str, data: st.DataObject) -> None:
    text = data.draw(markup(form))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    in_reasoning = data.draw(st.booleans())
    whole = read(form, [text], in_reasoning)
    assert read(form, pieces, in_reasoning) == whole
    assert read(form, list(text), in_reasoning) == whole


@each_format
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_marker_is_said_and_calls_are_sound(form: str, data: st.DataObject) -> None:
    text = data.draw(markup(form))
    events = read(form, [text])
    segments = as_segments(events)
    markers = FORMATS[form].markers
    assert not [part for part in segments if part.kind != "tool_call" and any(each in part.text for each in markers)]
    assert all(part.text == part.text.strip() and (part.text or part.call) for part in segments)
    calls = [event for event in events if isinstance(event, CallEnded)]
    assert len({call.id for call in calls}) == len(calls)
    assert sorted({event.part for event in events}) == list(range(len(segments)))
    assert [event.part for event in events] == sorted(event.part for event in events)
    for call in calls:
        mine = [event for event in events if event.part == call.part and event != call]
        assert all(isinstance(event, CallStarted | ArgumentsDelta) for event in mine)
        assert all(event.name == call.name for event in mine if isinstance(event, CallStarted))
        assert "".join(event.text for event in mine if isinstance(event, ArgumentsDelta)) == call.arguments
        if call.error is None:
            assert call.name
            assert isinstance(json.loads(call.arguments), dict)
            assert isinstance(mine[0], CallStarted)
    for before, event in pairwise([None, *events]):
        assert not isinstance(event, WasReasoning) or isinstance(before, ContentDelta)


GAPS = {"llama_json": ";", "llama_pythonic": r"\[\],"}


@each_format
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_character_is_in_a_part_or_is_markup(form: str, data: st.DataObject) -> None:
    text = data.draw(markup(form))
    markers = "|".join(re.escape(marker) for marker in FORMATS[form].markers)
    gap = rf"(?:{markers}|[\s\x1c-\x1f\x85{GAPS.get(form, '')}])*"
    if form == "harmony":  # a header is markup
        header = rf"(?:<\|start\|>|<\|channel\|>|<\|constrain\|>)(?:(?!{markers})[^\0])*"
        gap = rf"(?:\s*to=[^\s<]*\s*)?(?:{header}|{markers}|[\s\x1c-\x1f\x85])*"
    parts = [re.escape(part.text) for part in FORMATS[form].read(text, 0, (SPEC,)) if part.text]
    assert re.fullmatch(gap.join(["", *parts, ""]), text)


@each_format
def test_a_completion_may_be_cut_anywhere(form: str) -> None:
    parts = (Segment("reasoning", "so"), CALL, Segment("reasoning", "more"), Segment("content", "said <b>"), CALL)
    text = written(parts, form)
    whole = FORMATS[form].read(text, 0, (SPEC,))
    assert len(whole) == 5
    for end in range(len(text)):
        cut = FORMATS[form].read(text[:end], 0, (SPEC,))
        assert cut[:-1] == whole[: max(len(cut) - 1, 0)]
        half = any(text[:end].endswith(each[:size]) for each in FORMATS[form].markers for size in range(1, len(each)))
        if not cut or half:  # half a marker is what was said: nobody knows what it would have become
            continue
        mine, last = cut[-1], whole[len(cut) - 1]
        assert mine.kind == last.kind
        assert last.text.startswith(mine.text) or mine.call == last.call
        assert mine.call is None or not mine.call.name or mine.call == last.call


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["<tool_call>", "</tool_call>", "</think>", "<|call|>", '"', "\\", "\n", "<｜tool▁call▁end｜>", "}}", "'"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("form", ["hermes", "deepseek_v3", "deepseek_v31", "llama_json", "harmony", "llama_pythonic"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_arguments_come_back(form: str, data: st.DataObject) -> None:
    """As they were written; Python's syntax keeps no more than their value."""
    keys = st.from_regex(r"[a-z_]{1,5}_", fullmatch=True) if form == "llama_pythonic" else TEXTS
    arguments: dict[str, Any] = data.draw(st.dictionaries(keys, VALUES, max_size=3))
    text = json.dumps(arguments, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1])))
    said = written((Segment("tool_call", "", ToolCall("", "f", text)), Segment("content", "end")), form)
    cut = data.draw(st.integers(0, len(said)))
    call, content = as_segments(read(form, [said[:cut], said[cut:]]))
    assert content == Segment("content", "end")
    assert call.call is not None
    assert call.call.name == "f"
    assert json.loads(call.call.arguments) == arguments
    assert form == "llama_pythonic" or call.call.arguments == text


@pytest.mark.parametrize(("form", "closer"), [("qwen3_coder", "</parameter>"), ("glm", "</arg_value>")])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_text_between_tags_comes_back(form: str, closer: str, data: st.DataObject) -> None:
    text = data.draw(markup(form).filter(lambda each: closer not in each and "</function>" not in each))
    said = written((Segment("tool_call", "", ToolCall("", "f", json.dumps({"b": text}))),), form)
    (call,) = as_segments(read(form, [said]))
    assert call.call is not None
    assert json.loads(call.call.arguments) == {"b": text}
