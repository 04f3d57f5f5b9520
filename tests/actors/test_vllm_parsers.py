"""vLLM's parsers behind our one function, with the bundled model's tokenizer."""

from __future__ import annotations

import json

import pytest

from actors.vllm_parsers import split_reference, vllm_parser
from rollout.errors import UserError
from rollout.template import BUNDLED, load_template
from rollout.trajectory import ToolSpec

TOOL = ToolSpec(
    "calculate", "works it out", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
)
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"a": 1}}\n</tool_call>'
XML_CALL = (
    "<tool_call>\n<function=calculate>\n<parameter=a>\n3\n</parameter>\n<parameter=b>\n4\n</parameter>\n"
    "</function>\n</tool_call>"
)


@pytest.mark.parametrize(
    ("reference", "parts"), [("vllm:hermes", ("hermes", None)), ("vllm:hermes+qwen3", ("hermes", "qwen3"))]
)
def test_a_reference_names_one_or_two_parsers(reference: str, parts: tuple[str, str | None]) -> None:
    assert split_reference(reference) == parts


@pytest.mark.parametrize("reference", ["hermes2", "vllm:", "vllm:hermes+", "vllm:+qwen3"])
def test_anything_else_is_refused(reference: str) -> None:
    with pytest.raises(UserError, match=r"model\.parser: expected a format of our own or vllm:TOOL"):
        split_reference(reference)


@pytest.mark.vllm
@pytest.mark.timeout(300)
class TestReading:
    """vLLM takes long to import, once."""

    def test_reasoning_content_and_calls(self) -> None:
        parser = vllm_parser("vllm:hermes+deepseek_r1", BUNDLED)
        said = parser(f"<think>so</think>First this.\n{CALL}\n{CALL}", turn=2)
        assert [(part.kind, part.text) for part in said[:2]] == [("reasoning", "so"), ("content", "First this.")]
        calls = [part.call for part in said[2:]]
        assert [(call.id, call.name) for call in calls if call] == [
            ("call_2_0", "calculate"),
            ("call_2_1", "calculate"),
        ]
        assert all(json.loads(call.arguments) == {"a": 1} for call in calls if call)

    def test_later_reasoning_loses_its_place(self) -> None:
        """The limit the module names: vLLM 0.32 drops what is reasoned between calls."""
        said = vllm_parser("vllm:hermes+deepseek_r1", BUNDLED)(f"<think>r0</think>{CALL}<think>r1</think>{CALL}", 0)
        assert [part.kind for part in said] == ["reasoning", "tool_call", "tool_call"]
        assert said[0].text == "r0"

    def test_tools_tell_numbers_from_strings(self) -> None:
        parser = vllm_parser("vllm:qwen3_coder+qwen3", BUNDLED)
        ids = load_template(BUNDLED).encode(XML_CALL)
        typed, untyped = parser(XML_CALL, 0, ids, (TOOL,)), parser(XML_CALL, 0)
        assert [json.loads(part.text) for part in typed] == [{"a": 3, "b": "4"}]
        assert [json.loads(part.text) for part in untyped] == [{"a": "3", "b": "4"}]

    @pytest.mark.parametrize(
        "text", ['<tool_call>\n{"name": "calculate", "arg', "plain words", "<tool_call>{}</tool_call>"]
    )
    def test_what_cannot_be_read_is_content(self, text: str) -> None:
        assert [(part.kind, part.text) for part in vllm_parser("vllm:hermes", BUNDLED)(text, 0)] == [("content", text)]

    def test_nothing_said_is_nothing(self) -> None:
        assert vllm_parser("vllm:hermes", BUNDLED)("", 0) == ()

    @pytest.mark.parametrize(
        ("reference", "told"),
        [
            ("vllm:herms", "model.parser: vLLM has no tool parser 'herms'; did you mean 'hermes'?"),
            ("vllm:hermes+qwen4", "model.parser: vLLM has no reasoning parser 'qwen4'; did you mean 'qwen3'?"),
        ],
    )
    def test_unknown_names_get_the_nearest(self, reference: str, told: str) -> None:
        with pytest.raises(UserError) as caught:
            vllm_parser(reference, BUNDLED)
        assert str(caught.value) == told

    def test_a_tokenizer_without_the_parsers_tokens_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"model\.parser: vllm:mistral does not fit the tokenizer"):
            vllm_parser("vllm:mistral", BUNDLED)
