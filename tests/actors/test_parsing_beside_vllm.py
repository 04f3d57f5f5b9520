"""Our formats beside vLLM's parsers, on completions that those read rightly: one reasoning, content, then calls."""

from __future__ import annotations

import json

import pytest

from rollout.parsing import FORMATS, written
from rollout.template import BUNDLED
from rollout.trajectory import Segment, ToolCall, ToolSpec

ADD = ToolSpec("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}})
SAID = (
    Segment("reasoning", "so"),
    Segment("content", "First this."),
    Segment("tool_call", "", ToolCall("call_0_0", "add", '{"a": 1, "b": "für <b>\\n2"}')),
    Segment("tool_call", "", ToolCall("call_0_1", "add", '{"b": "3"}')),
)


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("form", "reference"),
    [("hermes", "vllm:hermes+deepseek_r1"), ("qwen3_coder", "vllm:qwen3_coder+qwen3"), ("glm", "vllm:glm47+glm47")],
)
def test_both_read_the_same(form: str, reference: str) -> None:
    """vLLM's other parsers ask for special tokens that the bundled tokenizer has not."""
    pytest.importorskip("vllm")
    from actors.vllm_parsers import vllm_parser

    text = written(SAID, form)
    theirs = vllm_parser(reference, BUNDLED)(text, 0, tools=(ADD,))
    ours = FORMATS[form].read(text, 0, (ADD,))
    assert [(part.kind, part.call is None and part.text) for part in ours] == [
        (part.kind, part.call is None and part.text) for part in theirs
    ]
    for mine, other in zip(ours, theirs, strict=True):
        if mine.call is not None and other.call is not None:
            assert mine.call.name == other.call.name
            assert json.loads(mine.call.arguments) == json.loads(other.call.arguments)
