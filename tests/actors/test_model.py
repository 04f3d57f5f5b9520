"""The model's deployment: real Ray Serve, engines that need no model."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import ray
from ray import cloudpickle, serve

from actors.courier import Courier
from actors.engine import Engine, GenerateReply, GenerateRequest, ScriptedEngine, Told, pack_ids, unpack_ids
from actors.model import ModelReplica, deploy, engine_factory, undeploy
from rollout.config import JobConfig, validate
from rollout.errors import RolloutError, Unavailable, UserError
from rollout.load import Load
from rollout.template import BUNDLED, load_template
from rollout.trajectory import Sampling

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import this file

LINES = [[1, 2, 3], [4, 5]]
FOR_EVER = 99
"""A turn that `Gauge` never answers."""


class Gauge(ScriptedEngine):
    """Tells in `cached_tokens` how many completions were at work at once, at most."""

    def __init__(self) -> None:
        super().__init__(LINES, 0.05, 0.0, 0)
        self._now = self._most = self.asked = 0

    async def generate(self, request: GenerateRequest, told: Told | None = None) -> GenerateReply:
        self.asked += 1
        self._now += 1
        self._most = max(self._most, self._now)
        try:
            if request.turn == FOR_EVER:
                await asyncio.Event().wait()
            reply = await super().generate(request, told)
        finally:
            self._now -= 1
        return GenerateReply(reply.ids, reply.logprobs, reply.finish_reason, reply.versions, 2, self._most)


def job(start_seconds: float = 60.0, **model: Any) -> JobConfig:
    section = {"engine": "scripted", "turns": ["hello"], "cpus_per_replica": 0.5, "drain_seconds": 1, **model}
    raw = {"run": {"dir": "unused"}, "model": section, "resource": {"name": "counter"}}
    return validate({**raw, "scheduler": {"start_seconds": start_seconds}}, "test")


def request(turn: int = 0) -> GenerateRequest:
    return GenerateRequest("request", "episode", turn, pack_ids([7, 8]), 16, Sampling())


def courier(handle: Any) -> Courier:
    return Courier(handle.options(session_id="0").exchange.remote, "model")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    serve.shutdown()
    ray.shutdown()


def raising(error: Exception) -> Engine:
    raise error


@pytest.mark.ray
async def test_a_replica_says_what_its_engine_says(cluster: None) -> None:
    config = job(turns=["hello", "bye"])
    handle = await deploy(config, "says")
    try:
        ask = courier(handle).ask
        replies = await asyncio.gather(*[ask(request(turn)) for turn in (0, 1, 2)])
    finally:
        await asyncio.to_thread(undeploy, "says")
    template = load_template(BUNDLED)
    assert [template.decode(unpack_ids(reply.ids)) for reply in replies] == ["hello", "bye", "bye"]
    assert all(reply.replica for reply in replies)


@pytest.mark.ray
async def test_no_more_than_max_in_flight_reach_the_engine(cluster: None) -> None:
    handle = await deploy(job(max_in_flight=3), "bound", Gauge)
    try:
        ask = courier(handle).ask
        replies = await asyncio.gather(*[ask(request()) for _ in range(12)])
    finally:
        await asyncio.to_thread(undeploy, "bound")
    assert max(reply.cached_tokens for reply in replies) == 3
    assert max(reply.queue_seconds for reply in replies) > 0


@pytest.mark.ray
async def test_cancelling_frees_the_place(cluster: None) -> None:
    handle = await deploy(job(max_in_flight=1), "cancel", Gauge)
    try:
        post = courier(handle)
        stuck = asyncio.create_task(post.ask(request(FOR_EVER)))
        waiting = asyncio.create_task(post.ask(request()))
        done, _ = await asyncio.wait([stuck, waiting], timeout=1.0)
        assert not done
        stuck.cancel()
        async with asyncio.timeout(30):
            assert unpack_ids((await waiting).ids).tolist() == LINES[0]
    finally:
        await asyncio.to_thread(undeploy, "cancel")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("raised", "expected", "told"),
    [
        (UserError("model.path: x: no config.json in it"), UserError, "model.path: x: no config.json in it"),
        (ValueError("no luck\nat all"), RolloutError, "model: no replica could start: ValueError: no luck"),
        (RolloutError("the engine broke"), RolloutError, "model: no replica could start: the engine broke"),
    ],
)
async def test_a_replica_that_cannot_start_says_why_in_one_line(
    cluster: None, raised: Exception, expected: type[RolloutError], told: str
) -> None:
    with pytest.raises(RolloutError) as caught:
        await deploy(job(), "fails", partial(raising, raised))
    assert type(caught.value) is expected
    assert str(caught.value) == told


@pytest.mark.ray
async def test_too_few_cpus_are_named(cluster: None) -> None:
    with pytest.raises(UserError) as caught:
        await deploy(job(start_seconds=2, replicas=3, cpus_per_replica=2.5), "wide")
    line = str(caught.value)
    assert line.startswith("model.replicas: asked for 3 replicas of 2.5 CPUs each; after 2 s ")
    assert line.endswith(" of 4 CPUs free")
    assert "\n" not in line


@pytest.mark.ray
async def test_a_name_can_be_used_again(cluster: None) -> None:
    with pytest.raises(RolloutError, match="no luck"):
        await deploy(job(), "again", partial(raising, ValueError("no luck")))
    handle = await deploy(job(), "again")
    try:
        assert (await courier(handle).ask(request())).replica
    finally:
        await asyncio.to_thread(undeploy, "again")


def plain(new_engine: Callable[[], Engine], drain_seconds: float) -> tuple[ModelReplica, Courier]:
    """A replica in this process."""
    replica = ModelReplica(new_engine, 4, drain_seconds)
    return replica, Courier(replica.exchange, "here")


async def test_draining_finishes_what_runs_and_refuses_the_rest() -> None:
    replica, post = plain(Gauge, drain_seconds=30)
    running = asyncio.create_task(post.ask(request()))
    await asyncio.sleep(0.02)
    drained = asyncio.create_task(replica.drain())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="shutting down"):
        await post.ask(request())
    await drained
    assert unpack_ids((await running).ids).tolist() == LINES[0]


async def test_draining_ends_when_its_time_is_up() -> None:
    replica, post = plain(Gauge, drain_seconds=0.05)
    stuck = asyncio.create_task(post.ask(request(FOR_EVER)))
    await asyncio.sleep(0.02)
    async with asyncio.timeout(30):
        await replica.drain()
    stuck.cancel()


async def test_its_load_comes_home_with_the_trips_and_counts_those_before_the_engine() -> None:
    replica, _ = plain(lambda: ScriptedEngine(LINES, 3600.0, 0.0, 0), drain_seconds=0)
    post = Courier(replica.exchange, "here", hold_seconds=0.01)
    asked = [asyncio.create_task(post.ask(request())) for _ in range(6)]
    async with asyncio.timeout(30):
        while (told := post.take_status()) is None or not told[1].running:  # noqa: ASYNC110 - trips tell nobody
            await asyncio.sleep(0.001)
    assert told == ("local", Load(running=4, waiting=2, kv_usage=0.0, preemptions=0))
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    draining = asyncio.create_task(replica.drain())
    await asyncio.sleep(0)
    post.take_status()
    with pytest.raises(Unavailable):
        await post.ask(request())
    assert post.take_status() is None, "an engine that is being stopped is not asked"
    await draining


async def test_it_is_warm_after_the_first_health_check() -> None:
    engine = Gauge()
    replica, _ = plain(lambda: engine, drain_seconds=1)
    for _ in range(3):
        await replica.check_health()
    assert engine.asked == 1


def test_scripted_lines_end_the_turn() -> None:
    engine = engine_factory(job(turns=["hello"]))()
    reply = asyncio.run(engine.generate(request()))
    assert unpack_ids(reply.ids)[-1] in load_template(BUNDLED).eos_ids
