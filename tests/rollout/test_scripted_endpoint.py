"""The scripted endpoint, as foreign clients see it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest

from rollout.scripted import encode_lines
from rollout.scripted_endpoint import Behaviour, ScriptedEndpoint, logprob
from rollout.template import BUNDLED, load_template
from rollout.trajectory import Message

TEMPLATE = load_template(BUNDLED)
CALL = '<think>add it</think>\n<tool_call>\n{"name": "add", "arguments": {"amount": 2}}\n</tool_call>'
LINES = (CALL, "The total is 2.", "Still 2.")
ASKED: list[Message] = [{"role": "user", "content": "Add 2."}]


@asynccontextmanager
async def client(behaviour: Behaviour | None = None, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        ScriptedEndpoint(TEMPLATE, LINES, behaviour) as endpoint,
        openai.AsyncOpenAI(base_url=endpoint.url, api_key=key, max_retries=0) as made,
    ):
        yield made


async def chat(made: openai.AsyncOpenAI, messages: list[Any], **options: Any) -> Any:
    return await made.chat.completions.create(model="scripted", messages=messages, **options)


async def test_the_official_client_plays_a_conversation() -> None:
    async with client() as made:
        messages: list[Any] = list(ASKED)
        answer = await chat(made, messages)
        call = answer.choices[0].message.tool_calls[0]
        assert answer.choices[0].finish_reason == "tool_calls"
        assert (call.function.name, call.function.arguments) == ("add", '{"amount": 2}')
        assert answer.choices[0].message.reasoning == "add it"
        assert answer.usage.completion_tokens == len(encode_lines(TEMPLATE, LINES)[0])
        messages += [answer.choices[0].message.model_dump(exclude_none=True)]
        messages += [{"role": "tool", "tool_call_id": call.id, "content": "2"}]
        for line in (*LINES[1:], LINES[-1]):
            answer = await chat(made, messages)
            assert answer.choices[0].message.content == line
            assert answer.choices[0].finish_reason == "stop"
            messages += [{"role": "assistant", "content": line}, {"role": "user", "content": "Sure?"}]


async def test_the_official_client_gets_ids_and_logprobs_when_it_asks() -> None:
    async with client() as made:
        told = await chat(made, list(ASKED), logprobs=True, extra_body={"return_token_ids": True})
        quiet = await chat(made, list(ASKED))
    ids = encode_lines(TEMPLATE, LINES)[0]
    assert told.choices[0].token_ids == ids
    assert told.prompt_token_ids == TEMPLATE.opening(ASKED, ())
    assert [entry.logprob for entry in told.choices[0].logprobs.content] == [logprob(at) for at in range(len(ids))]
    assert not hasattr(quiet.choices[0], "token_ids")
    assert quiet.choices[0].logprobs is None


async def test_tokens_go_in_and_out() -> None:
    said = encode_lines(TEMPLATE, LINES)
    async with client() as made:
        prompt = TEMPLATE.opening(ASKED, ())
        for ids in said:
            answer: Any = await made.completions.create(
                model="scripted", prompt=prompt, max_tokens=100, logprobs=0, extra_body={"return_token_ids": True}
            )
            choice = answer.choices[0]
            assert choice.token_ids == ids
            assert choice.prompt_token_ids == prompt
            assert choice.logprobs.token_logprobs == [logprob(at) for at in range(len(ids))]
            assert answer.usage.prompt_tokens == len(prompt)
            prompt += ids + TEMPLATE.continuation([{"role": "tool", "content": "2"}], ended=True)


async def test_a_turn_without_end_of_turn_counts_too() -> None:
    async with client() as made:
        cut = encode_lines(TEMPLATE, LINES)[0][:4]
        follow = TEMPLATE.continuation([{"role": "user", "content": "Go on."}], ended=False)
        prompt = TEMPLATE.opening(ASKED, ()) + cut + follow
        answer = await made.completions.create(model="scripted", prompt=prompt, max_tokens=100)
    assert answer.choices[0].text == LINES[1]


async def test_max_tokens_cuts() -> None:
    async with client() as made:
        answer = await chat(made, list(ASKED), max_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 4
    assert answer.choices[0].message.tool_calls is None


async def test_models_are_listed() -> None:
    async with client() as made:
        assert [model.id async for model in made.models.list()] == ["scripted"]


async def test_every_so_many_fail() -> None:
    async with client(Behaviour(fail_every=3, fail_status=503, retry_after="7")) as made:
        for _ in range(2):
            await chat(made, list(ASKED))
            await chat(made, list(ASKED))
            with pytest.raises(openai.InternalServerError) as error:
                await chat(made, list(ASKED))
            assert error.value.status_code == 503
            assert error.value.response.headers["retry-after"] == "7"


async def test_the_official_client_reads_a_stream() -> None:
    async with client(Behaviour(piece=2)) as made:
        whole = (await chat(made, list(ASKED))).choices[0].message
        chunks = [chunk async for chunk in await chat(made, list(ASKED), stream=True)]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == whole.content
    assert "".join(getattr(delta, "reasoning", "") for delta in deltas) == whole.reasoning
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.id for call in calls if call.id] == [call.id for call in whole.tool_calls]
    assert "".join(call.function.arguments for call in calls) == whole.tool_calls[0].function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_refusals() -> None:
    async with client(Behaviour(api_key="right"), key="wrong") as made:
        with pytest.raises(openai.AuthenticationError):
            await chat(made, list(ASKED))
    async with client(Behaviour(strict=True)) as made:
        with pytest.raises(openai.BadRequestError, match="return_token_ids"):
            await chat(made, list(ASKED), extra_body={"return_token_ids": True})
    async with client(Behaviour(context=8)) as made:
        with pytest.raises(openai.BadRequestError, match="maximum context length is 8"):
            await chat(made, list(ASKED))
    async with client() as made:
        with pytest.raises(openai.NotFoundError, match="there is no POST /v1/embeddings"):
            await made.embeddings.create(model="scripted", input="x")


async def test_what_is_no_request_is_a_400() -> None:
    async with ScriptedEndpoint(TEMPLATE, LINES) as endpoint, aiohttp.ClientSession() as session:
        for path, body in (
            ("chat/completions", b"{"),
            ("chat/completions", b"{}"),
            ("completions", b'{"prompt": []}'),
            ("completions", b'{"messages": 3}'),
        ):
            async with session.post(f"{endpoint.url}/{path}", data=body) as answer:
                assert answer.status == 400, (path, body)


async def test_latencies_follow_from_the_seed() -> None:
    slow = Behaviour(latency_seconds=0.001, latency_spread=0.5, seed=3)
    async with client(slow) as made:
        answers = await asyncio.gather(*(chat(made, list(ASKED)) for _ in range(8)))
    assert len({answer.choices[0].message.reasoning for answer in answers}) == 1


async def test_the_command_says_where_it_is() -> None:
    command = ("-m", "rollout.scripted_endpoint", "--port", "0", "--lines", "hello", "bye")
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
            assert (await chat(made, list(ASKED))).choices[0].message.content == "hello"
    finally:
        process.terminate()
        await process.wait()
