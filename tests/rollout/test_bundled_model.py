"""The files of the bundled model, and the promises its tokenizer and template make.

Torch is not needed: `tokenizers` and `jinja2` are what the engine itself reads these files with.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

import rollout

FOLDER = Path(rollout.__file__).parent / "bundled_model"
SPECIALS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "the result of one operation",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def render(
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    generate: bool = False,
) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string((FOLDER / "chat_template.jinja").read_text())
    return template.render(messages=messages, tools=tools, add_generation_prompt=generate)


def call(expression: str, as_text: bool = False) -> dict[str, Any]:
    arguments = {"expression": expression}
    return {
        "type": "function",
        "function": {
            "name": "calculate",
            "arguments": json.dumps(arguments) if as_text else arguments,
        },
    }


def conversation() -> list[dict[str, Any]]:
    """Two calls at once, their two results, one call, its result, and the answer."""
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Compute (1+2)*(3+4)."},
        {
            "role": "assistant",
            "reasoning_content": "Left: (1+2)*(3+4).",
            "content": "",
            "tool_calls": [call("1+2"), call("3+4", as_text=True)],
        },
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "7"},
        {
            "role": "assistant",
            "reasoning_content": "Left: 3*7.",
            "content": "Nearly there.",
            "tool_calls": [call("3*7")],
        },
        {"role": "tool", "content": "21"},
        {
            "role": "assistant",
            "reasoning_content": "Left: 21.",
            "content": "The answer is 21.",
        },
    ]


def test_every_file_is_there_and_together_they_are_small() -> None:
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "MODEL_CARD.md",
    }
    assert names <= {path.name for path in FOLDER.iterdir()}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000


def test_the_configuration_is_one_that_vllm_serves_over_long_contexts() -> None:
    config = read("config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] >= 8192
    assert config["tie_word_embeddings"] is True


def test_weights_are_in_half_precision_and_hold_the_embedding_once() -> None:
    with (FOLDER / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    assert {entry["dtype"] for entry in tensors.values()} <= {"BF16", "F16"}
    assert "lm_head.weight" not in tensors


def test_the_vocabulary_the_weights_and_the_stop_tokens_agree(tokenizer: Tokenizer) -> None:
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    assert read("config.json")["vocab_size"] == tokenizer.get_vocab_size()
    assert read("config.json")["eos_token_id"] == end
    assert read("generation_config.json")["eos_token_id"] == end
    assert read("generation_config.json")["pad_token_id"] == pad
    assert read("tokenizer_config.json")["eos_token"] == "<|im_end|>"
    assert read("tokenizer_config.json")["pad_token"] == "<|endoftext|>"


@pytest.mark.parametrize("special", SPECIALS)
def test_a_special_is_one_id_wherever_it_stands(tokenizer: Tokenizer, special: str) -> None:
    assert tokenizer.encode(special).ids == [tokenizer.token_to_id(special)]
    assert tokenizer.token_to_id(special) in tokenizer.encode(f"a{special}\n7").ids


def test_markup_survives_decoding_without_specials_and_control_does_not(
    tokenizer: Tokenizer,
) -> None:
    ids = tokenizer.encode("<think>x</think><tool_call>{}</tool_call><|im_end|>").ids
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded == "<think>x</think><tool_call>{}</tool_call>"


@pytest.mark.parametrize(
    "text",
    [
        "plain words, CAPITALS and 1234567890",
        "  leading, trailing  \n\n\ttabs\r\n and   runs ",
        "Grüße, 你好, हिन्दी, \N{FAMILY}, \N{ROCKET}, e\N{COMBINING ACUTE ACCENT}",
        '{"name": "x", "arguments": {"a": [1, -2.5, null]}}',
        "\x00\x01\x7f\ufeff\u2028",
        "don't we'll I'd",
    ],
)
def test_text_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_random_text_comes_back_as_it_was(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(300):
        characters = (rng.choice((rng.randrange(128), rng.randrange(0xD800))) for _ in range(40))
        text = "".join(map(chr, characters))
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    # These are exactly the characters that byte-level BPE writes the 256 bytes with.
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(byte) for byte in plain] + [chr(0x100 + n) for n in range(256 - len(plain))]
    assert len(alphabet) == 256
    assert all(tokenizer.token_to_id(character) is not None for character in alphabet)


def test_digits_and_operators_stay_single(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("(12+7)*345-6").tokens == list("(12+7)*345-6")


def test_the_rendering_in_full() -> None:
    assert render(conversation()[:6], [TOOL], generate=True) == (
        "<|im_start|>system\n"
        "Be brief.\n\n"
        "Tools:\n"
        "calculate(expression: string): the result of one operation<|im_end|>\n"
        "<|im_start|>user\n"
        "Compute (1+2)*(3+4).<|im_end|>\n"
        "<|im_start|>assistant\n"
        "<think>Left: (1+2)*(3+4).</think>\n"
        '<tool_call>\n{"name": "calculate", "arguments": {"expression": "1+2"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "calculate", "arguments": {"expression": "3+4"}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>user\n"
        "<tool_response>\n3\n</tool_response>\n"
        "<tool_response>\n7\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
        "<think>Left: 3*7.</think>\n"
        "Nearly there.\n"
        '<tool_call>\n{"name": "calculate", "arguments": {"expression": "3*7"}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_every_turn_extends_the_rendering_before_it() -> None:
    messages = conversation()
    # Right after an assistant, and right before one: the two places the engine cuts at.
    cuts = [n for n in range(1, len(messages) + 1) if messages[n - 1]["role"] == "assistant"]
    for earlier in cuts:
        shorter = render(messages[:earlier], [TOOL])
        for later in range(earlier, len(messages) + 1):
            assert render(messages[:later], [TOOL]).startswith(shorter)
            assert render(messages[:later], [TOOL], generate=True).startswith(shorter)
    for cut in cuts:
        prompt = render(messages[: cut - 1], [TOOL], generate=True)
        assert render(messages[:cut], [TOOL]).startswith(prompt)


def test_appending_ids_gives_the_ids_of_the_whole(tokenizer: Tokenizer) -> None:
    messages = conversation()
    before = render(messages[:3], [TOOL]).removesuffix("\n")
    suffix = render(messages[:5], [TOOL], generate=True).removeprefix(before)
    assert suffix.startswith("\n<|im_start|>user\n<tool_response>")
    whole = tokenizer.encode(before + suffix).ids
    assert tokenizer.encode(before).ids + tokenizer.encode(suffix).ids == whole


def test_tool_results_render_alone_as_what_is_appended() -> None:
    results = [{"role": "tool", "content": "3"}, {"role": "tool", "content": "7"}]
    assert render(conversation()[:5], [TOOL]).endswith(render(results))


def test_tools_render_as_one_line_each() -> None:
    parameters = {
        "type": "object",
        "properties": {"path": {"type": "string"}, "limit": {"type": ["integer", "null"]}},
        "required": ["path"],
    }
    tools: list[dict[str, Any]] = [
        {"type": "function", "function": {"name": "read", "parameters": parameters}},
        {"name": "now", "description": "the time"},
    ]
    assert render([{"role": "user", "content": "Hi."}], tools) == (
        "<|im_start|>system\n"
        "Tools:\nread(path: string, limit?: any)\nnow(): the time<|im_end|>\n"
        "<|im_start|>user\nHi.<|im_end|>\n"
    )


def test_a_conversation_may_have_neither_system_text_nor_tools() -> None:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    assert render(messages) == ("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n")
