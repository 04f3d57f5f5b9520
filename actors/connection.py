"""Joining a Ray cluster, or starting one, and what a person is told when there is none or it is too small."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import grpc
import ray
from ray import LoggingConfig
from ray._private.services import canonicalize_bootstrap_address
from ray.job_config import JobConfig as RayJob

from actors.placement import Ask
from rollout.config import JobConfig, OpenAIConfig, ReplicatedConfig
from rollout.errors import RolloutError, UserError
from rollout.mixture import key_of
from rollout.sections import LogsConfig

PROBE_SECONDS = 5.0
"""How long a cluster's head may take to say that it is there."""
_HOST_PORT = re.compile(r"[^\s:/]+:\d+|\[[\da-fA-F:]+\]:\d+")
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def connect(address: str | None, logs: LogsConfig | None = None) -> bool:
    """Joins the Ray cluster at `address`, the one RAY_ADDRESS names, or starts one on this machine; actors log so.

    True when it started one: it has what this machine has and will not grow. Raises UserError when there is none at
    the address or it wants a token we do not have, RolloutError when none can be started here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    job = RayJob()
    if logs is not None:  # not through ray.init, which would have this process log so as well, over the progress view
        job.set_py_logging_config(LoggingConfig(encoding=logs.format.upper(), log_level=logs.level.upper()))
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": job}
    if wanted == "local":
        try:
            ray.init(address="local", include_dashboard=False, **quiet)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise RolloutError(f"Ray does not start on this machine: {_first_line(error)}") from error
        return True
    place = f"{'--address' if address else 'RAY_ADDRESS'}: {wanted}"
    try:
        _probe(wanted)
        ray.init(address=wanted, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"{place}: no Ray cluster there: {_first_line(error)}") from error
    except SystemExit as error:  # so Ray's core says that it gives up
        raise UserError(f"{place}: no Ray cluster there: it does not answer") from error
    return False


def disconnect() -> None:
    """Leaves the cluster; one that `connect` started ends with it."""
    ray.shutdown()


def check_room(config: JobConfig) -> None:
    """For a cluster that will not grow: raises UserError when the job asks for more than all of it."""
    asks: dict[str, dict[str, float]] = {
        **{key_of(name, "hosts"): {"CPU": one.hosts * one.cpus_per_host} for name, one in config.environments.items()},
        "scheduler.runners": {"CPU": config.scheduler.runners * config.scheduler.cpus_per_runner},
    }
    if not isinstance(config.model, OpenAIConfig):
        asks["model.replicas"] = replicas_ask(config.model)
    check_asks(asks)


def replicas_ask(model: ReplicatedConfig) -> dict[str, float]:
    """What all replicas of a model need together."""
    ask = Ask.of(model)
    return {kind: amount * ask.workers * ask.replicas for kind, amount in ask.bundle.items()}


def check_asks(asks: Mapping[str, Mapping[str, float]]) -> None:
    """Raises UserError when what these keys of a job ask for is more than all of a cluster that will not grow."""
    total = ray.cluster_resources()
    for kind in ("GPU", "CPU"):
        wanted = {name: amounts[kind] for name, amounts in asks.items() if amounts.get(kind)}
        needed, there = sum(wanted.values()), total.get(kind, 0.0)
        if needed > there + 1e-6:  # sums of tenths
            parts = ", ".join(f"{name} {amount:g}" for name, amount in sorted(wanted.items()))
            most = max(wanted, key=lambda name: wanted[name])
            raise UserError(f"{most}: the job asks for {needed:g} {kind}s ({parts}); this machine has {there:g}")


def free() -> str:
    """What the cluster has and what of it is free, in words."""
    total, available = ray.cluster_resources(), ray.available_resources()
    parts = [f"{available.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")]
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return f"free are {' and '.join(parts)} on {nodes} node{'s' if nodes != 1 else ''}"


def _probe(address: str) -> None:
    """Raises ConnectionError or ValueError when no head answers at `address`: ray.init itself would wait for minutes,
    and write to stderr meanwhile."""
    if address.startswith(("http://", "https://")):
        raise ValueError("that is where jobs are sent to (rollout submit); expected HOST:PORT, as HOST:6379")
    if address.startswith("ray://"):
        raise ValueError("a job runs on the cluster, not through Ray Client; use rollout submit, or HOST:PORT")
    if address != "auto" and not _HOST_PORT.fullmatch(address):
        raise ValueError("expected HOST:PORT, auto or local")
    head = canonicalize_bootstrap_address(address)
    if head is None or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    with grpc.insecure_channel(head, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_ALIVE)(b"", timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            code = error.code()  # pyright: ignore[reportAttributeAccessIssue] - it is a grpc.Call as well
            if code in _GONE:
                raise ConnectionError("nothing answers" + (f" at {head}" if head != address else "")) from error
            if code is grpc.StatusCode.UNIMPLEMENTED:
                raise ConnectionError(f"what answers at {head} is no head node; its port is 6379 as a rule") from error
            # anything else, a refused token say, is explained by ray.init


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
