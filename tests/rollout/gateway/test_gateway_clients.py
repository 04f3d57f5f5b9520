"""The official clients against the gateway, over loopback."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest
from gateway_server import ASK, CALL, CHAT_TOOLS, LOOK, NAME, OWN_TOOLS, RESPONSE_TOOLS, Running, running, scripted

from rollout.gateway.section import GatewayConfig
from rollout.template import BUNDLED, load_template

THINKS = f"<think>One after the other.</think>I add.\n{CALL}\n{LOOK}"
TEMPLATE = load_template(BUNDLED)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@asynccontextmanager
async def gpt_of(one: Running, key: str = "none") -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{one.url}/v1", api_key=key, max_retries=0) as client:
        yield client


@asynccontextmanager
async def claude_of(one: Running, key: str = "none") -> AsyncGenerator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=one.url, api_key=key, max_retries=0) as client:
        yield client


async def test_chat_uses_tools_in_parallel_and_goes_on() -> None:
    async with running(scripted([THINKS, "Both are done."])) as one, gpt_of(one) as gpt:
        done = await gpt.chat.completions.create(model=NAME, messages=ASK, tools=CHAT_TOOLS, temperature=0.5, seed=3)
        choice = done.choices[0]
        assert choice.finish_reason == "tool_calls"
        calls: Any = choice.message.tool_calls
        assert [(each.function.name, json.loads(each.function.arguments)) for each in calls] == [
            ("add", {"a": 1, "b": 2}),
            ("look", {"at": "home"}),
        ]
        assert choice.message.content == "I add."
        assert choice.message.reasoning_content == "One after the other."  # type: ignore[attr-defined]
        prompt = one.policy.prompts[0]
        assert done.usage is not None and done.usage.prompt_tokens == len(prompt.ids)
        assert done.usage.completion_tokens == len(TEMPLATE.encode(THINKS)) + 1
        assert done.usage.completion_tokens_details is not None
        assert done.usage.completion_tokens_details.reasoning_tokens == len(TEMPLATE.encode("One after the other."))
        assert (prompt.sampling.temperature, prompt.sampling.seed) == (0.5, 3)
        said: Any = choice.message.model_dump(exclude_none=True)
        results: Any = [{"role": "tool", "tool_call_id": each.id, "content": "3"} for each in calls]
        done = await gpt.chat.completions.create(model=NAME, messages=[*ASK, said, *results], tools=CHAT_TOOLS)
        assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("Both are done.", "stop")
        shown = TEMPLATE.decode_all(one.policy.prompts[1].ids)
        assert "<think>One after the other.</think>" in shown and shown.count("<tool_response>") == 2


async def test_a_stream_of_chat_is_the_reply_in_pieces() -> None:
    async with running(scripted([THINKS])) as one, gpt_of(one) as gpt:
        options: Any = {"include_usage": True}
        whole = await gpt.chat.completions.create(model=NAME, messages=ASK, tools=CHAT_TOOLS)
        async with gpt.chat.completions.stream(
            model=NAME, messages=ASK, tools=CHAT_TOOLS, stream_options=options
        ) as helped:
            count = len([event async for event in helped if event.type == "chunk"])
            done = await helped.get_final_completion()
        assert count > 10
        told, expected = done.choices[0].message, whole.choices[0].message
        assert told.content == expected.content
        assert told.reasoning_content == expected.reasoning_content  # type: ignore[attr-defined]
        assert [(call.id, call.function.name, call.function.arguments) for call in told.tool_calls or ()] == [
            (call.id, call.function.name, call.function.arguments)  # type: ignore[union-attr]
            for call in expected.tool_calls or ()
        ]
        assert done.usage == whole.usage and done.choices[0].finish_reason == "tool_calls"


async def test_messages_use_tools_and_think() -> None:
    async with running(scripted([THINKS, "Done."])) as one, claude_of(one) as claude:
        asked: Any = {"model": NAME, "max_tokens": 200, "messages": ASK, "tools": OWN_TOOLS, "system": "Be brief."}
        whole = await claude.messages.create(**asked)
        assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert whole.stop_reason == "tool_use" and whole.content[2].input == {"a": 1, "b": 2}  # type: ignore[union-attr]
        counted = await claude.messages.count_tokens(model=NAME, messages=ASK, tools=OWN_TOOLS, system="Be brief.")
        assert whole.usage.input_tokens == counted.input_tokens == len(one.policy.prompts[0].ids)
        async with claude.messages.stream(**asked) as helped:
            events = [event async for event in helped]
            done = await helped.get_final_message()
        begun = next(event for event in events if event.type == "message_start")
        assert begun.message.usage.input_tokens == counted.input_tokens
        assert [block.model_dump() for block in done.content] == [block.model_dump() for block in whole.content]
        assert done.usage.output_tokens == whole.usage.output_tokens
        results: Any = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "3"}
            for block in whole.content
            if block.type == "tool_use"
        ]
        asked["messages"] = [
            *ASK,
            {"role": "assistant", "content": whole.content},
            {"role": "user", "content": results},
        ]
        done = await claude.messages.create(**asked)
        assert done.content[0].text == "Done." and done.stop_reason == "end_turn"  # type: ignore[union-attr]


async def test_responses_go_on_from_each_other() -> None:
    async with running(scripted([THINKS, "Done.", "Again."])) as one, gpt_of(one) as gpt:
        first = await gpt.responses.create(model=NAME, input="Add.", instructions="Be brief.", tools=RESPONSE_TOOLS)
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call", "function_call"]
        outputs: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "3"}
            for item in first.output
            if item.type == "function_call"
        ]
        stream = await gpt.responses.create(model=NAME, previous_response_id=first.id, input=outputs, stream=True)
        events = [event async for event in stream]
        assert events[-1].type == "response.completed"
        second = events[-1].response
        assert second.output_text == "Done."
        third = await gpt.responses.create(model=NAME, previous_response_id=second.id, input="And?")
        assert third.output_text == "Again."
        roles = [message["role"] for message in one.policy.prompts[-1].messages]
        assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]
        assert (await gpt.responses.retrieve(second.id)).output_text == "Done."
        await gpt.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await gpt.responses.create(model=NAME, previous_response_id=third.id, input="And?")
        assert caught.value.code == "response_not_found"


async def test_calls_one_at_a_time() -> None:
    async with running(scripted([THINKS])) as one, gpt_of(one) as gpt, claude_of(one) as claude:
        done = await gpt.chat.completions.create(model=NAME, messages=ASK, tools=CHAT_TOOLS, parallel_tool_calls=False)
        assert len(done.choices[0].message.tool_calls or ()) == 1
        choice: Any = {"type": "auto", "disable_parallel_tool_use": True}
        message = await claude.messages.create(
            model=NAME, max_tokens=200, messages=ASK, tools=OWN_TOOLS, tool_choice=choice
        )
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_tool_runner_of_anthropics_client_runs_its_tools(stream: bool) -> None:
    """It asks for a thread first, and goes on without one when it is told that there are none."""
    added: list[tuple[int, int]] = []

    @anthropic.beta_async_tool
    async def add(a: int, b: int) -> str:
        """Adds two numbers."""
        added.append((a, b))
        return str(a + b)

    async with running(scripted([f"I add.\n{CALL}\n{CALL}", "It is 3."])) as one, claude_of(one) as claude:
        runner: Any = claude.beta.messages.tool_runner(
            model=NAME, max_tokens=200, messages=ASK, tools=[add], stream=stream
        )
        said = [await item.get_final_message() if stream else item async for item in runner]
        assert [message.stop_reason for message in said] == ["tool_use", "end_turn"]
        assert said[-1].content[0].text == "It is 3." and added == [(1, 2), (1, 2)]
        assert [message["role"] for message in one.policy.prompts[-1].messages] == ["user", "assistant", "tool", "tool"]


async def test_models_in_both_forms() -> None:
    async with running(scripted(["x"])) as one, gpt_of(one) as gpt, claude_of(one) as claude:
        [listed] = [model async for model in gpt.models.list()]
        found: Any = await gpt.models.retrieve(NAME)
        assert listed.id == found.id == NAME and (found.context_window, found.max_output_tokens) == (2048, 2048)
        [entry] = [model async for model in claude.models.list()]
        other = await claude.models.retrieve(NAME)
        assert entry == other and (other.display_name, other.max_input_tokens) == ("Small", 2048)
        with pytest.raises(anthropic.NotFoundError):
            await claude.models.retrieve("org/none")


async def test_errors_have_the_shape_of_their_api() -> None:
    async with running(scripted(["x"])) as one, gpt_of(one) as gpt, claude_of(one) as claude:
        long: Any = [{"role": "user", "content": "long " * 3000}]
        with pytest.raises(openai.BadRequestError) as caught:
            await gpt.chat.completions.create(model=NAME, messages=long)
        assert caught.value.code == "context_length_exceeded" and caught.value.request_id is not None
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            await claude.messages.create(model=NAME, max_tokens=5, messages=long)
        picture: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
        with pytest.raises(openai.BadRequestError, match=f"model '{NAME}' takes text only, no image_url"):
            await gpt.chat.completions.create(model=NAME, messages=picture)
        source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
        picture = [{"role": "user", "content": [{"type": "image", "source": source}]}]
        with pytest.raises(anthropic.BadRequestError, match="takes text only"):
            await claude.messages.create(model=NAME, max_tokens=5, messages=picture)
        with pytest.raises(openai.NotFoundError) as missing:
            await gpt.chat.completions.create(model="gpt-9", messages=ASK)
        assert missing.value.code == "model_not_found"
        with pytest.raises(anthropic.NotFoundError, match="claude-9"):
            await claude.messages.create(model="claude-9", max_tokens=5, messages=ASK)
        hinted: Any = {"nvext": {"agent_hints": {"priority": "high"}}}
        with pytest.raises(openai.BadRequestError, match=r"nvext\.agent_hints\.priority"):
            await gpt.chat.completions.create(model=NAME, messages=ASK, extra_body=hinted)
        assert not one.policy.prompts and one.gateway.counts.refused == 7


async def test_any_name_is_taken_where_the_server_says_so() -> None:
    async with running(scripted(["Hello."]), GatewayConfig(any_name=True)) as one, claude_of(one) as claude:
        done = await claude.messages.create(model="claude-9", max_tokens=50, messages=ASK)
        assert (done.model, done.content[0].text) == ("claude-9", "Hello.")  # type: ignore[union-attr]
