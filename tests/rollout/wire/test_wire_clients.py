"""The official clients against the codecs, over loopback."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import anthropic
import openai
import pytest
from wire_replies import ADD, CUT_CALL, INTERLEAVED, LOOK, SPOKEN, TEXT, THOUGHT, UNREADABLE, USAGE
from wire_server import Gateway, running

from rollout.wire.chat_stream import ChatOptions
from rollout.wire.errors import Kind, Refused, no_such_model, too_long

ASK: Any = [{"role": "user", "content": "Good day to you."}]
PARAMETERS: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
CHAT_TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("add", "look")
]
OWN_TOOLS: Any = [{"name": name, "input_schema": PARAMETERS} for name in ("add", "look")]
RESPONSE_TOOLS: Any = [
    {"type": "function", "name": name, "parameters": PARAMETERS, "strict": True} for name in ("add", "look")
]
NAME = "org/small"


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Gateway]:
    monkeypatch.setenv("NO_PROXY", "*")
    async with running(Gateway()) as one:
        yield one


@pytest.fixture
async def gpt(gateway: Gateway) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(gateway: Gateway) -> AsyncGenerator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0) as client:
        yield client


async def test_chat_is_answered(gateway: Gateway, gpt: openai.AsyncOpenAI) -> None:
    gateway.reply = INTERLEAVED
    done = await gpt.chat.completions.create(model=NAME, messages=ASK, tools=CHAT_TOOLS, seed=3)
    choice = done.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [(each.id, each.function.name, each.function.arguments) for each in choice.message.tool_calls or ()] == [  # type: ignore[union-attr]
        ("call_0", "add", ADD),
        ("call_1", "look", LOOK),
    ]
    assert choice.message.reasoning_segments == ["First add.", "Then look."]  # type: ignore[attr-defined]
    assert done.usage is not None and done.usage.prompt_tokens_details is not None
    assert (done.usage.prompt_tokens, done.usage.prompt_tokens_details.cached_tokens) == (USAGE.input, USAGE.cached)
    assert gateway.asked[0].drawing.seed == 3
    # What the client was told goes back as it came, and the reasoning is where it was.
    gateway.reply = TEXT
    said: Any = choice.message.model_dump(exclude_none=True)
    results: Any = [{"role": "tool", "tool_call_id": id, "content": "3"} for id in ("call_0", "call_1")]
    done = await gpt.chat.completions.create(model=NAME, messages=[*ASK, said, *results])
    assert done.choices[0].message.content == "Good day."
    told = gateway.asked[1].messages[1]
    assert told.get("reasoning_content") == ["First add.", "Then look."]
    assert [each["function"]["arguments"] for each in told.get("tool_calls", ())] == [ADD, LOOK]


@pytest.mark.parametrize("dispatch", [False, True])
async def test_chat_is_streamed(gateway: Gateway, gpt: openai.AsyncOpenAI, dispatch: bool) -> None:
    """The client's own loop over choices, and its helper that puts chunks together, also with events between."""
    gateway.reply, gateway.options = INTERLEAVED, ChatOptions(tool_dispatch=dispatch, reasoning_dispatch=dispatch)
    options: Any = {"include_usage": True}
    async with gpt.chat.completions.stream(model=NAME, messages=ASK, tools=[], stream_options=options) as helped:
        chunks = [event async for event in helped if event.type == "chunk"]
        done = await helped.get_final_completion()
    calls = done.choices[0].message.tool_calls or ()
    assert [(each.id, each.function.name, each.function.arguments) for each in calls] == [
        ("call_0", "add", ADD),
        ("call_1", "look", LOOK),
    ]
    assert done.choices[0].finish_reason == "tool_calls"
    assert done.usage is not None and done.usage.completion_tokens == USAGE.output
    assert chunks
    stream = await gpt.chat.completions.create(model=NAME, messages=ASK, stream=True)
    thought = ""
    async for chunk in stream:
        for choice in chunk.choices:
            thought += getattr(choice.delta, "reasoning_content", None) or ""
    assert thought == "First add.\nThen look."


async def test_a_response_is_answered_and_gone_on_from(gateway: Gateway, gpt: openai.AsyncOpenAI) -> None:
    gateway.reply = INTERLEAVED
    done = await gpt.responses.create(model=NAME, input="Add.", instructions="Be brief.", tools=RESPONSE_TOOLS)
    kinds = ["reasoning", "function_call", "reasoning", "function_call"]
    assert [item.type for item in done.output] == kinds
    assert done.usage is not None and done.usage.input_tokens_details.cached_tokens == USAGE.cached
    gateway.reply = TEXT
    outputs: Any = [{"type": "function_call_output", "call_id": id, "output": "3"} for id in ("call_0", "call_1")]
    second = await gpt.responses.create(model=NAME, previous_response_id=done.id, input=outputs, stream=True)
    events = [event async for event in second]
    assert events[-1].type == "response.completed" and events[-1].response.output_text == "Good day."
    third = await gpt.responses.create(model=NAME, previous_response_id=events[-1].response.id, input="And?")
    roles = [message["role"] for message in gateway.asked[2].messages]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert gateway.asked[2].messages[1].get("reasoning_content") == ["First add.", "Then look."]
    assert third.previous_response_id == events[-1].response.id
    with pytest.raises(openai.NotFoundError) as caught:
        await gpt.responses.create(model=NAME, previous_response_id="resp_none", input="And?")
    assert caught.value.code == "response_not_found"


async def test_a_response_is_streamed(gateway: Gateway, gpt: openai.AsyncOpenAI) -> None:
    gateway.reply = SPOKEN
    async with gpt.responses.stream(model=NAME, input="Add.", tools=RESPONSE_TOOLS) as helped:
        kinds = [event.type async for event in helped]
        done = await helped.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert [item.type for item in done.output] == ["message", "function_call", "message"]
    assert done.output[1].arguments == ADD  # type: ignore[union-attr]
    gateway.reply = CUT_CALL
    stream = await gpt.responses.create(model=NAME, input="Add.", stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"


async def test_messages_are_answered(gateway: Gateway, claude: anthropic.AsyncAnthropic) -> None:
    gateway.reply = INTERLEAVED
    done = await claude.messages.create(
        model=NAME,
        max_tokens=100,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=ASK,
        tools=OWN_TOOLS,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert [block.type for block in done.content] == ["thinking", "tool_use", "thinking", "tool_use"]
    assert [block.input for block in done.content if block.type == "tool_use"] == [json.loads(ADD), json.loads(LOOK)]
    assert done.stop_reason == "tool_use"
    usage = done.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == USAGE.input
    # Back again: what the model thought and where, and results with what went wrong.
    gateway.reply = TEXT
    said: Any = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in done.content]}
    results: Any = [
        {"type": "tool_result", "tool_use_id": "call_0", "content": "3"},
        {"type": "tool_result", "tool_use_id": "call_1", "content": "no such place", "is_error": True},
        {"type": "text", "text": "Go on."},
    ]
    heard: Any = {"role": "user", "content": results}
    done = await claude.messages.create(model=NAME, max_tokens=100, messages=[*ASK, said, heard], tools=OWN_TOOLS)
    assert done.stop_reason == "end_turn"
    told = gateway.asked[1].messages
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "tool", "user"]
    assert told[1].get("reasoning_content") == ["First add.", "Then look."]
    assert [each["function"]["arguments"] for each in told[1].get("tool_calls", ())] == [ADD, LOOK]
    assert told[3]["content"] == "Error: no such place"


async def test_messages_are_streamed(gateway: Gateway, claude: anthropic.AsyncAnthropic) -> None:
    gateway.reply = INTERLEAVED
    async with claude.messages.stream(model=NAME, max_tokens=100, messages=ASK, tools=OWN_TOOLS) as helped:
        events = [event async for event in helped]
        done = await helped.get_final_message()
    start = next(event for event in events if event.type == "message_start")
    assert start.message.usage.input_tokens == USAGE.input  # exact before anything was drawn
    assert [block.type for block in done.content] == ["thinking", "tool_use", "thinking", "tool_use"]
    assert [block.input for block in done.content if block.type == "tool_use"] == [json.loads(ADD), json.loads(LOOK)]
    assert done.content[0].thinking == "First add." and done.content[0].signature  # type: ignore[union-attr]
    assert (done.stop_reason, done.usage.output_tokens) == ("tool_use", USAGE.output)
    whole = await claude.messages.create(model=NAME, max_tokens=100, messages=ASK, tools=OWN_TOOLS)
    shown = {"exclude_none": True, "exclude": {"parsed_output"}}
    streamed = [block.model_dump(**shown) for block in done.content]
    assert streamed == [block.model_dump(**shown) for block in whole.content]


async def test_one_call_at_a_time_where_the_client_asks_for_it(
    gateway: Gateway, claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI
) -> None:
    gateway.reply = INTERLEAVED
    choice: Any = {"type": "auto", "disable_parallel_tool_use": True}
    asked: Any = {"model": NAME, "max_tokens": 100, "messages": ASK, "tools": OWN_TOOLS, "tool_choice": choice}
    done = await claude.messages.create(**asked)
    assert [block.type for block in done.content] == ["thinking", "tool_use"]
    async with claude.messages.stream(**asked) as helped:
        streamed = await helped.get_final_message()
    assert [block.type for block in streamed.content] == ["thinking", "tool_use"]
    told = await gpt.chat.completions.create(model=NAME, messages=ASK, tools=CHAT_TOOLS, parallel_tool_calls=False)
    assert len(told.choices[0].message.tool_calls or ()) == 1


async def test_no_client_sees_a_call_that_was_cut_or_cannot_be_read(
    gateway: Gateway, claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI
) -> None:
    gateway.reply = CUT_CALL
    done = await claude.messages.create(model=NAME, max_tokens=100, messages=ASK)
    assert ([block.type for block in done.content], done.stop_reason) == (["text"], "max_tokens")
    async with claude.messages.stream(model=NAME, max_tokens=100, messages=ASK) as helped:
        streamed = await helped.get_final_message()
    assert ([block.type for block in streamed.content], streamed.stop_reason) == (["text"], "max_tokens")
    told = await gpt.chat.completions.create(model=NAME, messages=ASK)
    assert (told.choices[0].message.tool_calls, told.choices[0].finish_reason) == (None, "length")
    gateway.reply = UNREADABLE
    async with claude.messages.stream(model=NAME, max_tokens=100, messages=ASK) as helped:
        assert await helped.get_final_text() == "add(1, 2"
    told = await gpt.chat.completions.create(model=NAME, messages=ASK)
    assert (told.choices[0].message.content, told.choices[0].finish_reason) == ("add(1, 2", "stop")


async def test_tokens_are_counted(gateway: Gateway, claude: anthropic.AsyncAnthropic) -> None:
    assert (await claude.messages.count_tokens(model=NAME, messages=ASK)).input_tokens == 4


async def test_models_are_told_in_both_forms(claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in gpt.models.list()] == ["org/small", "org/large"]
    small: Any = await gpt.models.retrieve("org/small")
    assert (small.context_window, small.max_output_tokens) == (32768, 4096)
    assert [model.id async for model in claude.models.list(limit=1)] == ["org/small", "org/large"]  # two pages
    one = await claude.models.retrieve("org/small")
    assert (one.display_name, one.max_input_tokens, one.max_tokens) == ("Small", 32768, 4096)
    assert one.created_at.year == 2023
    with pytest.raises(openai.NotFoundError):
        await gpt.models.retrieve("org/none")
    with pytest.raises(anthropic.NotFoundError):
        await claude.models.retrieve("org/none")


@pytest.mark.parametrize(
    ("refused", "of_openai", "of_anthropic"),
    [
        (too_long(9000, 8192), openai.BadRequestError, anthropic.BadRequestError),
        (Refused(Kind.AUTHENTICATION, "no key"), openai.AuthenticationError, anthropic.AuthenticationError),
        (Refused(Kind.PERMISSION, "no"), openai.PermissionDeniedError, anthropic.PermissionDeniedError),
        (no_such_model("x"), openai.NotFoundError, anthropic.NotFoundError),
        (Refused(Kind.RATE_LIMIT, "wait"), openai.RateLimitError, anthropic.RateLimitError),
        (Refused(Kind.OVERLOADED, "full"), openai.InternalServerError, anthropic.InternalServerError),
        (Refused(Kind.INTERNAL, "a bug"), openai.InternalServerError, anthropic.InternalServerError),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_is_refused_raises_the_clients_own_exception(
    gateway: Gateway,
    claude: anthropic.AsyncAnthropic,
    gpt: openai.AsyncOpenAI,
    refused: Refused,
    of_openai: type[openai.APIStatusError],
    of_anthropic: type[anthropic.APIStatusError],
) -> None:
    gateway.refuses = refused
    with pytest.raises(of_openai, match=refused.message.replace("(", r"\(").replace(")", r"\)")):
        await gpt.chat.completions.create(model=NAME, messages=ASK)
    with pytest.raises(of_openai):
        await gpt.responses.create(model=NAME, input="Hello.")
    with pytest.raises(of_anthropic) as caught:
        await claude.messages.create(model=NAME, max_tokens=10, messages=ASK)
    assert caught.value.body["error"] == {"type": str(refused.kind), "message": refused.message}  # type: ignore[index]
    assert caught.value.status_code == refused.anthropic_status


async def test_what_breaks_in_a_stream_raises_too(
    gateway: Gateway, claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI
) -> None:
    gateway.reply, gateway.breaks = THOUGHT, Refused(Kind.OVERLOADED, "the engine is gone")
    stream = await gpt.chat.completions.create(model=NAME, messages=ASK, stream=True)
    with pytest.raises(openai.APIError, match="the engine is gone"):
        [chunk async for chunk in stream]
    with pytest.raises(anthropic.APIStatusError, match="the engine is gone"):
        async with claude.messages.stream(model=NAME, max_tokens=10, messages=ASK) as helped:
            await helped.get_final_message()
    answer = await gpt.responses.create(model=NAME, input="Hello.", stream=True)
    last = [event async for event in answer][-1]
    assert last.type == "response.failed" and last.response.error is not None
    assert last.response.error.message == "the engine is gone"


async def test_images_are_refused_by_the_models_name(claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI) -> None:
    picture: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    with pytest.raises(anthropic.BadRequestError, match="model 'org/small' takes text only, no image"):
        await claude.messages.create(model=NAME, max_tokens=9, messages=[{"role": "user", "content": [picture]}])
    linked: Any = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError, match="takes text only, no image_url") as caught:
        await gpt.chat.completions.create(model=NAME, messages=[{"role": "user", "content": linked}])
    assert caught.value.param == "messages[0].content[1]"
    shown: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,", "detail": "auto"}]}]
    with pytest.raises(openai.BadRequestError, match="takes text only, no input_image"):
        await gpt.responses.create(model=NAME, input=shown)
