"""The engine that needs no model: what it says is a function of the request alone."""

from __future__ import annotations

import asyncio
from array import array

import pytest

from actors.engine import GenerateRequest, ScriptedEngine, pack_ids, unpack_ids
from rollout.load import Load
from rollout.trajectory import FinishReason, Sampling, VersionSpan

LINES = [[1, 2, 3], [4, 5]]


def request(turn: int = 0, max_tokens: int = 16, session: str = "episode") -> GenerateRequest:
    return GenerateRequest("request", session, turn, pack_ids([7, 8]), max_tokens, Sampling())


def engine(latency: float = 0.0, spread: float = 0.0, seed: int = 0) -> ScriptedEngine:
    return ScriptedEngine(LINES, latency, spread, seed)


async def test_says_the_line_of_its_turn_and_repeats_the_last() -> None:
    said = [unpack_ids((await engine().generate(request(turn))).ids).tolist() for turn in range(4)]
    assert said == [[1, 2, 3], [4, 5], [4, 5], [4, 5]]


async def test_counts_agree() -> None:
    reply = await engine().generate(request())
    assert reply.finish_reason is FinishReason.STOP
    assert array("f", reply.logprobs).tolist() == [0.0, 0.0, 0.0]
    assert reply.prompt_tokens == 2
    assert reply.versions == (VersionSpan("scripted", 0, 3),)


async def test_a_cut_line_says_so() -> None:
    reply = await engine().generate(request(max_tokens=2))
    assert unpack_ids(reply.ids).tolist() == [1, 2]
    assert reply.finish_reason is FinishReason.LENGTH
    assert reply.versions == (VersionSpan("scripted", 0, 2),)


async def test_equal_requests_give_equal_replies() -> None:
    first = await engine(latency=0.001, spread=1.0).generate(request())
    assert first == await engine(latency=0.001, spread=1.0).generate(request())


async def test_a_cancelled_completion_ends_at_once() -> None:
    slow = engine(latency=3600.0)
    task = asyncio.create_task(slow.generate(request()))
    await asyncio.sleep(0)
    assert slow.load() == Load(running=1, waiting=0, kv_usage=0.0, preemptions=0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.load().running == 0


@pytest.mark.parametrize("ids", [[], [0], [2**31 - 1, 0, 151_643]])
def test_ids_survive_packing(ids: list[int]) -> None:
    assert unpack_ids(pack_ids(ids)).tolist() == ids
    assert len(pack_ids(ids)) == 4 * len(ids)
