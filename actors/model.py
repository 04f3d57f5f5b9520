"""The model on Ray Serve: one deployment class for every engine, and how it is started and ended.

A replica takes letters (`actors.courier`), lets at most `max_in_flight` of them into its engine and says ready only
after it has generated something. There is no HTTP proxy: callers hold the deployment's handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, LoggingConfig

from actors.courier import Mailbox
from actors.engine import EngineFactory, GenerateReply, GenerateRequest, Part, Parts, ScriptedEngine, pack_ids
from actors.orphans import Orphanage, this_driver
from actors.placement import Ask, node_totals, shortfall
from actors.weights import Follower
from rollout.config import JobConfig, OpenAIConfig, ReplicatedConfig, ScriptedConfig, VllmConfig
from rollout.errors import RolloutError, Unavailable, UserError
from rollout.load import Load
from rollout.scripted import encode_lines
from rollout.template import load_template, resolve_model
from rollout.thread import threaded
from rollout.trajectory import Sampling

DEPLOYMENT = "model"
"""Name of the deployment in its application."""
MAX_TRIPS = 10_000
"""Held trips a replica takes: a few for each process that asks, far below this."""
POLL_SECONDS = 0.2
"""How often a starting deployment is looked at."""
TELL_SECONDS = 1.0
"""How often it is told how far it is."""
SERVE_SECONDS = 180.0
"""What Serve may take to start, or to end what is left of an earlier try: a minute each."""
LOOK_SECONDS = 60.0
"""What Serve may take to tell about a deployment."""
STOP_SECONDS = 10.0
"""What stopping may take beyond draining."""
HEALTH_SECONDS = 5.0
"""How often replicas are looked at once they run; a dead one is noticed as late as that."""
START_SECONDS = 120.0
"""How long a replica without a model may take to be ready."""
STARTS = 2
"""Tries a deployment's first replicas get before it has failed."""

T = TypeVar("T")

log = logging.getLogger(__name__)

_RAISED = re.compile(r"(?:[\w.]+\.)?([A-Z]\w*(?:Error|Exception|Exit)): (.+)")
"""Last line of a traceback."""


class ModelReplica:
    """An engine behind a mailbox. Plain asyncio: `model_app` makes it a deployment."""

    def __init__(
        self, new_engine: EngineFactory, max_in_flight: int, drain_seconds: float, weights: Any = None
    ) -> None:
        """`weights` is the handle of the `actors.weights.Weights` that it follows, in jobs whose weights change."""
        self._max_in_flight = max_in_flight
        self._places = asyncio.Semaphore(max_in_flight)
        self._drain_seconds = drain_seconds
        self._mailbox = Mailbox(self._generate, status=self._status)
        self._warm = False
        self._draining = False
        self._name = _replica_name()
        self._engine = new_engine()
        self._sampling = asyncio.Event()
        self._sampling.set()
        self._follower = Follower(weights, self._name, self._update) if weights is not None else None

    async def exchange(self, client: str, letters: bytes, hold: float) -> bytes:
        """Transport; a letter is a GenerateRequest. See `actors.courier`."""
        return await self._mailbox.exchange(client, letters, hold)

    async def check_health(self) -> None:
        """Raises when the engine can serve no more. Serve takes the replica in after the first one: it also takes the
        newest weights, and warms the engine up, whose first completion takes seconds."""
        await self._engine.check_health()
        if not self._warm:
            if self._follower is not None:
                await self._follower.start()
            await self._engine.generate(GenerateRequest("warm-up", "", 0, pack_ids([0] * 8), 2, Sampling()))
            self._warm = True

    async def drain(self) -> None:
        """Finishes what is running, takes nothing new, and stops the engine."""
        self._draining = True
        if self._follower is not None:
            self._follower.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                for _ in range(self._max_in_flight):
                    await self._places.acquire()
        await self._engine.stop()

    def _status(self) -> tuple[str, Load] | None:
        """The replica's name and load, with those that have no place in the engine yet; nothing once it is ending."""
        if self._draining:
            return None
        load = self._engine.load()
        outside = max(0, self._mailbox.running - self._max_in_flight)
        return self._name, replace(load, waiting=load.waiting + outside)

    async def _generate(self, request: GenerateRequest, told: Callable[[Part], None] | None = None) -> GenerateReply:
        if self._draining:
            raise Unavailable(f"replica {self._name} is shutting down")
        arrived = time.monotonic()
        async with self._places:
            await self._sampling.wait()  # vLLM takes requests in while it is paused: they wait here instead
            waited = time.monotonic() - arrived
            try:
                if told is None:
                    reply = await self._engine.generate(request)
                else:
                    reply = await self._engine.generate(request, Parts(told))
            except Exception:
                await self._end_if_dead()
                raise
        return replace(reply, queue_seconds=reply.queue_seconds + waited, replica=self._name)

    async def _update(self, version: int, folder: str | None) -> None:
        self._sampling.clear()
        try:
            await self._engine.update(version, folder)
        except RolloutError:
            await self._end_if_dead()
            raise
        finally:
            self._sampling.set()

    async def _end_if_dead(self) -> None:
        """Ends the process when its engine is dead. Serve replaces an unhealthy replica only after several checks, and
        until then every turn sent here would fail; one without a process is replaced and passed over at once."""
        try:
            await self._engine.check_health()
        except Exception:
            log.critical("the engine is dead, and so is its replica", exc_info=True)
            os._exit(1)


class _Deployed(ModelReplica):
    """As Serve keeps it: it ends with its driver, and Serve ends it by awaiting its destructor."""

    def __init__(
        self, new_engine: EngineFactory, max_in_flight: int, drain_seconds: float, driver: str, weights: Any
    ) -> None:
        super().__init__(new_engine, max_in_flight, drain_seconds, weights)
        self._orphanage = Orphanage(driver)

    async def check_health(self) -> None:
        await super().check_health()
        await self._orphanage.look()

    async def __del__(self) -> None:
        if hasattr(self, "_engine"):  # Serve also does so when the constructor raised
            await self.drain()


def _replica_name() -> str:
    try:
        return serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return "local"


def model_app(
    config: ReplicatedConfig,
    engine_factory: EngineFactory,
    nodes: list[dict[str, float]] | None = None,
    weights: Any = None,
) -> serve.Application:
    """The deployment of a model on a cluster of such nodes; its replicas follow `weights`."""
    options: dict[str, Any] = {
        "name": DEPLOYMENT,
        "num_replicas": config.replicas,
        "max_ongoing_requests": MAX_TRIPS,
        "max_constructor_retry_count": STARTS,
        "health_check_period_s": HEALTH_SECONDS,
        "graceful_shutdown_timeout_s": config.drain_seconds + STOP_SECONDS,
        "graceful_shutdown_wait_loop_s": POLL_SECONDS,
        "request_router_config": {"request_router_class": "actors.router.SlotRouter"},
        "logging_config": LoggingConfig(log_level="WARNING", enable_access_log=False),
        **Ask.of(config).options(nodes or []),
    }
    deployment = serve.deployment(_Deployed, **options)
    return deployment.bind(engine_factory, config.max_in_flight, config.drain_seconds, this_driver(), weights)


def engine_factory(config: JobConfig) -> EngineFactory:
    """What makes the engine of a job inside each replica.

    Raises UserError for what can be seen to be wrong from here: no such folder, a context longer than the model's,
    an engine argument that vLLM does not know.
    """
    model = config.model
    if isinstance(model, ScriptedConfig):
        lines = encode_lines(load_template(resolve_model(model.path)), model.turns)
        return partial(ScriptedEngine, lines, model.latency_seconds, model.latency_spread, config.run.seed)
    assert isinstance(model, VllmConfig), "an endpoint elsewhere has no replicas"
    from actors.vllm_engine import VllmEngine, check_config

    return partial(VllmEngine, model, check_config(model))


async def deploy(
    config: JobConfig,
    name: str,
    new_engine: EngineFactory | None = None,
    tell: Callable[[str], None] = log.debug,
    weights: Any = None,
) -> DeploymentHandle:
    """Starts the replicas of a job as application `name`; they have all generated something when this returns.

    `tell` hears about once a second how far they are; `weights` is what they follow, where their weights change.
    Raises UserError when the cluster has no place for them within scheduler.start_seconds or the job is wrong,
    RolloutError in one line when a replica cannot start. Nothing is left behind then.
    """
    model = config.model
    assert not isinstance(model, OpenAIConfig), "an endpoint elsewhere has no replicas"
    new_engine = new_engine or engine_factory(config)
    try:
        await _served(lambda: _start(model, new_engine, name, weights), SERVE_SECONDS)
        await _until_ready(name, model, config.scheduler.start_seconds, tell)
    except BaseException:
        with contextlib.suppress(RolloutError):  # it does not answer: what is to be said has been raised
            await _served(lambda: _abandon(name), LOOK_SECONDS)
        raise
    return serve.get_deployment_handle(DEPLOYMENT, name)


async def _served(function: Callable[[], T], seconds: float) -> T:
    """What Serve answers. Raises RolloutError when it does not within `seconds`."""
    try:
        return await threaded(function, seconds, "Ray Serve")
    except TimeoutError as error:
        raise RolloutError(f"model: {error}") from error


def undeploy(name: str) -> None:
    """Ends an application: its replicas finish what they have for as long as they may."""
    try:
        serve.delete(name)
    except TimeoutError:
        log.warning("%s is still draining", name)
    except RayServeException:
        log.warning("%s is gone already", name)


def _abandon(name: str) -> None:
    """Ends an application without waiting: Serve takes long to give up replicas that have no place yet."""
    with contextlib.suppress(RayServeException):  # Serve itself was not to be had
        serve.delete(name, _blocking=False)
        _look(name)  # answered after the deletion was taken: this process may end now


def _start(model: ReplicatedConfig, new_engine: EngineFactory, name: str, weights: Any) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    if _look(name)[0] is not ApplicationStatus.NOT_STARTED:
        undeploy(name)  # an earlier try of the same run, still being given up: it holds what this one needs
    target = serve.RunTarget(model_app(model, new_engine, node_totals(), weights), name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


async def _until_ready(name: str, model: ReplicatedConfig, place_seconds: float, tell: Callable[[str], None]) -> None:
    ask = Ask.of(model)
    ready_seconds = model.start_seconds if isinstance(model, VllmConfig) else START_SECONDS
    began = placed_at = told_at = time.monotonic()
    placed = 0
    while True:
        status, message, replicas = await _served(lambda: _look(name), LOOK_SECONDS)
        now_placed = sum(replica.get("node_id") is not None for replica in replicas)
        if status is ApplicationStatus.RUNNING:
            return
        if (error := _failure(message, final=status is ApplicationStatus.DEPLOY_FAILED)) is not None:
            raise error
        now = time.monotonic()
        if now_placed > placed:
            placed, placed_at = now_placed, now
        if placed < ask.replicas and now - began > place_seconds:
            raise UserError(await _served(partial(shortfall, ask, placed, place_seconds), LOOK_SECONDS))
        if placed >= ask.replicas and now - placed_at > ready_seconds:
            raise RolloutError(f"model: no replica was ready within {ready_seconds:g} s; see model.start_seconds")
        if now - told_at >= TELL_SECONDS:
            ready = sum(replica.get("state") == "RUNNING" for replica in replicas)
            tell(f"model replicas: {ready} of {ask.replicas} ready, {now - began:.0f} s")
            told_at = now
        await asyncio.sleep(POLL_SECONDS)


def replicas_of(name: str, deployment: str = DEPLOYMENT) -> list[dict[str, Any]]:
    """What Serve tells about the replicas of an application; see `ray.serve.schema.ReplicaDetails`. Blocks."""
    return _look(name, deployment)[2]


def _look(name: str, of: str = DEPLOYMENT) -> tuple[ApplicationStatus, str, list[dict[str, Any]]]:
    """Status of an application, what Serve says about it, and its replicas."""
    client = _get_global_client()
    assert client is not None, "Serve was started before"
    application = client.get_serve_details()["applications"].get(name)
    if application is None:
        return ApplicationStatus.NOT_STARTED, "", []
    deployment = application["deployments"].get(of, {})
    message = f"{application['message']}\n{deployment.get('message', '')}"
    return ApplicationStatus(application["status"]), message, list(deployment.get("replicas", ()))


def _failure(message: str, final: bool) -> RolloutError | None:
    """What a deployment's message, which holds the traceback of a replica that could not start, comes down to.

    None while Serve may still have luck with another try; a UserError is not tried again.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    raised = [found for line in lines if (found := _RAISED.fullmatch(line))]
    for found in reversed(raised):
        if found[1] == UserError.__name__:
            return UserError(found[2])
    if not final:
        return None
    reason = raised[-1][0] if raised else (lines or ["it does not say why"])[-1]
    reason = reason.removeprefix(f"{RolloutError.__module__}.{RolloutError.__name__}: ")
    return RolloutError(f"model: no replica could start: {reason}"[:500])
