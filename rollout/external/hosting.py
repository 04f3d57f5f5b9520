"""The gateway that programs of one process reach, in that process: so nothing of an episode leaves it.

It has no key but the tokens of the episodes that are played now. Beside the three APIs it has the tools of their
environments.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Generator
from dataclasses import dataclass

import uvicorn

from rollout.errors import UserError
from rollout.external.episodes import OpenEpisodes
from rollout.external.section import ExternalConfig
from rollout.external.tools import tool_server
from rollout.gateway.app import Gateway
from rollout.gateway.doors import Receive, Scope, Send, sealed
from rollout.gateway.section import GatewayConfig
from rollout.gateway.served import Served
from rollout.wire.stored import MemoryResponses

_BACKLOG = 4096
_END_SECONDS = 10.0
_TOOLS = "mcp"


class _Server(uvicorn.Server):
    """Leaves the signals to the process that it is part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@dataclass(slots=True)
class Hosting:
    """A gateway that runs. `close` ends it."""

    episodes: OpenEpisodes
    origin: str
    """Where programs reach it: scheme, host and port."""
    _gateway: Gateway
    _server: uvicorn.Server
    _stop: asyncio.Event
    _tasks: tuple[asyncio.Task[None], ...]

    @staticmethod
    async def start(config: ExternalConfig, served: Served, gateway: GatewayConfig) -> Hosting:
        """A gateway in front of a model. Raises UserError when it cannot listen where it is told to."""
        listening = _listening(config)
        episodes = OpenEpisodes()
        asked = Gateway(served, gateway, MemoryResponses(), sealed(secrets.token_urlsafe()), episodes)
        tools, stop, ready = tool_server(episodes), asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with tools.run():
                ready.set()
                await stop.wait()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            parts: list[str] = scope.get("path", "").split("/")
            if parts[1:2] == ["e"] and parts[3:4] == [_TOOLS] and episodes.tools(parts[2]) is not None:
                await tools.handle_request(scope, receive, send)
            else:
                await asked(scope, receive, send)

        setting = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", backlog=_BACKLOG)
        server = _Server(setting)
        holding = asyncio.create_task(hold())
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await ready.wait()
        port = listening.getsockname()[1]
        origin = config.url.replace("{port}", str(port)) if config.url is not None else _origin(config.host, port)
        return Hosting(episodes, origin, asked, server, stop, (holding, serving))

    async def close(self) -> None:
        """Nothing is answered any more. Idempotent."""
        self._server.should_exit = self._server.force_exit = True
        self._stop.set()
        await self._gateway.close()
        _, late = await asyncio.wait(self._tasks, timeout=_END_SECONDS)
        for task in late:
            task.cancel()


def _listening(config: ExternalConfig) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
    except OSError as error:
        listening.close()
        line = f"agent.external.host: cannot listen at {config.host}:{config.port}: {error.strerror or error}"
        raise UserError(line) from error
    return listening


def _origin(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
