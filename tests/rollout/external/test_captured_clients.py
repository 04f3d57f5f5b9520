"""The official clients behind a token: whatever they make of a conversation, it goes on from what was sampled."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest
from hosted import hosting, opened, scripted
from test_captured import findings

from rollout.trajectory import Prompt, StopReason

THINKS = (
    '<think>\nBoth at  once.\n</think>\n\nI add.\n<tool_call>\n{"name": "add", "arguments": {"a":1,  "b": 2.0}}\n'
    '</tool_call>\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
)
PARAMETERS: Any = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
ASK: Any = [{"role": "user", "content": "Good day."}]
ALSO: Any = {"role": "user", "content": "And then?"}
NAMES = ("add", "look")
LINES = [THINKS, THINKS, "Both are done."]


def chat_tools() -> Any:
    return [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in NAMES]


async def talk_chat(url: str, stream: bool) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        messages = list(ASK)
        for _ in range(3):
            given: Any = {"model": "m", "messages": messages, "tools": chat_tools()}
            if stream:
                async with client.chat.completions.stream(**given) as events:
                    async for _ in events:
                        pass
                    done: Any = await events.get_final_completion()
            else:
                done = await client.chat.completions.create(**given)
            said = done.choices[0].message
            # What many programs keep: no reasoning, and arguments as they read them.
            kept: dict[str, Any] = {"role": "assistant", "content": said.content}
            if said.tool_calls:
                kept["tool_calls"] = [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {
                            "name": call.function.name,
                            "arguments": json.dumps(json.loads(call.function.arguments)),
                        },
                    }
                    for call in said.tool_calls
                ]
            messages.append(kept)
            messages += [{"role": "tool", "tool_call_id": one.id, "content": "3"} for one in said.tool_calls or ()]
        assert messages[-1]["content"] == "Both are done."


async def talk_messages(url: str, stream: bool) -> None:
    tools: Any = [{"name": name, "input_schema": PARAMETERS} for name in NAMES]
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        messages = list(ASK)
        for _ in range(3):
            given: Any = {"model": "m", "messages": messages, "tools": tools, "max_tokens": 300}
            if stream:
                async with client.messages.stream(**given) as events:
                    said: Any = await events.get_final_message()
            else:
                said = await client.messages.create(**given)
            messages.append({"role": "assistant", "content": said.content})
            results = [
                {"type": "tool_result", "tool_use_id": block.id, "content": "3"}
                for block in said.content
                if block.type == "tool_use"
            ]
            if results:
                messages.append({"role": "user", "content": results})
        assert messages[-1]["content"][0].text == "Both are done."


async def talk_responses(url: str, stream: bool, stored: bool = False) -> None:
    tools: Any = [{"type": "function", "name": name, "parameters": PARAMETERS, "strict": False} for name in NAMES]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        items: Any = list(ASK)
        told: dict[str, Any] = {}
        for _ in range(3):
            given: Any = {"model": "m", "input": items, "tools": tools, "store": stored, **told}
            if stream:
                async with client.responses.stream(**given) as events:
                    async for _ in events:
                        pass
                    said: Any = await events.get_final_response()
            else:
                said = await client.responses.create(**given)
            results = [
                {"type": "function_call_output", "call_id": item.call_id, "output": "3"}
                for item in said.output
                if item.type == "function_call"
            ]
            if stored:
                items, told = results, {"previous_response_id": said.id}
            else:
                items += [item.to_dict() for item in said.output if item.type != "reasoning"]
                items += results
        assert said.output_text == "Both are done."


async def talk_stored(url: str, stream: bool) -> None:
    await talk_responses(url, stream, stored=True)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("talk", [talk_chat, talk_messages, talk_responses, talk_stored])
async def test_a_conversation_is_one_segment_whose_prompts_hold_what_was_sampled(talk: Any, stream: bool) -> None:
    policy = scripted(LINES)
    async with hosting(policy) as host:
        scribe, url = opened(host)
        await talk(url, stream)
    turns = scribe.turns
    assert [(turn.segment, turn.segment_break) for turn in turns] == [(0, None)] * 3
    held: list[int] = []
    for turn, prompt in zip(turns, policy.prompts, strict=True):
        held += turn.prompt_ids or ()
        assert held == list(prompt.ids)
        held += turn.completion.ids or ()
    assert [use.result.content for turn in turns for use in turn.tool_uses] == ["3"] * 4
    assert [part.text for part in turns[0].segments if part.kind == "reasoning"] == ["Both at  once."]
    assert findings(scribe) == []


async def test_conversations_at_the_same_time_their_retries_and_what_sums_them_up_are_segments() -> None:
    def script(prompt: Prompt) -> list[str]:
        return [f"About {prompt.messages[-1]['content']}"] * 9

    async with hosting(scripted(script)) as host:
        scribe, url = opened(host)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def ask(*said: str, **more: Any) -> str:
                roles = ("user", "assistant")
                messages: Any = [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)]
                done = await client.chat.completions.create(model="m", messages=messages, **more)
                return str(done.choices[0].message.content)

            first, second, _ = await asyncio.gather(ask("one"), ask("two"), ask("three"))
            assert (first, second) == ("About one", "About two")
            await asyncio.gather(
                ask("one", first, "more of one"),
                ask("two", second, "more of two", extra_headers={"x-session-id": "below"}),
            )
            await ask("two", second, "more of two")
            await ask("one", "Told otherwise.", "more of one")
    prompts = {"one": 2, "two": 3, "three": 1, "otherwise": 1}
    assert len(scribe.turns) == sum(prompts.values())
    assert {turn.segment for turn in scribe.turns} == {0, 1, 2, 3, 4}
    assert [turn.segment_break for turn in scribe.turns if turn.segment == 4] == ["the program told the history anew"]
    assert findings(scribe) == []


async def test_a_token_opens_its_own_episode_and_nothing_else() -> None:
    async with hosting(scripted(["Stored.", "Again."])) as host:
        mine, my_url = opened(host)
        theirs, their_url = opened(host)
        token = my_url.rpartition("/")[2]
        async with openai.AsyncOpenAI(base_url=f"{my_url}/v1", api_key="none", max_retries=0) as client:
            said = await client.responses.create(model="m", input="Go.", store=True)
        async with openai.AsyncOpenAI(base_url=f"{their_url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.NotFoundError):
                await client.responses.create(model="m", input="On.", previous_response_id=said.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(said.id)
        for key in ("none", ""):
            async with openai.AsyncOpenAI(base_url=f"{host.origin}/v1", api_key=key or "x", max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError):
                    await client.responses.create(model="m", input="Go.")
        host.episodes.close(token)
        async with openai.AsyncOpenAI(base_url=f"{my_url}/v1", api_key=token, max_retries=0) as client:
            with pytest.raises(openai.NotFoundError):
                await client.responses.create(model="m", input="Go.")
    assert (len(mine.turns), len(theirs.turns)) == (1, 0)


async def test_a_limit_that_is_reached_is_said_once_and_no_client_asks_again() -> None:
    async with hosting(policy := scripted(["Yes."])) as host:
        scribe, url = opened(host, max_turns=1)
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=3) as gpt,
            anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=3) as claude,
        ):
            await gpt.chat.completions.create(model="m", messages=ASK)
            for _ in range(2):
                with pytest.raises(openai.PermissionDeniedError, match=r"max_turns \(1 model calls\)"):
                    await gpt.chat.completions.create(model="m", messages=[*ASK, ALSO])
            with pytest.raises(anthropic.PermissionDeniedError, match="max_turns"):
                await claude.messages.create(model="m", messages=ASK, max_tokens=9)
            with pytest.raises(anthropic.PermissionDeniedError, match="max_turns"):
                async with claude.messages.stream(model="m", messages=ASK, max_tokens=9) as events:
                    await events.get_final_message()
    assert (len(policy.prompts), scribe.stop) == (1, StopReason.MAX_TURNS)


@pytest.mark.parametrize("asked", [None, 5])
async def test_what_may_be_sampled_is_what_the_episode_has_left(asked: int | None) -> None:
    async with hosting(policy := scripted(["one two three four five six seven eight nine ten"])) as host:
        scribe, url = opened(host, max_tokens=20, turn_tokens=14)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            for _ in range(2):
                await client.chat.completions.create(model="m", messages=ASK, max_tokens=asked)
    assert [prompt.max_tokens for prompt in policy.prompts] == ([14, 6] if asked is None else [5, 5])
    assert sum(turn.completion.num_sampled for turn in scribe.turns) == (20 if asked is None else 10)
