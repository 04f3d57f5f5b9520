"""The policy over real Serve replicas: where turns go, and what becomes of them when a replica dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle, serve

from actors.engine import EngineFactory, GenerateReply, GenerateRequest, ScriptedEngine, Told
from actors.model import deploy, undeploy
from actors.served_policy import BACKOFF_SECONDS, ServedPolicy
from rollout.config import RoutingConfig, validate
from rollout.errors import ResourceDown, Unavailable
from rollout.serving.routing import Router
from rollout.trajectory import Completion, FinishReason, Prompt, Sampling, VersionSpan

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import this file

pytestmark = pytest.mark.ray

LINES = [[1, 2, 3], [4, 5]]
REFUSED = 99
"""A turn that the engine never takes."""


class Traced(ScriptedEngine):
    """Tells its process in `cached_tokens`."""

    async def generate(self, request: GenerateRequest, told: Told | None = None) -> GenerateReply:
        if request.turn == REFUSED:
            raise Unavailable("not now")
        reply = await super().generate(request, told)
        return GenerateReply(reply.ids, reply.logprobs, reply.finish_reason, reply.versions, 3, os.getpid())


class Mortal(Traced):
    """Dies of the first turn it gets, and lets its successors live."""

    def __init__(self, sign: Path) -> None:
        super().__init__(LINES, 0.0, 0.0, 0)
        self._sign = sign
        self._dead = False

    async def generate(self, request: GenerateRequest, told: Told | None = None) -> GenerateReply:
        if request.session_id and not self._sign.exists():
            self._sign.touch()
            self._dead = True
        if self._dead:
            raise RuntimeError("the engine's process is gone")
        return await super().generate(request, told)

    async def check_health(self) -> None:
        if self._dead:
            raise RuntimeError("the engine's process is gone")


def prompt(session: str, turn: int = 0, seconds: float = 60.0) -> Prompt:
    return Prompt(f"{session}-{turn}", session, turn, [7, 8, 9], (), (), 16, Sampling(), seconds)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    serve.shutdown()
    ray.shutdown()


async def all_heard_of(handle: Any, replicas: int) -> None:
    """Serve tells this process of replicas, maybe of one after the other: until then one stands in for another."""
    found, number = set[str](), 0
    async with asyncio.timeout(60):
        while replicas > 1 and len(found) < replicas:
            policy = ServedPolicy(handle, replicas)
            number += 1
            asked = [policy.complete(prompt(f"first-{number}-{each}")) for each in range(2 * replicas)]
            found = {completion.replica for completion in await asyncio.gather(*asked)}


@asynccontextmanager
async def served(replicas: int, new_engine: EngineFactory) -> AsyncIterator[ServedPolicy]:
    model = {"engine": "scripted", "turns": ["unused"], "replicas": replicas, "cpus_per_replica": 0.5}
    raw = {"run": {"dir": "unused"}, "model": {**model, "drain_seconds": 1}, "resource": {"name": "counter"}}
    handle = await deploy(validate(raw, "test"), "app", new_engine)
    try:
        await all_heard_of(handle, replicas)
        yield ServedPolicy(handle, replicas, router=Router(RoutingConfig(uneven=0)))
    finally:
        await asyncio.to_thread(undeploy, "app")


async def test_a_reply_becomes_a_completion(cluster: None) -> None:
    async with served(1, partial(Traced, LINES, 0.0, 0.0, 0)) as policy:
        completion = await policy.complete(prompt("one"))
    assert isinstance(completion, Completion)
    assert list(completion.ids or ()) == LINES[0]
    assert list(completion.logprobs or ()) == [0.0, 0.0, 0.0]
    assert completion.finish_reason is FinishReason.STOP
    assert completion.versions == (VersionSpan("scripted", 0, 3),)
    assert completion.prompt_tokens == 3
    assert completion.replica


async def test_slots_are_balanced_and_turns_stay(cluster: None) -> None:
    names = [f"run-{number}" for number in range(12)]
    async with served(3, partial(Traced, LINES, 0.01, 0.0, 0)) as policy:
        turns = [await asyncio.gather(*[policy.complete(prompt(name, turn)) for name in names]) for turn in range(3)]
        loads = policy.loads()
    places = [[completion.replica for completion in turn] for turn in turns]
    assert set(loads) == set(places[0]), "each replica has told of its engine"
    assert {load.waiting for load in loads.values()} == {0}
    assert places[0] == places[1] == places[2]
    assert sorted(Counter(places[0]).values()) == [4, 4, 4]


async def test_turns_of_a_killed_replica_are_sampled_elsewhere(cluster: None) -> None:
    names = [f"run-{number}" for number in range(16)]
    async with served(2, partial(Traced, LINES, 0.5, 0.0, 0)) as policy:
        before = await asyncio.gather(*[policy.complete(prompt(name)) for name in names])
        killed = before[0]
        turns = [asyncio.create_task(policy.complete(prompt(name, 1))) for name in names]
        await asyncio.sleep(0.2)
        os.kill(int(killed.cached_tokens or 0), signal.SIGKILL)
        during = await asyncio.gather(*turns)
        assert [list(completion.ids or ()) for completion in during] == [LINES[1]] * len(names)
        assert killed.replica not in {completion.replica for completion in during}
        deadline = time.monotonic() + 60
        after = before
        while killed.replica in (places := {completion.replica for completion in after}) or len(places) < 2:
            assert time.monotonic() < deadline, "Serve has not replaced the replica"
            after = await asyncio.gather(*[policy.complete(prompt(f"{name}-{time.monotonic()}")) for name in names])
    kept = [(a.replica, b.replica) for a, b in zip(before, during, strict=True) if a.replica != killed.replica]
    assert all(a == b for a, b in kept), "only the sessions of the killed replica move"
    assert len(kept) == 8


async def test_a_replica_with_a_dead_engine_is_replaced_and_its_turns_asked_again(
    cluster: None, tmp_path: Path
) -> None:
    sign = tmp_path / "died"
    async with served(1, partial(Mortal, sign)) as policy:
        turns = await asyncio.gather(*[policy.complete(prompt(f"run-{number}")) for number in range(4)])
    assert sign.exists()
    assert [list(completion.ids or ()) for completion in turns] == [LINES[0]] * 4


async def test_it_gives_up_after_a_few_tries(cluster: None) -> None:
    async with served(1, partial(Traced, LINES, 0.0, 0.0, 0)) as policy:
        with pytest.raises(ResourceDown, match=f"not now; asked {len(BACKOFF_SECONDS) + 1} times"):
            await policy.complete(prompt("one", REFUSED))
        with pytest.raises(ResourceDown, match=r"not now; asked 1 time$"):
            await policy.complete(prompt("one", REFUSED, seconds=BACKOFF_SECONDS[0] / 2))
