"""Each format read as its models write it, and as they should not."""

from __future__ import annotations

import json

import pytest

from rollout.errors import UserError
from rollout.parsing import (
    FORMATS,
    THINK,
    TOOLS,
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    ContentDelta,
    Event,
    ReasoningDelta,
    WasReasoning,
    as_segments,
    format_named,
    tagged,
    written,
)
from rollout.trajectory import Segment, ToolCall, ToolSpec

ADD = ToolSpec(
    "add",
    "adds",
    {
        "type": "object",
        "properties": {
            "amount": {"type": "integer"},
            "note": {"type": "string"},
            "flag": {"type": "boolean"},
            "share": {"type": "number"},
            "list": {"type": "array"},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "either": {"type": ["string", "integer"]},
            "level": {"enum": [1, 2]},
        },
    },
)
ARGUMENTS = '{"amount": 1, "note": "für <b> \\"x\\""}'
_CALLS = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": %s}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=add>\n<parameter=amount>\n1\n</parameter>\n<parameter=note>\n"
    'für <b> "x"\n</parameter>\n</function>\n</tool_call>',
    "glm": "<tool_call>add\n<arg_key>amount</arg_key>\n<arg_value>1</arg_value>\n<arg_key>note</arg_key>\n"
    '<arg_value>für <b> "x"</arg_value>\n</tool_call>',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n%s\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>%s<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "llama_json": '<|python_tag|>{"name": "add", "parameters": %s}',
    "llama_pythonic": """<|python_start|>[add(amount=1, note='für <b> "x"')]<|python_end|>""",
    "harmony": "<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>%s<|call|>",
}
CALLS = {form: text.replace("%s", ARGUMENTS) for form, text in _CALLS.items()}
"""The same call in each format."""


def told(form: str, text: str, in_reasoning: bool = False) -> list[Event]:
    machine = FORMATS[form].open(turn=3, tools=(ADD,), in_reasoning=in_reasoning)
    return [*machine.feed(text), *machine.finish()]


def said(form: str, text: str, in_reasoning: bool = False) -> list[tuple[str, str]]:
    segments = FORMATS[form].read(text, 3, (ADD,), in_reasoning)
    return [(part.kind, part.call.name + part.call.arguments if part.call else part.text) for part in segments]


def only(form: str, text: str) -> CallEnded:
    (call,) = [event for event in told(form, text) if isinstance(event, CallEnded)]
    return call


@pytest.mark.parametrize("form", FORMATS)
def test_a_call(form: str) -> None:
    started, *arguments, ended = told(form, CALLS[form])
    assert started == CallStarted(0, "call_3_0", "add")
    assert isinstance(ended, CallEnded)
    assert (ended.part, ended.id, ended.name, ended.error) == (0, "call_3_0", "add", None)
    assert json.loads(ended.arguments) == json.loads(ARGUMENTS)
    assert "".join(each.text for each in arguments if isinstance(each, ArgumentsDelta)) == ended.arguments


@pytest.mark.parametrize("form", FORMATS)
def test_reasoning_calls_and_content_keep_their_order(form: str) -> None:
    parts = (
        Segment("reasoning", "r0"),
        Segment("tool_call", "", ToolCall("call_3_0", "add", '{"amount": 1}')),
        Segment("reasoning", "r1"),
        Segment("content", "said"),
        Segment("tool_call", "", ToolCall("call_3_1", "add", '{"note": "2"}')),
        Segment("content", "the end"),
    )
    read = FORMATS[form].read(written(parts, form), 3, (ADD,))
    assert [(part.kind, part.call or part.text) for part in read] == [
        (part.kind, part.call or part.text) for part in parts
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_a_call_that_the_completion_ends_in_has_an_error_and_no_name(form: str) -> None:
    cut = CALLS[form][: CALLS[form].index("für") + 1]
    call = only(form, cut)
    assert call.error == "the completion ended inside the call"
    segment = FORMATS[form].read(cut, 3, (ADD,))[-1]
    assert segment.call == ToolCall("call_3_0", "", call.text)


@pytest.mark.parametrize("form", FORMATS)
def test_a_marker_inside_a_text_is_text(form: str) -> None:
    text = "<think> </think> <tool_call> </tool_call> <｜tool▁call▁end｜> <|call|> <|python_tag|>"
    call = Segment("tool_call", "", ToolCall("", "add", json.dumps({"note": text}, ensure_ascii=False)))
    assert json.loads(only(form, written((call,), form)).arguments) == {"note": text}


@pytest.mark.parametrize(
    ("form", "text", "error"),
    [
        ("hermes", "<tool_call></tool_call>", "not JSON: Expecting value at character 0"),
        ("hermes", "<tool_call>[]</tool_call>", "not a JSON object"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "it has no name"),
        ("hermes", '<tool_call>{"name": "add", "arguments": "1"}</tool_call>', "its arguments are not a JSON object"),
        (
            "hermes",
            '<tool_call>{"name": "add", "arguments": {}, "arguments": {}}</tool_call>',
            "its name or its arguments stand there twice",
        ),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"amount": NaN}}</tool_call>', "JSON has no NaN"),
        ("qwen3_coder", '<tool_call>{"name": "add"}</tool_call>', "text where a tag was expected"),
        ("qwen3_coder", "<tool_call><function=add</function></tool_call>", "its name has no end"),
        ("qwen3_coder", "<tool_call><function=add>no tags</function></tool_call>", "text where a tag was expected"),
        ("glm", "<tool_call></tool_call>", "it has no name"),
        ("glm", "<tool_call>add<arg_key>a</arg_key>1</tool_call>", "text where a tag was expected"),
        (
            "deepseek_v3",
            "<｜tool▁call▁begin｜>add<｜tool▁call▁end｜>",
            "it has no name",
        ),
        (
            "deepseek_v31",
            "<｜tool▁call▁begin｜>add<｜tool▁sep｜>1<｜tool▁call▁end｜>",
            "its arguments are not a JSON object",
        ),
        (
            "deepseek_v31",
            "<｜tool▁call▁begin｜>add<｜tool▁sep｜>{} x<｜tool▁call▁end｜>",
            "text behind its arguments",
        ),
        ("llama_json", "<|python_tag|>print(1)", "the completion ended inside the call"),
        ("llama_pythonic", "[add(1)]", "its arguments need names"),
        ("llama_pythonic", "[add(amount=f())]", "not a call whose arguments are plain values"),
        (
            "harmony",
            "<|channel|>commentary to=functions.add<|message|>one<|call|>",
            "its arguments are not a JSON object",
        ),
    ],
)
def test_a_call_that_cannot_be_read_stands_with_its_error(form: str, text: str, error: str) -> None:
    call = only(form, text)
    assert call.error == error
    assert FORMATS[form].read(text)[0].call == ToolCall("call_0_0", "", call.text)


def test_a_string_that_is_not_closed_costs_its_own_call_only() -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {"note": "oh}}\n</tool_call>done'
    assert [kind for kind, _ in said("hermes", text + CALLS["hermes"])] == ["tool_call", "content", "tool_call"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"amount": "3"}, {"amount": 3}),
        ({"amount": "three"}, {"amount": "three"}),
        ({"note": "3"}, {"note": "3"}),
        ({"note": "null"}, {"note": "null"}),
        ({"flag": "True"}, {"flag": True}),
        ({"share": "3"}, {"share": 3}),
        ({"share": "NaN"}, {"share": "NaN"}),
        ({"list": '[1, {"a": "b"}]'}, {"list": [1, {"a": "b"}]}),
        ({"maybe": "null"}, {"maybe": None}),
        ({"maybe": "None"}, {"maybe": None}),
        ({"either": "3"}, {"either": 3}),
        ({"either": "three"}, {"either": "three"}),
        ({"level": "2"}, {"level": 2}),
        ({"unknown": "3"}, {"unknown": "3"}),
        ({"note": "two\n\nlines\n"}, {"note": "two\n\nlines\n"}),
        ({}, {}),
    ],
)
@pytest.mark.parametrize("form", ["qwen3_coder", "glm"])
def test_the_schema_says_what_is_a_number(form: str, given: dict[str, str], meant: dict[str, object]) -> None:
    call = Segment("tool_call", "", ToolCall("", "add", json.dumps(given)))
    assert json.loads(only(form, written((call,), form)).arguments) == meant


def test_qwen3_coder_may_forget_what_stands_around() -> None:
    whole = "<function=add>\n<parameter=amount>\n1\n</parameter>\n</function>"
    assert said("qwen3_coder", f"so: {whole}\n</tool_call>\ndone") == [
        ("content", "so:"),
        ("tool_call", 'add{"amount": 1}'),
        ("content", "done"),
    ]
    unclosed = "<tool_call><function=add><parameter=note>x\n</function>\n</tool_call>"
    assert said("qwen3_coder", unclosed) == [("tool_call", 'add{"note": "x"}')]
    assert said("qwen3_coder", f"<tool_call>{whole}{whole}</tool_call>") == [("tool_call", 'add{"amount": 1}')] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "add", "parameters": {}}', [("tool_call", "add{}")]),
        ('{"type": "function", "name": "add", "parameters": {}}', [("tool_call", "add{}")]),
        (
            '{"name": "add", "arguments": {}}; {"name": "add", "parameters": {}}',
            [("tool_call", "add{}"), ("tool_call", "add{}")],
        ),
        ('{"name": "Alice", "age": 3}', [("content", '{"name": "Alice", "age": 3}')]),
        ('{"a": "<think>b', [("content", '{"a": "'), ("reasoning", "b")]),
        ('{"name": "<think>b', [("content", '{"name": "'), ("reasoning", "b")]),
        ('So: {"name": "add", "parameters": {}}', [("content", 'So: {"name": "add", "parameters": {}}')]),
        ('<think>x</think>{"name": "add", "parameters": {}}', [("reasoning", "x"), ("tool_call", "add{}")]),
    ],
)
def test_llama_calls_without_a_marker_stand_at_the_beginning(text: str, expected: list[tuple[str, str]]) -> None:
    assert said("llama_json", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[add(amount=1), add()]", [("tool_call", 'add{"amount": 1}'), ("tool_call", "add{}")]),
        (
            "[add(flag=true, list=[1, (2)], note=')]')]",
            [("tool_call", 'add{"flag": true, "list": [1, 2], "note": ")]"}')],
        ),
        ("[1, 2]", [("content", "[1, 2]")]),
        ("[add, 2]", [("content", "[add, 2]")]),
        ("[add(amount=1), 2]done", [("tool_call", 'add{"amount": 1}'), ("tool_call", "2]done")]),
        ("[a.b(note='it\\'s')] then", [("tool_call", 'a.b{"note": "it\'s"}'), ("content", "then")]),
        ("[add(note='oh)]<|python_end|>x", [("tool_call", "add(note='oh)]<|python_end|>x")]),
        ("[add(note='oh\n)]<|python_end|>x", [("tool_call", "add(note='oh\n)]"), ("content", "x")]),
    ],
)
def test_pythonic_calls(text: str, expected: list[tuple[str, str]]) -> None:
    assert said("llama_pythonic", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
            [("reasoning", "hm"), ("content", "Hi")],
        ),
        ("<|channel|>commentary<|message|>First this.<|end|>", [("content", "First this.")]),
        (" to=functions.add<|channel|>commentary <|constrain|>json<|message|>{}", [("tool_call", "add{}")]),
        ("<|channel|>analysis to=functions.add code<|message|>{}<|call|>", [("tool_call", "add{}")]),
        ("<|channel|>commentary to=functions.add<|constrain|>json<|message|>{}<|call|>", [("tool_call", "add{}")]),
        ("<|channel|>commentary to=python<|message|>1+1<|call|>", [("tool_call", "1+1")]),
        ("plain words", [("content", "plain words")]),
        (" to=fun", [("content", "to=fun")]),
        ("plain<|end|>words", [("content", "plain"), ("content", "words")]),
        ("<|channel|>anal", []),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>b", [("reasoning", "a"), ("content", "b")]),
        ("<|message|>a<|constrain|>b", [("content", "a"), ("content", "b")]),
    ],
)
def test_harmony(text: str, expected: list[tuple[str, str]]) -> None:
    assert said("harmony", text) == expected


def test_reasoning_that_nothing_opened_is_told_of_when_it_is_closed() -> None:
    assert told("hermes", "hm</think>so") == [ContentDelta(0, "hm"), WasReasoning(0), ContentDelta(1, "so")]
    assert told("hermes", "hm</think>so", in_reasoning=True) == [ReasoningDelta(0, "hm"), ContentDelta(1, "so")]


def test_deltas_come_as_soon_as_they_can_be_told() -> None:
    machine = FORMATS["hermes"].open()
    steps = [
        "<think>\nso",
        " it ",
        "goes\n</thi",
        "nk>\n",
        'x<tool_call>{"name": "add", "argum',
        'ents": {"a": "b',
        "c",
    ]
    assert [machine.feed(step) for step in steps] == [
        (ReasoningDelta(0, "so"),),
        (ReasoningDelta(0, " it"),),
        (ReasoningDelta(0, " goes"),),
        (),
        (ContentDelta(1, "x"), CallStarted(2, "call_0_0", "add")),
        (ArgumentsDelta(2, "call_0_0", '{"a": "b'),),
        (ArgumentsDelta(2, "call_0_0", "c"),),
    ]


def test_arguments_are_told_as_they_were_sampled() -> None:
    (segment,) = FORMATS["hermes"].read('<tool_call>{"arguments":{"b":1,\n"a":1.50},"name":"add"}</tool_call>')
    assert segment.call == ToolCall("call_0_0", "add", '{"b":1,\n"a":1.50}')


def test_a_tool_component_alone_leaves_reasoning_where_it_is() -> None:
    bare, thinking = tagged("bare", None, TOOLS["hermes"]), tagged("thinking", THINK, None)
    text = "<think>a</think><tool_call>{}"
    assert [(part.kind, part.text) for part in bare.read(text)] == [
        ("content", "<think>a</think>"),
        ("tool_call", "{}"),
    ]
    assert [(part.kind, part.text) for part in thinking.read(text)] == [
        ("reasoning", "a"),
        ("content", "<tool_call>{}"),
    ]


def test_an_unknown_format_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="there is no format 'qwen3coder'; did you mean 'qwen3_coder'"):
        format_named("qwen3coder")


@pytest.mark.parametrize("depth", [200, 201, 500])
def test_brackets_go_so_deep_and_no_deeper_in_any_chunking(depth: int) -> None:
    body = f'{{"name": "add", "arguments": {{"list": {"[" * (depth - 1)}{"]" * (depth - 1)}}}}}'
    text = f"<tool_call>{body}</tool_call>"
    machine = FORMATS["hermes"].open()
    streamed = [*(event for piece in text for event in machine.feed(piece)), *machine.finish()][-1]
    whole = FORMATS["hermes"].read(text)
    assert as_segments([streamed]) == whole
    assert isinstance(streamed, CallEnded)
    assert (streamed.error is None) == (depth == 200)
