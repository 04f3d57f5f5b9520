"""The chat template and tokenizer of a model: openings, continuations, ends of turn, and files that cannot be used."""

import json
import shutil
from pathlib import Path

import pytest
from fakes import END_OF_TEXT, IM_END, TEMPLATE, TEMPLATES, TOKENIZER, counter, template
from jinja2 import TemplateSyntaxError

from rollout.errors import UserError
from rollout.template import BUNDLED, ChatTemplate, context_length, load_template, resolve_model
from rollout.trajectory import Message

USER: Message = {"role": "user", "content": "Go."}
TOOL: Message = {"role": "tool", "content": "3", "tool_call_id": "call_0_0", "name": "add"}


def text(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def test_an_opening_is_the_whole_conversation_and_the_header_of_the_policys_turn() -> None:
    opening = text(TEMPLATE.opening([USER], [bound.spec for bound in counter().bound_tools().values()]))
    assert "add(" in opening
    assert opening.endswith("<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("name", ["qwen3", "looks_back", "thinks_first"])
def test_an_end_of_turn_that_was_sampled_is_not_written_again(name: str) -> None:
    chosen = template(name)
    sampled, cut = chosen.continuation([USER], ended=True), chosen.continuation([USER], ended=False)
    assert cut.count(IM_END) == sampled.count(IM_END) + 1
    assert text(cut).lstrip().startswith("<|im_end|>")
    assert text(sampled) in text(cut)


@pytest.mark.parametrize("messages", [[USER], [TOOL], [TOOL, TOOL], [TOOL, USER]])
@pytest.mark.parametrize("name", ["qwen3", "looks_back", "roles_end_turns", "thinks_first"])
def test_what_was_said_is_continued_with_every_message_once(name: str, messages: list[Message]) -> None:
    continued = text(template(name).continuation(messages, ended=False))
    assert continued.count("3") == sum(message["role"] == "tool" for message in messages)
    assert continued.count("Go.") == sum(message["role"] == "user" for message in messages)
    assert "POLICY" not in continued
    assert "?" not in continued


def test_a_turn_that_ended_with_another_end_token_gets_no_second_one() -> None:
    assert template("qwen3").eos_ids == {IM_END, END_OF_TEXT}
    assert text(template("qwen3").continuation([USER], ended=True)).startswith("\n<|im_start|>user\nGo.")


def test_a_role_that_ends_the_turn_is_not_written_again() -> None:
    chosen = template("roles_end_turns", "<|im_end|>", "<tool_response>")
    assert text(chosen.continuation([TOOL], ended=True)) == "\n3<|im_start|>\n"
    assert text(chosen.continuation([TOOL], ended=False)) == "<tool_response>\n3<|im_start|>\n"


def test_a_template_that_looks_back_for_the_call_is_shown_one() -> None:
    chosen = template("looks_back")
    assert (
        text(chosen.continuation([TOOL], ended=True)) == "<|im_start|>functions.add\n3<|im_end|><|im_start|>assistant"
    )


def test_a_template_that_looks_back_and_writes_no_end_of_turn_cannot_be_continued() -> None:
    source = "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
    source += "{{ raise_exception('no call') }}{% endif %}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    chosen = ChatTemplate(TOKENIZER, source, {}, frozenset({IM_END}))
    with pytest.raises(UserError, match="no end of turn"):
        chosen.continuation([TOOL], ended=True)


def test_a_template_that_drops_the_policys_turn_cannot_be_continued() -> None:
    chosen = ChatTemplate(TOKENIZER, "{{ messages[0].content }}{{ messages[-1].content }}", {}, frozenset())
    with pytest.raises(UserError, match="drops the policy's own turn"):
        chosen.continuation([USER], ended=True)


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no system') }}", "{{ messages + 1 }}", "{{ messages[99].content.x }}"]
)
def test_a_template_that_refuses_a_conversation_says_so_in_one_line(source: str) -> None:
    with pytest.raises(UserError, match="refuses the conversation") as caught:
        ChatTemplate(TOKENIZER, source, {}, frozenset()).opening([USER], [])
    assert "\n" not in str(caught.value)


def test_arguments_reach_the_template_as_an_object_in_either_form() -> None:
    written: Message = {"role": "assistant", "content": ""}
    for arguments in ({"amount": 1}, '{"amount": 1}'):
        written["tool_calls"] = [{"id": "a", "type": "function", "function": {"name": "add", "arguments": arguments}}]
        assert '"arguments": {"amount": 1}' in template("qwen3").render([USER, written, TOOL], (), prompted=True)


def test_text_that_is_no_utf8_is_encoded_all_the_same() -> None:
    assert TEMPLATE.encode("a\ud800b") == TEMPLATE.encode("a?b")


def test_bytes_that_are_no_utf8_decode_to_the_replacement_character() -> None:
    euro = TEMPLATE.encode("€")
    assert len(euro) > 1, "the tokenizer needs several tokens for this character"
    assert TEMPLATE.decode(euro) == "€"
    assert "�" in TEMPLATE.decode(euro[:-1])
    assert TEMPLATE.decode([10**6]) == "", "an id outside the vocabulary stands for nothing"


def test_decoding_drops_the_end_of_turn_and_keeps_other_specials() -> None:
    ids = TEMPLATE.encode("<think>a</think>b")
    assert TEMPLATE.decode([*ids, IM_END]) == "<think>a</think>b"
    assert TEMPLATE.decode([]) == TEMPLATE.decode([IM_END]) == ""


def test_a_header_that_opens_reasoning_is_recognised() -> None:
    assert template("thinks_first").opens_with_reasoning
    assert not template("qwen3").opens_with_reasoning


def model(folder: Path, **files: str) -> Path:
    """A model folder like the bundled one but for some files; an empty text removes one."""
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content) if content else path.unlink()
    return folder


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer__json": ""}, "no tokenizer.json"),
        ({"tokenizer__json": "{"}, "tokenizer.json: "),
        ({"tokenizer_config__json": "{"}, "not JSON"),
        ({"config__json": "[]"}, "expected an object"),
        ({"chat_template__jinja": ""}, "no chat template"),
        ({"chat_template__jinja": "{% if %}"}, "line 1"),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_template(model(tmp_path / "model", **files))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_template_in_another_encoding_or_place_is_refused(tmp_path: Path) -> None:
    (odd := tmp_path / "odd.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_template(BUNDLED, odd)
    with pytest.raises(UserError, match="no such file"):
        load_template(BUNDLED, tmp_path / "none.jinja")
    with pytest.raises(UserError, match="no such folder"):
        load_template(tmp_path / "none")
    with pytest.raises(TemplateSyntaxError):
        ChatTemplate(TOKENIZER, "{{", {}, frozenset())


def test_a_template_of_ones_own_replaces_the_models(tmp_path: Path) -> None:
    assert load_template(BUNDLED, TEMPLATES / "qwen3.jinja").source != load_template(BUNDLED).source


def test_the_template_for_tools_is_taken_where_there_are_several(tmp_path: Path) -> None:
    entries = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    folder = model(
        tmp_path / "model",
        chat_template__jinja="",
        tokenizer_config__json=json.dumps({"chat_template": entries, "eos_token": {"content": "<|endoftext|>"}}),
    )
    loaded = load_template(folder)
    assert loaded.source == "with tools"
    assert loaded.eos_ids == {IM_END, END_OF_TEXT}


def test_every_end_of_turn_a_model_names_counts(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", generation_config__json=json.dumps({"eos_token_id": [END_OF_TEXT, 5]}))
    assert load_template(folder).eos_ids == {IM_END, END_OF_TEXT, 5}


def test_models_are_found_by_name_and_tell_their_context(tmp_path: Path) -> None:
    assert resolve_model("bundled") == BUNDLED
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("./no/model") == Path("./no/model")
    assert context_length(BUNDLED) is not None
    assert context_length(tmp_path) is None
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 99}}')
    assert context_length(tmp_path) == 99
