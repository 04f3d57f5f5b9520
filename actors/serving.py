"""`rollout serve`: the model of a job behind the gateway, until it is told to end."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import serve
from ray.exceptions import RayError
from rich.console import Console

from actors.check import check_model
from actors.cluster import END_SECONDS, application
from actors.connection import check_asks, connect, disconnect, replicas_ask
from actors.gateway import DEPLOYMENT, Doors, bound, gateway_app, gateway_of, profile_of
from actors.model import deploy, replicas_of, undeploy
from actors.responses import SECONDS, new_keeper
from actors.setting import located
from rollout.config import JobConfig, OpenAIConfig
from rollout.errors import RolloutError, UserError, describe
from rollout.gateway.doors import key_of
from rollout.gateway.section import ResponsesConfig
from rollout.serving.catalog import write_codex_catalog
from rollout.thread import threaded

START_SECONDS = 180.0
"""What the replicas of a gateway may take to listen; those whose parser is vLLM's import it first."""
_ALL = ("0.0.0.0", "::")
"""Hosts that are every address of a node."""
log = logging.getLogger(__name__)

_RAISED = re.compile(r"(?:[\w.]+\.)?([A-Z]\w*(?:Error|Exception)): (.+)")


def write_catalog(config: JobConfig, file: Path) -> None:
    """Writes the catalog of models that Codex reads. Raises UserError for a profile without instructions."""
    write_codex_catalog(file, [profile_of(config)])


def serve_model(config: JobConfig, address: str | None) -> None:
    """Serves until a signal ends it; then nothing of it is left running.

    Raises UserError for what is wrong with the job, RolloutError when it cannot be started.
    """
    if isinstance(config.model, OpenAIConfig):
        raise UserError("model.engine: an openai endpoint is served already; expected vllm or scripted")
    profile_of(config)
    check_model(config)
    section = gateway_of(config)
    key = key_of(section.host, section.key_env)
    if (path := section.responses.path) is not None and not Path(path).resolve().parent.is_dir():
        raise UserError(f"gateway.responses.path: {path}: its folder is not there")
    with _port(section.host, section.port) as port:
        try:
            if connect(address, config.logs):
                _check_room(config)
            asyncio.run(_serve(config, port, key))
        except (KeyboardInterrupt, asyncio.CancelledError):  # while the cluster was starting
            return
        finally:
            disconnect()


@contextmanager
def _port(host: str, port: int) -> Iterator[int]:
    """The port that replicas will listen on, kept from others until they do. Raises UserError when it is taken."""
    try:
        with bound(host, port, shared=False) as alone:
            port = alone.getsockname()[1]
        kept = bound(host, port, shared=True)
    except OSError as error:
        key = "gateway.host" if error.errno in (errno.EADDRNOTAVAIL, None) or error.errno < 0 else "gateway.port"
        raise UserError(f"{key}: {host}:{port}: {error.strerror or error}") from error
    with kept:
        yield port


def _kept(section: ResponsesConfig) -> ResponsesConfig:
    """With an absolute path: actors do not work in the folder it was started in."""
    return section.model_copy(update={"path": str(Path(section.path).resolve())}) if section.path else section


def _check_room(config: JobConfig) -> None:
    """For a cluster that will not grow."""
    assert not isinstance(config.model, OpenAIConfig), "it was checked"
    section = gateway_of(config)
    check_asks(
        {
            "model.replicas": replicas_ask(config.model),
            "gateway.replicas": {"CPU": section.replicas * section.cpus_per_replica},
        }
    )


async def _serve(config: JobConfig, port: int, key: bytes | None) -> None:
    console = Console(stderr=True, log_path=False)
    config, name = located(config), application(f"serve-{uuid4().hex[:8]}")
    section = gateway_of(config)
    here = ray.get_runtime_context().get_node_id()
    doors = Doors(section.host, port, key, None if section.host in _ALL else here)
    with _signals() as ending:
        keeper = new_keeper(_kept(section.responses), here)
        try:
            await deploy(config, name, tell=partial(console.log, markup=False))
            try:
                async with _listening(config, name, doors, keeper):
                    print(f"{profile_of(config).name} is served at {' '.join(_urls(doors, name))}", flush=True)
                    ending.up = True
                    await ending.asked.wait()
            finally:
                await _ended(name)
            _sum_up(await _told(keeper), console)
        finally:
            ray.kill(keeper)


@asynccontextmanager
async def _listening(config: JobConfig, model: str, doors: Doors, keeper: Any) -> AsyncIterator[None]:
    """The replicas of the gateway, while the block lasts. Raises RolloutError when one cannot start."""
    name = _gateway(model)
    app = gateway_app(config, model, doors, keeper, int(time.time()))
    try:
        await _started(partial(serve.run, app, name=name, route_prefix=None))
        yield
    finally:
        await _ended(name)


def _gateway(model: str) -> str:
    """What Serve calls the gateway in front of a model."""
    return f"{model}-gateway"


async def _started(run: Callable[[], Any]) -> None:
    try:
        await threaded(run, START_SECONDS, "gateway.replicas")
    except TimeoutError as error:
        raise RolloutError(str(error)) from error
    except RuntimeError as error:  # so Serve tells of a deployment that failed, with the traceback of its replica
        raised = [found for line in str(error).splitlines() if (found := _RAISED.fullmatch(line.strip()))]
        reason = raised[-1][0] if raised else describe(error)
        raise RolloutError(f"gateway: no replica could start: {reason}"[:500]) from error


async def _ended(name: str) -> None:
    try:
        await threaded(partial(undeploy, name), END_SECONDS, "Ray Serve")
    except TimeoutError as error:
        log.warning("%s was not ended: %s", name, error)


async def _told(keeper: Any) -> list[dict[str, Any]]:
    """What the replicas did; nothing where it cannot be had."""
    try:
        async with asyncio.timeout(SECONDS):
            return await keeper.close.remote()
    except (TimeoutError, RayError) as error:
        log.warning("stored responses were not closed: %s", describe(error))
        return []


def _sum_up(told: list[dict[str, Any]], console: Console) -> None:
    """What all replicas did, in lines for people."""
    counts = {key: sum(one[key] for one in told) for key in ("requests", "refused", "gone", "slow")}
    console.print("served " + ", ".join(f"{count} {key}" for key, count in counts.items()), highlight=False)
    for rule in sorted({rule for one in told for rule in one["prefixes"]}):
        found = [one["prefixes"][rule] for one in told if rule in one["prefixes"]]
        requests, tokens = (sum(each[key] for each in found) for key in ("requests", "tokens"))
        console.print(f"{rule}: {requests} requests, about {tokens} tokens", highlight=False, markup=False)


def _urls(doors: Doors, model: str) -> list[str]:
    """Where requests may go."""
    hosts = [doors.host]
    if doors.node is None:
        replicas = replicas_of(_gateway(model), DEPLOYMENT)
        hosts = sorted({replica["node_ip"] for replica in replicas if replica.get("node_ip")})
    return [f"http://{f'[{host}]' if ':' in host else host}:{doors.port}" for host in hosts]


@dataclass(slots=True)
class _Ending:
    """Whether the server is to end."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    up: bool = False
    """Everything has started: it ends in order."""


@contextmanager
def _signals() -> Iterator[_Ending]:
    """The first Ctrl-C or SIGTERM asks for the end once everything is up; before that, and at a further one, all ends
    at once."""
    loop, task, ending = asyncio.get_running_loop(), asyncio.current_task(), _Ending()
    assert task is not None, "it runs in a loop"

    def stop() -> None:
        if ending.up and not ending.asked.is_set():
            ending.asked.set()
        else:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield ending
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
