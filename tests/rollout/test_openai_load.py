"""The load a vLLM server elsewhere publishes, read from a real server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from rollout import openai_load
from rollout.config import OpenAIConfig
from rollout.load import Load
from rollout.openai_load import EndpointLoad, read_load

# As vLLM 0.32 writes it, with two data-parallel ranks; shortened.
PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 9.5e-01
vllm:num_preemptions_total{engine="0",model_name="m"} 1.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
"""


def test_ranks_are_added_up_and_the_fullest_cache_counts() -> None:
    assert read_load(PAGE) == Load(running=7, waiting=2, kv_usage=0.95, preemptions=1)


def test_any_other_page_tells_nothing() -> None:
    assert read_load("<html>not found</html>") is None


@asynccontextmanager
async def published(
    page: str, prefix: str = "", tokenizer: str | None = "m"
) -> AsyncIterator[tuple[EndpointLoad, list[str]]]:
    """A server with a metrics page, and the paths it was asked for."""
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(text=page)

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}{prefix}/v1/"
    load = EndpointLoad(OpenAIConfig(engine="openai", base_url=base, name="m", tokenizer=tokenizer))
    try:
        yield load, asked
    finally:
        await load.aclose()
        await runner.cleanup()


async def told(load: EndpointLoad) -> dict[str, Load]:
    async with asyncio.timeout(30):
        while not (seen := load.take()):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)
    return seen


async def test_what_it_tells_is_taken_once_and_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_load, "ASK_SECONDS", 0.0)
    async with published(PAGE, prefix="/models/m") as (load, asked):
        assert list((await told(load)).values()) == [Load(7, 2, 0.95, 1)]
        assert load.take() == {}
        await told(load)
        assert set(asked) == {"/models/m/metrics"}
        assert len(asked) >= 2


async def test_a_server_without_such_a_page_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_load, "ASK_SECONDS", 0.0)
    async with published("something else") as (load, asked):
        for _ in range(50):
            assert load.take() == {}
            await asyncio.sleep(0.01)
        assert asked == ["/metrics"]


async def test_one_that_takes_no_token_ids_is_never_asked() -> None:
    async with published(PAGE, tokenizer=None) as (load, asked):
        load.take()
        await asyncio.sleep(0.05)
        assert asked == []
