"""Where replicas are put: on a simulated cluster whose GPUs exist in name only, with engines that need none."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import ray
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from actors.cluster import new_host
from actors.engine import EngineFactory, ScriptedEngine
from actors.model import deploy, undeploy
from actors.placement import Ask
from rollout.config import CHECKOUT, JobConfig, ResourceConfig, VllmConfig, load
from rollout.errors import UserError

NODES, GPUS = 8, 8
SPEAKING: EngineFactory = partial(ScriptedEngine, [[1, 2, 3]], 0.0, 0.0, 0)


def multi_node(*overrides: str) -> JobConfig:
    """The shipped job with CPUs that a simulated node has: Ray starts a process for each one it is told of."""
    return load(CHECKOUT / "multi_node.yaml", ["model.cpus_per_replica=0.05", "model.drain_seconds=1", *overrides])


def node(gpus: float, cpus: float) -> dict[str, float]:
    return {"GPU": gpus, "CPU": cpus, "memory": 1e9}


def test_a_replica_with_one_worker_needs_no_group() -> None:
    assert Ask.of(VllmConfig(cpus_per_replica=4, gpus_per_replica=1)).options([node(8, 64)]) == {
        "ray_actor_options": {"num_cpus": 4, "num_gpus": 1}
    }


def test_workers_without_gpus_share_the_replicas_process() -> None:
    options = Ask.of(VllmConfig(cpus_per_replica=2, tensor_parallel=2)).options([])
    assert options == {"ray_actor_options": {"num_cpus": 4, "num_gpus": 0}}


@pytest.mark.parametrize(
    ("nodes", "strategy"),
    [
        ([node(8, 64)], "STRICT_PACK"),
        ([node(2, 64), node(4, 8)], "STRICT_PACK"),
        ([node(2, 64), node(2, 64)], "PACK"),
        ([node(8, 4)], "PACK"),
        ([], "PACK"),
    ],
)
def test_workers_share_a_node_where_one_is_large_enough(nodes: list[dict[str, float]], strategy: str) -> None:
    config = VllmConfig(cpus_per_replica=2, gpus_per_replica=1, tensor_parallel=2, pipeline_parallel=2)
    options = Ask.of(config).options(nodes)
    assert options["placement_group_strategy"] == strategy
    assert options["placement_group_bundles"] == [{"CPU": 2, "GPU": 1}] * 4


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({}, "1 replica of 1 CPU"),
        ({"replicas": 2, "cpus_per_replica": 0.5}, "2 replicas of 0.5 CPUs each"),
        (
            {"replicas": 16, "gpus_per_replica": 1, "tensor_parallel": 4, "cpus_per_replica": 2},
            "16 replicas of 4 workers of 2 CPUs and 1 GPU each",
        ),
    ],
)
def test_what_is_asked_for_in_words(section: dict[str, Any], told: str) -> None:
    assert str(Ask.of(VllmConfig.model_validate(section))) == told


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    simulated = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
    for _ in range(NODES):
        simulated.add_node(num_cpus=1, num_gpus=GPUS, object_store_memory=80_000_000)
    ray.init(address=simulated.address, log_to_driver=False, logging_level=logging.ERROR)
    yield simulated
    serve.shutdown()
    ray.shutdown()
    simulated.shutdown()


def groups() -> list[dict[str, Any]]:
    """Placement groups that are in force."""
    return [group for group in placement_group_table().values() if group["state"] == "CREATED"]


@pytest.mark.ray
@pytest.mark.timeout(400)
async def test_sixteen_replicas_of_four_gpus_on_eight_nodes(cluster: Cluster) -> None:
    await deploy(multi_node(), "many", SPEAKING)
    try:
        placed = groups()
    finally:
        await asyncio.to_thread(undeploy, "many")
    assert len(placed) == 16
    assert all(list(group["bundles"].values()) == [{"CPU": 0.05, "GPU": 1.0}] * 4 for group in placed)
    assert all(group["strategy"] == "STRICT_PACK" for group in placed)
    homes = [set(group["bundles_to_node_id"].values()) for group in placed]
    assert all(len(home) == 1 for home in homes), "a replica is split over nodes"
    assert Counter(node for home in homes for node in home).most_common()[-1][1] == 2


@pytest.mark.ray
@pytest.mark.timeout(400)
async def test_a_replica_larger_than_a_node_is_packed_over_two(cluster: Cluster) -> None:
    await deploy(
        multi_node("model.tensor_parallel=8", "model.pipeline_parallel=2", "model.replicas=1"), "large", SPEAKING
    )
    try:
        placed = groups()
    finally:
        await asyncio.to_thread(undeploy, "large")
    assert [group["strategy"] for group in placed] == ["PACK"]
    assert len(set(placed[0]["bundles_to_node_id"].values())) == 2


@pytest.mark.ray
@pytest.mark.timeout(400)
async def test_hosts_are_spread_over_nodes(cluster: Cluster) -> None:
    """All three would fit on the first one."""
    hosts = [new_host(ResourceConfig(name="counter", cpus_per_host=0.05)) for _ in range(3)]
    try:
        offers = await asyncio.gather(*(host.offer.remote() for host in hosts))
        homes = {host._actor_id.hex(): actors(host._actor_id.hex())["Address"]["NodeID"] for host in hosts}
    finally:
        for host in hosts:
            ray.kill(host)
    assert [offer.name for offer in offers] == ["counter"] * 3
    assert len(set(homes.values())) == 3


@pytest.mark.ray
@pytest.mark.timeout(400)
async def test_too_few_gpus_are_named_node_by_node(cluster: Cluster) -> None:
    config = multi_node("model.tensor_parallel=16", "model.replicas=5", "scheduler.start_seconds=5")
    with pytest.raises(UserError) as caught:
        await deploy(config, "wide", SPEAKING)
    line = str(caught.value)
    assert line.startswith("model.replicas: asked for 5 replicas of 16 workers of 0.05 CPUs and 1 GPU each; after 5 s ")
    assert "of 8 GPUs free" in line
    assert line.endswith("3 more nodes")
    assert "\n" not in line
