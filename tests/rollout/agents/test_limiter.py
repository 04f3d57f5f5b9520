"""Clients of one process under limits, on a real event loop."""

from __future__ import annotations

import asyncio
import time
from array import array
from typing import Any

import pytest

from rollout.agents.limiter import LocalLimiter, Permit, most_tokens, tokens_taken
from rollout.agents.rates import Rate, Rates
from rollout.trajectory import Completion, FinishReason, Message, Prompt, Sampling


def limiter(**bounds: Any) -> LocalLimiter:
    return LocalLimiter(Rates({"m": Rate(**bounds)}, time.monotonic()))


async def waiting(limits: LocalLimiter, seconds: float = 60.0) -> asyncio.Task[Permit]:
    task = asyncio.create_task(limits.acquire("m", 0, seconds))
    await asyncio.sleep(0)
    return task


async def test_a_model_without_a_limit_is_not_waited_for() -> None:
    permit = await limiter(rps=0.001).acquire("other", 10, 0.0)
    assert permit.waited < 60


async def test_clients_start_in_the_order_of_asking_and_within_the_rate() -> None:
    limits, began, order = limiter(rps=200, burst=1), time.monotonic(), list[int]()

    async def call(number: int) -> None:
        limits.settle(await limits.acquire("m", 0, 60.0), 0)
        order.append(number)
        assert len(order) <= 1 + 200 * (time.monotonic() - began) + 0.001

    await asyncio.gather(*(call(number) for number in range(20)))
    assert order == list(range(20))


async def test_the_end_of_a_call_lets_the_next_one_start() -> None:
    limits = limiter(max_concurrency=1)
    first = await limits.acquire("m", 0, 60.0)
    second, third = await waiting(limits), await waiting(limits)
    limits.settle(first, 0)
    permit = await second
    assert not third.done()
    limits.settle(permit, 0)
    limits.settle(permit, 0)  # once more changes nothing
    await third


async def test_invariant_5_who_does_not_get_a_turn_in_time_is_told_and_leaves_the_queue() -> None:
    limits = limiter(max_concurrency=1)
    first = await limits.acquire("m", 0, 60.0)
    with pytest.raises(TimeoutError, match=r"m: rate limit: its turn did not come within 0\.0 s"):
        await limits.acquire("m", 0, 0.01)
    third = await waiting(limits)
    limits.settle(first, 0)
    await third


async def test_who_is_cancelled_leaves_the_queue_also_in_the_moment_of_its_turn() -> None:
    limits = limiter(max_concurrency=1)
    first = await limits.acquire("m", 0, 60.0)
    left, late, last = await waiting(limits), await waiting(limits), await waiting(limits)
    left.cancel()
    await asyncio.sleep(0)
    limits.settle(first, 0)  # it is the turn of `late` now, who does not know yet
    late.cancel()
    await last
    assert left.cancelled() and late.cancelled()


async def test_a_permit_that_nobody_settles_is_taken_back() -> None:
    limits = limiter(max_concurrency=1)
    await limits.acquire("m", 0, 0.01)
    await limits.acquire("m", 0, 60.0)


def prompt(ids: int = 0, text: str = "") -> Prompt:
    messages: list[Message] = [{"role": "user", "content": text}]
    return Prompt("e.1.0", "e", 0, array("i", [1] * ids), messages, (), 100, Sampling(), 60.0)


def test_a_call_reserves_its_prompt_and_all_it_may_sample() -> None:
    assert most_tokens(prompt(ids=50)) == 150
    assert most_tokens(prompt(text="x" * 41)) == 111, "four bytes a token, rounded up"


def test_a_call_took_what_the_endpoint_counts() -> None:
    told = Completion(FinishReason.STOP, prompt_tokens=7, sampled_tokens=3)
    assert tokens_taken(prompt(ids=50), told) == 10
    assert tokens_taken(prompt(ids=50), Completion(FinishReason.STOP, ids=array("i", [1, 2]))) == 52
    assert tokens_taken(prompt(ids=50), Completion(FinishReason.STOP)) is None
