"""The grammars of calls that must be made, as XGrammar takes them for vLLM: they leave what our own formats read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rollout.gateway.choices import grammar
from rollout.parsing import format_named
from rollout.wire import chat
from rollout.wire.asked import Asked

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("add", "look")]
GIVEN = '{"a": 1, "b": "x y"}'
BEGIN, END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
TWO: dict[str, tuple[str, str]] = {
    "hermes": (
        f'<tool_call>\n{{"name": "add", "arguments": {GIVEN}}}\n</tool_call>',
        f'\n<tool_call>\n{{"name": "look", "arguments": {GIVEN}}}\n</tool_call>',
    ),
    "qwen3_coder": tuple(
        f"{before}<tool_call>\n<function={name}>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx y\n</parameter>\n"
        "</function>\n</tool_call>"
        for before, name in (("", "add"), ("\n", "look"))
    ),  # type: ignore[dict-item]
    "glm": tuple(
        f"{before}<tool_call>{name}\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n"
        "<arg_value>x y</arg_value>\n</tool_call>"
        for before, name in (("", "add"), ("\n", "look"))
    ),  # type: ignore[dict-item]
    "llama_json": (
        f'{{"name": "add", "parameters": {GIVEN}}}',
        f'; {{"name": "look", "parameters": {GIVEN}}}',
    ),
    "deepseek_v3": (
        f"{BEGIN}function{SEP}add\n```json\n{GIVEN}\n```{END}",
        f"\n{BEGIN}function{SEP}look\n```json\n{GIVEN}\n```{END}",
    ),
    "deepseek_v31": (f"{BEGIN}add{SEP}{GIVEN}{END}", f"{BEGIN}look{SEP}{GIVEN}{END}"),
}


def request(**more: Any) -> Asked:
    ask = [{"role": "user", "content": "x"}]
    return chat.read(json.dumps({"model": "m", "messages": ask, "tools": TOOLS, **more}).encode())


@pytest.mark.parametrize("name", TWO)
def test_calls_can_be_forced(name: str) -> None:
    import xgrammar
    from xgrammar.testing import _is_grammar_accept_string as accepts

    def forced(in_reasoning: bool = False, **more: Any) -> Any:
        told = grammar(request(**more), name, in_reasoning)
        assert told is not None
        return xgrammar.Grammar.from_structural_tag(told["structural_tag"])

    def around(*calls: str) -> str:
        joined = "".join(calls)
        return f"<｜tool▁calls▁begin｜>{joined}<｜tool▁calls▁end｜>" if name.startswith("deepseek") else joined

    first, second = TWO[name]
    one, two = around(first), around(first, second)
    required = forced(tool_choice="required")
    assert accepts(required, one) and accepts(required, two)
    assert not accepts(required, "") and not accepts(required, f"Well. {one}")
    assert accepts(alone := forced(tool_choice="required", parallel_tool_calls=False), one)
    assert not accepts(alone, two)
    look: Any = {"type": "function", "function": {"name": "look"}}
    assert not accepts(forced(tool_choice=look), one)
    thought = forced(True, tool_choice="required")
    assert accepts(thought, f"It is two.\n</think>\n\n{two}") and not accepts(thought, two)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    either = forced(response_format=form)
    assert accepts(either, '{"n": 3}') and accepts(either, two) and not accepts(either, "three")
    read = format_named(name).read(two, tools=request().tools)
    calls = [part.call for part in read if part.call is not None]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("add", json.loads(GIVEN)),
        ("look", json.loads(GIVEN)),
    ]
