"""Whole replies and streams as the official packages' own types have them, and both say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import ModelInfo, RawMessageStreamEvent
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from wire_replies import ALL, CUT_CALL, INTERLEAVED, THOUGHT, USAGE, call, reply

from rollout.serving.catalog import ProfileConfig
from rollout.turn import FinishReason
from rollout.wire import chat, messages, models, responses
from rollout.wire.asked import Asked
from rollout.wire.chat_stream import ChatOptions, ChatStream
from rollout.wire.messages_stream import MessagesStream
from rollout.wire.reply import CallEnded, CallStarted, ContentDelta, Event, Fold, WasReasoning, collected
from rollout.wire.responses_stream import ResponsesStream
from rollout.wire.stream import Heading, Stream

CREATED = 1700000000

HEADING = Heading("x_1", "org/small", 1700000000)
CHAT = Asked("org/small", (), include_usage=True)
RESPONSES = responses.read(b'{"model": "org/small", "input": "Hello."}')
OWN = Asked("org/small", ())


def unknown(value: Any) -> Iterator[str]:
    """Keys that the vendor's type does not have."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in value.model_fields_set:
            yield from unknown(getattr(value, name, None))
    elif isinstance(value, list):
        for each in value:
            yield from unknown(each)


def sse(data: bytes) -> list[tuple[str | None, Any]]:
    """Names and data of the events in a stream; `[DONE]` as it is."""
    found: list[tuple[str | None, Any]] = []
    for block in data.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        text = lines["data"]
        found.append((lines.get("event"), text if text == "[DONE]" else json.loads(text)))
    return found


def streamed(stream: Stream, events: list[Event]) -> list[tuple[str | None, Any]]:
    return sse(b"".join(stream.feed(event) for event in events))


@pytest.mark.parametrize("name", ALL)
def test_chat_is_as_openai_has_it(name: str) -> None:
    whole = ChatCompletion.model_validate(chat.whole(CHAT, HEADING, collected(CHAT, ALL[name])))
    assert set(unknown(whole)) <= {"reasoning_content", "reasoning_segments"}
    told = streamed(ChatStream(CHAT, HEADING), ALL[name])
    assert told[-1] == (None, "[DONE]")
    chunks = [ChatCompletionChunk.model_validate(data) for _, data in told[:-1]]
    assert set(unknown(chunks)) <= {"reasoning_content"}
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    content = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert content == (whole.choices[0].message.content or "")
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


@pytest.mark.parametrize("name", ALL)
def test_messages_are_as_anthropic_has_them(name: str) -> None:
    body = messages.whole(OWN, HEADING, collected(OWN, ALL[name]))
    assert not set(unknown(AnthropicMessage.model_validate(body)))
    told = streamed(MessagesStream(OWN, HEADING), ALL[name])
    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    events = [adapter.validate_python(data) for _, data in told]
    assert not set(unknown(events))
    assert all(kind == data["type"] for kind, data in told)
    blocks: list[dict[str, Any]] = []
    for kind, data in told:
        if kind == "content_block_start":
            assert data["index"] == len(blocks)
            blocks.append(data["content_block"] | ({"json": ""} if data["content_block"]["type"] == "tool_use" else {}))
        elif kind == "content_block_delta":
            of = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "json"}
            key = of.get(data["delta"]["type"], "signature")
            blocks[data["index"]][key] += data["delta"]["partial_json" if key == "json" else key]
    for block in blocks:
        if "json" in block:
            block["input"] = json.loads(block.pop("json"))
    assert blocks == body["content"]
    assert told[-2][1]["delta"] == {key: body[key] for key in ("stop_reason", "stop_sequence")}
    assert told[-2][1]["usage"] == body["usage"]


@pytest.mark.parametrize("name", ALL)
def test_responses_are_as_openai_has_them(name: str) -> None:
    body = responses.whole(RESPONSES, HEADING, collected(RESPONSES, ALL[name]))
    assert not set(unknown(Response.model_validate(body)))
    stream = ResponsesStream(RESPONSES, HEADING)
    told = streamed(stream, ALL[name])
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    events = [adapter.validate_python(data) for _, data in told]
    assert not set(unknown(events))
    assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
    assert told[-1][1]["response"] == body == stream.body
    done = [data["item"] for kind, data in told if kind == "response.output_item.done"]
    assert done == body["output"]


def test_the_events_of_a_response_come_in_their_order() -> None:
    kinds = [kind for kind, _ in streamed(ResponsesStream(RESPONSES, HEADING), THOUGHT)]
    text = ["content_part.added", "{}.delta", "{}.delta", "{}.done", "content_part.done", "output_item.done"]
    reasoning = ["output_item.added", *(name.format("reasoning_text") for name in text)]
    said = ["output_item.added", *(name.format("output_text") for name in text if name != "{}.delta")]
    said.insert(2, "output_text.delta")
    assert kinds == [f"response.{name}" for name in ["created", "in_progress", *reasoning, *said, "completed"]]


def test_dispatch_tells_of_a_call_before_anything_that_follows_it() -> None:
    options = ChatOptions(tool_dispatch=True, reasoning_dispatch=True)
    told = streamed(ChatStream(CHAT, HEADING, options), INTERLEAVED)
    names = [name for name, _ in told if name]
    assert names == ["reasoning_dispatch", "tool_call_dispatch"] * 2
    calls = [data["tool_call"] for name, data in told if name == "tool_call_dispatch"]
    whole = chat.whole(CHAT, HEADING, collected(CHAT, INTERLEAVED))["choices"][0]["message"]["tool_calls"]
    assert [{key: entry[key] for key in ("id", "type", "function")} for entry in calls] == whole
    assert [entry["index"] for entry in calls] == [0, 1]
    thoughts = [data["reasoning_content"] for name, data in told if name == "reasoning_dispatch"]
    assert thoughts == ["First add.", "Then look."]
    assert streamed(ChatStream(CHAT, HEADING), INTERLEAVED) == [entry for entry in told if entry[0] is None]


def test_reasoning_goes_by_the_name_that_a_server_is_set_to() -> None:
    told = streamed(ChatStream(CHAT, HEADING, ChatOptions(reasoning_key="reasoning")), THOUGHT)
    assert [data["choices"][0]["delta"]["reasoning"] for _, data in told[1:3]] == ["They ", "greet."]


def test_an_eager_tool_gets_its_arguments_as_they_are_drawn() -> None:
    lazy = streamed(MessagesStream(OWN, HEADING), INTERLEAVED)
    eager = streamed(MessagesStream(Asked("m", (), eager=frozenset({"add"})), HEADING), INTERLEAVED)
    deltas = [
        [data for _, data in told if data.get("delta", {}).get("type") == "input_json_delta"] for told in (lazy, eager)
    ]
    assert [len(each) for each in deltas] == [2, 3]
    cut = streamed(MessagesStream(Asked("m", (), eager=frozenset({"add"})), HEADING), CUT_CALL)
    assert [kind for kind, _ in cut[-3:]] == ["content_block_stop", "message_delta", "message_stop"]


def test_arguments_that_are_no_object_become_one_for_anthropics_clients() -> None:
    events = reply(*call(0, "x", "add", "[1]"))
    assert messages.whole(OWN, HEADING, collected(OWN, events))["content"][0]["input"] == {"arguments": "[1]"}
    delta = next(data for kind, data in streamed(MessagesStream(OWN, HEADING), events) if kind == "content_block_delta")
    assert json.loads(delta["delta"]["partial_json"]) == {"arguments": "[1]"}


def test_a_call_that_was_begun_and_cannot_be_read_is_no_call() -> None:
    events = reply(
        CallStarted(0, "x", "add"), CallEnded(0, "x", "add", "{", "add {", "no JSON"), ContentDelta(1, "Oh.")
    )
    whole = collected(OWN, events)
    assert (whole.calls, whole.message["content"]) == ((), "add {\nOh.")
    told = streamed(MessagesStream(OWN, HEADING), events)
    assert [data["delta"]["text"] for kind, data in told if kind == "content_block_delta"] == ["add {", "Oh."]
    assert streamed(ChatStream(CHAT, HEADING), events)[-3][1]["choices"][0]["finish_reason"] == "stop"


def test_content_that_turns_out_to_be_reasoning_is_reasoning_in_a_whole_reply() -> None:
    whole = collected(OWN, reply(ContentDelta(0, "They greet."), WasReasoning(0), ContentDelta(1, "Good day.")))
    assert dict(whole.message) == {"role": "assistant", "content": "Good day.", "reasoning_content": "They greet."}


def test_a_reply_without_an_end_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no end"):
        Fold().whole()


def test_the_stop_sequence_is_told_where_there_is_a_place_for_it() -> None:
    body = messages.whole(OWN, HEADING, collected(OWN, reply(ContentDelta(0, "a"), met="END")))
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "END")
    cut = collected(OWN, reply(ContentDelta(0, "a"), reason=FinishReason.ABORT))
    assert messages.whole(OWN, HEADING, cut)["stop_reason"] == "max_tokens"


def test_tokens_add_up() -> None:
    told = messages.usage(USAGE)
    assert told["input_tokens"] + told["cache_read_input_tokens"] == USAGE.input
    assert chat.usage(USAGE)["total_tokens"] == responses.usage(USAGE)["total_tokens"] == USAGE.input + USAGE.output


def test_models_are_as_both_vendors_have_them() -> None:
    profile = ProfileConfig(max_output=4096).value("org/small", 32768)
    assert set(unknown(Model.model_validate(models.openai_entry(profile, CREATED)))) == {
        "context_window",
        "max_output_tokens",
        "max_model_len",
    }
    entry = models.anthropic_entry(profile, CREATED)
    assert not set(unknown(ModelInfo.model_validate(entry)))
    assert (entry["created_at"], entry["max_input_tokens"], entry["max_tokens"]) == (
        "2023-11-14T22:13:20Z",
        32768,
        4096,
    )
    assert models.find([profile], "org%2Fsmall") is profile
    many = [ProfileConfig().value(name, 1) for name in "abcde"]
    page = models.anthropic_list(many, CREATED, 2, before="d")
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (["b", "c"], True)
    none = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert models.anthropic_list([], CREATED, 2) == none
