"""Starts what a job needs on a Ray cluster, and takes it down again. No decisions here, only placement."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.resource_host import Offer, ResourceHost
from actors.runner import EpisodeRunner
from actors.setting import Job
from rollout.config import JobConfig, OpenAIConfig
from rollout.errors import RolloutError, UserError, describe


def connect(address: str | None) -> None:
    """Joins the Ray cluster at `address`, the one RAY_ADDRESS names, or starts one on this machine.

    Raises UserError when there is none at the address or it wants a token we do not have.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if wanted == "local":
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=wanted, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--address: no Ray cluster at {wanted}: {_first_line(error)}") from error


def disconnect() -> None:
    """Leaves the cluster; one that `connect` started ends with it."""
    ray.shutdown()


@dataclass(slots=True)
class Cluster:
    """What runs for one job."""

    job: Job

    def new_runner(self, name: str) -> Any:
        """Starts an episode runner."""
        cpus = self.job.config.scheduler.cpus_per_runner
        options: dict[str, Any] = {"num_cpus": cpus, "max_restarts": 0, "max_concurrency": 16}
        return ray.remote(EpisodeRunner).options(**options).remote(self.job)

    def end_runner(self, runner: Any) -> None:
        """Ends a runner at once."""
        ray.kill(runner)


@asynccontextmanager
async def started(config: JobConfig, run_id: str, table: str) -> AsyncIterator[Cluster]:
    """Model replicas and resource hosts of a job, ready to serve, until the block is left.

    Raises UserError when the cluster has not what the job asks for, or when the resource cannot be made.
    """
    hosts = [_new_host(config) for _ in range(config.resource.hosts)]
    try:
        async with _model(config, run_id) as model:
            offer = await _offers(hosts, config)
            yield Cluster(Job(config, run_id, table, offer, tuple(hosts), model))
    finally:
        for host in hosts:
            ray.kill(host)


@asynccontextmanager
async def _model(config: JobConfig, run_id: str) -> AsyncIterator[Any]:
    if isinstance(config.model, OpenAIConfig):
        yield None
        return
    from actors.model import deploy, undeploy

    name = f"rollout-{run_id}"
    handle = await deploy(config, name)
    try:
        yield handle
    finally:
        await asyncio.to_thread(undeploy, name)


def _new_host(config: JobConfig) -> Any:
    resource = config.resource
    options: dict[str, Any] = {"num_cpus": resource.cpus_per_host, "max_restarts": -1, "max_concurrency": 1000}
    host = ray.remote(ResourceHost).options(**options)
    return host.remote(resource.name, resource.options, resource.verifier_processes)


async def _offers(hosts: list[Any], config: JobConfig) -> Offer:
    seconds = config.scheduler.start_seconds
    try:
        async with asyncio.timeout(seconds):
            offers: list[Offer] = await asyncio.gather(*[host.offer.remote() for host in hosts])
    except (TimeoutError, GetTimeoutError):
        raise UserError(f"resource.hosts: not started within {seconds:g} s; {free()}") from None
    except (RayTaskError, RayActorError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RolloutError):
            raise cause from None
        raise RolloutError(f"resource {config.resource.name}: {describe(cause or error)}") from error
    return offers[0]


def free() -> str:
    """What the cluster has and what of it is free, in words."""
    total, available = ray.cluster_resources(), ray.available_resources()
    parts = [f"{available.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")]
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return f"free are {' and '.join(parts)} on {nodes} node{'s' if nodes != 1 else ''}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
