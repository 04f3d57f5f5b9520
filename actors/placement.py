"""What a job's replicas ask of a cluster, where they are put, and what a person is told when it is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node

from rollout.config import ReplicatedConfig, VllmConfig

Resources = Mapping[str, float]

SHOWN_NODES = 6
"""Nodes that are listed one by one in a message."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Replicas of so many workers each, and what one worker needs."""

    replicas: int
    workers: int
    cpus: float
    gpus: float

    @staticmethod
    def of(config: ReplicatedConfig) -> Ask:
        """What a model section asks for."""
        if not isinstance(config, VllmConfig):
            return Ask(config.replicas, 1, config.cpus_per_replica, 0.0)
        workers = config.tensor_parallel * config.pipeline_parallel
        return Ask(config.replicas, workers, config.cpus_per_replica, config.gpus_per_replica)

    @property
    def grouped(self) -> bool:
        """Workers are processes of their own, each with its GPU: they need a placement group. Workers without GPUs
        are threads or children of the replica's own process."""
        return self.workers > 1 and self.gpus > 0

    def fits(self, node: Resources) -> bool:
        """True when one node holds all workers of a replica."""
        return all(node.get(kind, 0.0) >= amount * self.workers for kind, amount in self.bundle.items())

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker needs, as Ray names it."""
        return {kind: amount for kind, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}

    def options(self, nodes: Sequence[Resources]) -> dict[str, Any]:
        """Serve's placement options on a cluster of such nodes.

        The workers of a replica share a node wherever a node is large enough, for they talk all the time; else they
        are packed on as few as possible.
        """
        if not self.grouped:
            return {"ray_actor_options": {"num_cpus": self.cpus * self.workers, "num_gpus": self.gpus * self.workers}}
        return {
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": 0},  # its GPU belongs to the worker beside it
            "placement_group_bundles": [self.bundle] * self.workers,
            "placement_group_strategy": "STRICT_PACK" if any(map(self.fits, nodes)) else "PACK",
        }

    def __str__(self) -> str:
        needs = " and ".join(f"{amount:g} {kind}{_s(amount)}" for kind, amount in self.bundle.items()) or "nothing"
        each = f"{self.workers} workers of {needs}" if self.workers > 1 else needs
        return f"{self.replicas} replica{_s(self.replicas)} of {each}" + (" each" if self.replicas > 1 else "")


def node_totals() -> list[dict[str, float]]:
    """Resources of every living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def shortfall(ask: Ask, placed: int, seconds: float) -> str:
    """One line: what was asked for, how far it got, and what is free where."""
    free = available_resources_per_node()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    shown = [
        f"{node['NodeManagerAddress']} has {_of(free.get(node['NodeID'], {}), node['Resources'], ask)} free"
        for node in sorted(nodes, key=lambda node: node["NodeManagerAddress"])
    ]
    more = [f"{len(shown) - SHOWN_NODES} more nodes"] if len(shown) > SHOWN_NODES else []
    return (
        f"model.replicas: asked for {ask}; after {seconds:g} s {placed} of {ask.replicas} found a place; "
        + ", ".join(shown[:SHOWN_NODES] + more)
    )


def _of(free: Resources, total: Resources, ask: Ask) -> str:
    kinds = list(ask.bundle) or ["CPU"]
    return " and ".join(f"{free.get(kind, 0.0):g} of {total.get(kind, 0.0):g} {kind}s" for kind in kinds)


def _s(count: float) -> str:
    return "" if count == 1 else "s"
