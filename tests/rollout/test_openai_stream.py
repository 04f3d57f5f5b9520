"""A model call that is listened to over HTTP: the same completion as one that is not, against a server on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from fakes import ADD, TEMPLATE
from hypothesis import given
from hypothesis import strategies as st

from rollout.config import OpenAIConfig
from rollout.errors import ResourceDown, Unavailable
from rollout.openai_policy import OpenAIPolicy
from rollout.openai_stream import AnswerStream, Events
from rollout.openai_wire import Refused
from rollout.scripted_endpoint import Behaviour, ScriptedEndpoint
from rollout.streaming import Delta, sampled
from rollout.trajectory import Completion, Prompt, Sampling, ToolSpec

PATIENCE = 20.0
LINES = (f"<think>One,\n two.</think>\n Well. {ADD[29:]}\nand {ADD[29:]}", "Fertig: é😀 .", ADD)
TOOLS = (ToolSpec("add", "Add.", {"type": "object", "properties": {"amount": {"type": "integer"}}}),)


@asynccontextmanager
async def served(
    behaviour: Behaviour | None = None, **config: Any
) -> AsyncIterator[tuple[OpenAIPolicy, ScriptedEndpoint]]:
    async with ScriptedEndpoint(TEMPLATE, LINES, behaviour) as endpoint:
        policy = OpenAIPolicy(OpenAIConfig(engine="openai", base_url=endpoint.url, name="scripted", **config))
        try:
            yield policy, endpoint
        finally:
            await policy.aclose()


def asked(tokens: bool, turn: int = 0, max_tokens: int = 256, seconds: float = PATIENCE) -> Prompt:
    messages: list[Any] = [{"role": "user", "content": "Add."}]
    messages += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "more"}] * turn
    ids = TEMPLATE.opening(messages, TOOLS) if tokens else ()
    return Prompt("e.1.0", "e", turn, ids, messages, TOOLS, max_tokens, Sampling(), seconds)


def plainly(completion: Completion) -> Completion:
    """Without what the endpoint guesses from the length of a request that it has not rendered."""
    ids, logprobs = completion.ids, completion.logprobs
    counted = completion.prompt_tokens if ids is not None else None
    return replace(completion, ids=ids and list(ids), logprobs=logprobs and list(logprobs), prompt_tokens=counted)


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "chat"])
@pytest.mark.parametrize("token_ids", [True, False], ids=["ids", "no ids"])
@pytest.mark.parametrize("reasoning_field", ["reasoning", "reasoning_content"])
async def test_a_streamed_completion_is_the_one_that_comes_whole(
    tokens: bool, token_ids: bool, reasoning_field: str
) -> None:
    if tokens and not token_ids:
        return  # refused, streamed or not
    for piece in (1, 3, 1000):
        behaviour = Behaviour(piece=piece, token_ids=token_ids, reasoning_field=reasoning_field)
        async with served(behaviour) as (policy, _):
            for turn in range(3):
                for most in (256, 7):
                    prompt, heard = asked(tokens, turn, most), list[Delta]()
                    streamed = await policy.stream(prompt, heard.append)
                    assert plainly(streamed) == plainly(await policy.complete(prompt))
                    if token_ids:
                        assert [number for one in heard for number in one.ids] == list(streamed.ids or ())
                    if not tokens and streamed.message is not None:
                        assert "".join(one.content for one in heard) == streamed.message["content"]
                        thought = streamed.message.get("reasoning_content", "")
                        assert "".join(one.reasoning for one in heard) == thought


async def test_who_does_not_listen_asks_for_no_stream() -> None:
    async with served(Behaviour(piece=1)) as (policy, endpoint):
        completion = await sampled(policy, asked(tokens=True), None)
        assert completion.ids
        assert endpoint.requests == 1


async def test_a_client_that_goes_away_ends_the_generation() -> None:
    async with served(Behaviour(latency_seconds=PATIENCE * 10)) as (policy, endpoint):
        begun = asyncio.Event()
        task = asyncio.create_task(policy.stream(asked(tokens=True), lambda _: begun.set()))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(endpoint.left.wait(), PATIENCE)


async def test_an_answer_that_breaks_off_is_asked_for_again_only_if_nothing_was_heard() -> None:
    heard: list[Delta] = []
    async with served(Behaviour(breaks_after=4), retries=2) as (policy, endpoint):
        with pytest.raises(ResourceDown) as caught:
            await policy.stream(asked(tokens=True), heard.append)
        assert not isinstance(caught.value, Unavailable)
        assert len(heard) == 4
        assert endpoint.requests == 1
    async with served(Behaviour(breaks_after=0), retries=2) as (policy, endpoint):
        with pytest.raises(Unavailable):
            await policy.stream(asked(tokens=True), heard.append)
        assert endpoint.requests == 3


async def test_a_stream_that_stalls_is_ended_by_the_deadline_of_its_call() -> None:
    async with served(Behaviour(latency_seconds=PATIENCE * 100)) as (policy, _):
        with pytest.raises(TimeoutError):
            await policy.stream(asked(tokens=True, seconds=0.3), lambda _: None)


async def test_a_server_that_answers_whole_is_taken_at_its_word() -> None:
    body = {"choices": [{"message": {"content": "all of it"}, "finish_reason": "stop"}]}

    async def whole(request: web.Request) -> web.Response:
        assert (await request.json())["stream"] is True
        return web.json_response(body)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", whole)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        policy = OpenAIPolicy(OpenAIConfig(engine="openai", base_url=url, name="x"))
        heard: list[Delta] = []
        completion = await policy.stream(asked(tokens=False), heard.append)
        await policy.aclose()
    finally:
        await runner.cleanup()
    assert completion.message == {"role": "assistant", "content": "all of it"}
    assert heard == []


EVENTS = (
    b': ping\r\n\r\nevent: tool_call_dispatch\ndata: {"index": 0}\n\ndata: a\ndata:b\n\nevent: message\ndata: c\n\n'
)


@given(st.lists(st.integers(0, len(EVENTS)), max_size=8))
def test_events_are_read_however_their_bytes_come(places: list[int]) -> None:
    ends = [*sorted(places), len(EVENTS)]
    events = Events()
    found = [one for start, end in zip([0, *ends], ends, strict=False) for one in events.feed(EVENTS[start:end])]
    assert found == [b"a\nb", b"c"]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b'data: {"error": {"message": "out of memory"}}\n\n', Unavailable),
        (b"data: <html>\n\n", Refused),
        (b'data: {"choices": [{"token_ids": [1]}]}\n\ndata: [DONE]\n\n', Unavailable),
    ],
)
def test_what_is_no_answer_is_an_error(said: bytes, error: type[Exception]) -> None:
    stream = AnswerStream(lambda _: None)
    with pytest.raises(error):
        stream.feed(said)
        stream.answer()
