"""The gateway on a cluster: a Serve deployment whose replicas listen themselves, all on one port (decisions/0032)."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from typing import Any

import uvicorn
from ray import serve
from ray.serve.schema import LoggingConfig

from actors.model import DEPLOYMENT as MODEL
from actors.model import HEALTH_SECONDS, POLL_SECONDS, STARTS, STOP_SECONDS
from actors.orphans import Orphanage, this_driver
from actors.responses import SharedResponses
from actors.served_policy import ServedPolicy
from actors.setting import context_of, parser_of, template_of
from rollout.config import JobConfig, OpenAIConfig
from rollout.errors import ResourceDown, UserError
from rollout.gateway.app import Gateway
from rollout.gateway.section import GatewayConfig
from rollout.gateway.served import Served
from rollout.parsing import FORMATS
from rollout.protocols import Policy
from rollout.serving.catalog import ModelProfile, ProfileConfig

DEPLOYMENT = "gateway"
"""Name of the deployment in its application."""
BACKLOG = 2048
"""Connections that wait to be taken, at most."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Doors:
    """Where requests come in, and the key that they bring, sealed."""

    host: str
    port: int
    key: bytes | None
    node: str | None
    """The only node to listen on; None for all that replicas are on."""


def gateway_of(config: JobConfig) -> GatewayConfig:
    """The job's section, or what holds without one."""
    return config.gateway or GatewayConfig()


def profile_of(config: JobConfig) -> ModelProfile:
    """The model of a job, as clients see it.

    Raises UserError for a model whose context nobody knows, and for a profile that claims more of it.
    """
    model = config.model
    path = model.name if isinstance(model, OpenAIConfig) else model.path
    reach, section = context_of(config), config.profile or ProfileConfig()
    if reach is None:
        raise UserError("profile.context: missing; the model's config.json does not say how far it reaches")
    profile = section.value(gateway_of(config).name or path, reach)
    if profile.context > reach:
        raise UserError(f"profile.context: {profile.context} is more than the {reach} tokens that the engine takes")
    return profile


def served_of(config: JobConfig, policy: Policy, created: int) -> Served:
    """The model of a job as a gateway serves it; `created` in Unix seconds."""
    section, template = gateway_of(config), template_of(config.model)
    assert template is not None, "models in replicas have a template"
    reading = FORMATS.get(config.model.parser) or parser_of(config, template)
    return Served(
        policy=policy,
        template=template,
        reading=reading,
        profile=profile_of(config),
        sampling=config.model.sampling.value(),
        rules=section.prefixes.value(),
        keep=section.earlier_reasoning,
        created=created,
    )


class GatewayReplica:
    """One process that listens. It begins with its first check of health: Serve takes it in after that."""

    def __init__(self, gateway: Gateway, doors: Doors, config: GatewayConfig, keeper: Any) -> None:
        self._gateway = gateway
        self._doors = doors
        self._config = config
        self._keeper = keeper
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def check_health(self) -> None:
        """Raises when nobody can reach it."""
        if self._serving is None:
            await self._listen()
        elif self._serving.done():
            raise ResourceDown("the gateway does not listen any more")

    async def drain(self) -> None:
        """Takes nothing new, lets requests go on for as long as they may, and ends."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait((self._serving,), timeout=self._config.drain_seconds + STOP_SECONDS / 2)
        await self._gateway.close()
        told = self._gateway.counts.told()
        log.info("served: %s", told)
        async with asyncio.timeout(STOP_SECONDS / 2):
            await self._keeper.ended.remote(told)

    async def _listen(self) -> None:
        options = uvicorn.Config(
            self._gateway,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=round(self._config.drain_seconds),
        )
        self._server = uvicorn.Server(options)
        listening = bound(self._doors.host, self._doors.port, shared=True)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not (self._server.started or self._serving.done()):  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.01)
        if self._serving.done():
            self._serving.result()


class _Deployed(GatewayReplica):
    """As Serve keeps it: it ends with its driver, and Serve ends it by awaiting its destructor."""

    def __init__(self, config: JobConfig, model: str, doors: Doors, keeper: Any, created: int, driver: str) -> None:
        section = gateway_of(config)
        handle = serve.get_deployment_handle(MODEL, model)
        assert not isinstance(config.model, OpenAIConfig), "it was checked"
        policy = ServedPolicy(handle, config.model.replicas, config.scheduler.silent_seconds)
        gateway = Gateway(served_of(config, policy, created), section, SharedResponses(keeper), doors.key)
        super().__init__(gateway, doors, section, keeper)
        self._orphanage = Orphanage(driver)

    async def check_health(self) -> None:
        await super().check_health()
        await self._orphanage.look()

    async def __del__(self) -> None:
        if hasattr(self, "_orphanage"):  # Serve also does so when the constructor raised
            await self.drain()


def gateway_app(config: JobConfig, model: str, doors: Doors, keeper: Any, created: int) -> serve.Application:
    """The deployment of the gateway in front of the application `model`. `config` has absolute paths."""
    section = gateway_of(config)
    options: dict[str, Any] = {"num_cpus": section.cpus_per_replica}
    if doors.node is not None:
        options["label_selector"] = {"ray.io/node-id": doors.node}
    deployment = serve.deployment(
        _Deployed,
        name=DEPLOYMENT,
        num_replicas=section.replicas,
        max_constructor_retry_count=STARTS,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=section.drain_seconds + 2 * STOP_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        ray_actor_options=options,
    )
    return deployment.bind(config, model, doors, keeper, created, this_driver())


def bound(host: str, port: int, shared: bool) -> socket.socket:
    """A socket at that place; `shared` with others of ours (SO_REUSEPORT), among which the kernel shares out what
    comes. Raises OSError."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    one = socket.socket(family, kind)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address)
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one
