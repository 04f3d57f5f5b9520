"""The limits of a run in their actor, asked from several processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
import ray

from actors.rates import SharedLimiter, new_rate_limits
from rollout.agents.limiter import Permit
from rollout.agents.rates import Rate
from rollout.errors import Unavailable

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Client:
    """A process that calls as often as it may."""

    def __init__(self, run_id: str, limits: dict[str, Rate]) -> None:
        self._limiter = SharedLimiter(new_rate_limits(run_id, limits), limits)

    async def started(self, count: int, seconds: float) -> int:
        """How many of so many calls started in time."""
        calls = [self._limiter.acquire("m", 0, seconds) for _ in range(count)]
        return sum(isinstance(one, Permit) for one in await asyncio.gather(*calls, return_exceptions=True))


def test_vector_4_several_processes_together_stay_within_the_bound() -> None:
    """Six at once and the seventh after minutes, whoever asks: the second client finds the actor of the first."""
    limits = {"m": Rate(rps=0.001, burst=6)}
    actor = new_rate_limits("bound", limits)
    clients = [Client.remote("bound", limits) for _ in range(2)]
    assert ray.get([client.started.remote(1, 60.0) for client in clients], timeout=90) == [1, 1]
    assert sum(ray.get([client.started.remote(6, 4.0) for client in clients], timeout=90)) == 4
    ray.kill(actor)


async def test_a_caller_that_leaves_frees_its_place_and_a_permit_comes_back() -> None:
    limits = {"m": Rate(max_concurrency=1)}
    actor = new_rate_limits("leaves", limits)
    limiter = SharedLimiter(actor, limits)
    first = await limiter.acquire("m", 0, 60.0)
    with pytest.raises(TimeoutError, match=r"m: rate limit: its turn did not come within 0\.2 s"):
        await limiter.acquire("m", 0, 0.2)
    waiting = asyncio.create_task(limiter.acquire("m", 0, 60.0))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    limiter.settle(first, 0)
    await limiter.acquire("m", 0, 60.0)
    ray.kill(actor)


async def test_an_actor_that_restarts_is_asked_again_and_begins_with_nothing() -> None:
    limits = {"m": Rate(rps=0.001, burst=100), "quick": Rate(rps=1000)}
    actor = new_rate_limits("restarts", limits)
    limiter = SharedLimiter(actor, limits)
    await limiter.acquire("m", 0, 60.0)
    ray.kill(actor, no_restart=False)
    await limiter.acquire("quick", 0, 60.0)  # it is there again
    with pytest.raises(TimeoutError):
        await limiter.acquire("m", 0, 0.5)
    ray.kill(actor)


async def test_an_actor_that_is_gone_is_unavailable_and_models_without_a_limit_do_not_care() -> None:
    limits = {"m": Rate(rps=1)}
    actor = new_rate_limits("gone", limits)
    limiter = SharedLimiter(actor, limits)
    await limiter.acquire("m", 0, 60.0)
    ray.kill(actor)
    with pytest.raises(Unavailable, match="rate limits: "):
        await limiter.acquire("m", 0, 3.0)
    assert await limiter.acquire("other", 0, 1.0) == Permit("")
    limiter.settle(Permit(""), 0)
