"""Starts what a job needs on a Ray cluster, and takes it down again. No decisions here, only placement."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.connection import free
from actors.mend import Mender
from actors.rates import new_rate_limits
from actors.resource_host import ResourceHost
from actors.runner import EpisodeRunner
from actors.setting import Hosts, Job, Names, located
from rollout.config import JobConfig, OpenAIConfig, ResourceConfig
from rollout.errors import RolloutError, UserError, describe
from rollout.mixture import key_of
from rollout.thread import threaded

END_SECONDS = 120.0
"""What Serve may take to end a model."""
TELL_SECONDS = 1.0
"""How often those who start a job are told what it waits for."""
ANSWER_SECONDS = 5.0
"""What a host that is told to stop may take to answer, besides closing its sessions."""

log = logging.getLogger(__name__)

_SPREAD: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
"""Ray fills one node after the other: a node that dies would take all hosts along, and its network carry all turns."""
_RAISED = re.compile(r"(?:[\w.]+\.)?([A-Z]\w*): (.+)")
"""Last line of a traceback."""


@dataclass(slots=True)
class Cluster:
    """What runs for one job."""

    job: Job
    mender: Mender
    _waiting: list[Any]
    """Runners that have started and have nothing to do yet."""

    def new_runner(self, name: str) -> Any:
        """An episode runner: one of those that wait, or one that is starting."""
        return self._waiting.pop() if self._waiting else _new_runner(self.job)

    def end_runner(self, runner: Any) -> None:
        """Ends a runner at once, and the sessions it has left."""
        ray.kill(runner)
        for host in (host for hosts in self.job.hosts.values() for host in hosts.handles):
            host.abandon.remote(runner._actor_id.hex())


@asynccontextmanager
async def started(
    config: JobConfig, run_id: str, table: str, tell: Callable[[str], None] = log.debug, weights: Any = None
) -> AsyncIterator[Cluster]:
    """Model replicas and resource hosts of a job, ready to serve, until the block is left.

    `tell` hears about once a second what is waited for: `model replicas: 1 of 2 ready, 41 s`. `weights` is what the
    replicas follow (`actors.weights`), where their weights change.
    Raises UserError when the cluster has not what the job asks for, or when the resource cannot be made.
    """
    names, config = Names.of(config), located(config)
    handles = {name: [new_host(one) for _ in range(one.hosts)] for name, one in config.environments.items()}
    hosts = [host for some in handles.values() for host in some]
    rates = _rate_limits(config, run_id)
    runners: list[Any] = []
    seconds = config.scheduler.start_seconds
    try:
        offering = await _offering(config, handles, seconds, tell)
        async with _model(config, run_id, tell, weights) as model:
            job = Job(config, names, run_id, table, offering, model, rates)
            runners += [_new_runner(job) for _ in range(config.scheduler.runners)]
            ready = [runner.start.remote() for runner in runners]
            await _all_started(ready, "scheduler.runners", config.scheduler.cpus_per_runner, seconds, tell)
            try:
                yield Cluster(job, _mender(job, hosts), runners)
            finally:
                await _close_sessions(hosts, config.run.limits.close_seconds)
    finally:
        for actor in (*runners, *hosts, *([] if rates is None else [rates])):
            ray.kill(actor)


def _rate_limits(config: JobConfig, run_id: str) -> Any:
    """The actor that keeps the rate limits of all runners; None without any."""
    if not config.rate_limits:
        return None
    return new_rate_limits(run_id, {name: one.value() for name, one in config.rate_limits.items()})


@asynccontextmanager
async def _model(config: JobConfig, run_id: str, tell: Callable[[str], None], weights: Any) -> AsyncIterator[Any]:
    if isinstance(config.model, OpenAIConfig):
        yield None
        return
    from actors.model import deploy, undeploy

    name = application(run_id)
    handle = await deploy(config, name, tell=tell, weights=weights)
    try:
        yield handle
    finally:
        try:
            await threaded(lambda: undeploy(name), END_SECONDS, "Ray Serve")
        except TimeoutError as error:
            log.warning("%s was not ended: %s", name, error)


def application(run_id: str) -> str:
    """What Serve calls the model of a run."""
    return f"rollout-{run_id}"


def _mender(job: Job, hosts: list[Any]) -> Mender:
    model, name = job.config.model, application(job.run_id)
    if isinstance(model, OpenAIConfig):
        return Mender(hosts, 0, list)
    from actors.model import replicas_of

    return Mender(hosts, model.replicas, lambda: replicas_of(name))


def _new_runner(job: Job) -> Any:
    cpus = job.config.scheduler.cpus_per_runner
    options: dict[str, Any] = {"num_cpus": cpus, "max_restarts": 0, "max_concurrency": 16, **_SPREAD}
    return ray.remote(EpisodeRunner).options(**options).remote(job)


def new_host(resource: ResourceConfig) -> Any:
    """A resource host that is starting."""
    options: dict[str, Any] = {"num_cpus": resource.cpus_per_host, "max_restarts": -1, "max_concurrency": 1000}
    host = ray.remote(ResourceHost).options(**options, **_SPREAD)
    return host.remote(resource.name, resource.options, resource.verifier_processes, resource.max_sessions)


async def _offering(
    config: JobConfig, handles: Mapping[str, Sequence[Any]], seconds: float, tell: Callable[[str], None]
) -> dict[str, Hosts]:
    """The hosts of every environment, once they have started, which all of them do at the same time."""
    found, first = dict[str, Hosts](), 0
    offered = {name: [host.offer.remote() for host in some] for name, some in handles.items()}
    for name, environment in config.environments.items():
        offers = await _all_started(offered[name], key_of(name, "hosts"), environment.cpus_per_host, seconds, tell)
        found[name] = Hosts(tuple(handles[name]), offers[0], first)
        first += len(offers)
    return found


async def _all_started(
    calls: Sequence[Any], key: str, cpus: float, seconds: float, tell: Callable[[str], None]
) -> list[Any]:
    """What actors that were just made answer to their first call.

    Raises UserError when the cluster has no place for all of them within `seconds`, and whatever keeps one of them
    from starting as a RolloutError.
    """
    answers = [asyncio.ensure_future(_first_answer(call, key)) for call in calls]
    try:
        done, late = await _ended(answers, key, seconds, tell)
        for answer in done:
            answer.result()
    finally:
        for answer in answers:
            answer.cancel()
    if late:
        asked = f"asked for {len(answers)} of {cpus:g} CPUs" + (" each" if len(answers) > 1 else "")
        raise UserError(f"{key}: {asked}; after {seconds:g} s {len(done)} of {len(answers)} have started; {free()}")
    return [answer.result() for answer in answers]


async def _ended(
    answers: Sequence[asyncio.Future[Any]], key: str, seconds: float, tell: Callable[[str], None]
) -> tuple[set[asyncio.Future[Any]], set[asyncio.Future[Any]]]:
    """Those that ended, or the first that failed, within `seconds`, and those that did not."""
    began = time.monotonic()
    while True:
        left = began + seconds - time.monotonic()
        step = max(0.0, min(TELL_SECONDS, left))
        done, late = await asyncio.wait(answers, timeout=step, return_when=asyncio.FIRST_EXCEPTION)
        if not late or left <= 0 or any(answer.exception() is not None for answer in done):
            return done, late
        tell(f"{key}: {len(done)} of {len(answers)} started, {time.monotonic() - began:.0f} s")


async def _first_answer(call: Any, key: str) -> Any:
    try:
        return await call
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RolloutError):
            raise cause from None
        raise RolloutError(f"{key}: cannot start: {describe(cause)}") from error
    except RayActorError as error:  # raised where it was made: what is left of the error is text
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raised = [found for line in lines if (found := _RAISED.fullmatch(line))]
        if raised and raised[-1][1] == UserError.__name__:
            raise UserError(raised[-1][2]) from None
        reason = f"{raised[-1][1]}: {raised[-1][2]}" if raised else describe(error)
        raise RolloutError(f"{key}: cannot start: {reason}"[:500]) from None


async def _close_sessions(hosts: list[Any], seconds: float) -> None:
    """Lets hosts close what nobody has closed: sessions of runners that died."""
    stops = [asyncio.wait_for(host.stop.remote(seconds), seconds + ANSWER_SECONDS) for host in hosts]
    for end in await asyncio.gather(*stops, return_exceptions=True):
        if isinstance(end, Exception):
            log.warning("a resource host did not close all its sessions: %s", describe(end))
