"""The tools of MCP servers: connected for an episode or shared by those of a process, told under names of their own.

An episode that was promised a tool and has lost its server fails, and is played again: a tool that is silently missing
would change the environment. Servers of lifetime `rollout` may hold the episode's state, so nothing goes on behind a
lost one. Those of lifetime `worker` hold none: the call that lost the connection fails its episode, all others get a
new connection, if it has the same tools.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace

from rollout.agents.mcp_connection import Connection, ServerFacts, connect
from rollout.agents.mcp_hold import innermost
from rollout.agents.mcp_section import McpServerConfig
from rollout.errors import ResourceDown, UserError, nearest
from rollout.trajectory import ToolCall, ToolResult, ToolSpec

_PAUSE = 0.5
"""Seconds before a server is tried again."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Served:
    """A server as one episode uses it."""

    config: McpServerConfig
    connection: Connection
    restarts: int
    """Tries to connect that have failed, and connections that were replaced."""


@dataclass(slots=True)
class McpTools:
    """The tools of an episode's servers. A ToolSet; opened by McpServers."""

    servers: McpServers
    served: tuple[_Served, ...]
    facts: tuple[ServerFacts, ...]
    """What every configured server said of itself, in the order of the configuration."""
    specs: tuple[ToolSpec, ...]
    routes: dict[str, tuple[_Served, str]]
    """By the name that the policy calls: server, and the server's own name for it."""

    async def call(self, call: ToolCall, seconds: float) -> ToolResult:
        """Calls a tool of a server. Raises ResourceDown when the server is lost."""
        if call.name not in self.routes:
            message = f"there is no tool '{call.name}'{nearest(call.name, self.routes)}"
            return ToolResult(f"error: {message}", error=message)
        served, tool = self.routes[call.name]
        if served.connection.lost:
            await self._connect_again(served, seconds)
        return await served.connection.call(tool, call.arguments, seconds)

    async def _connect_again(self, served: _Served, seconds: float) -> None:
        config, facts = served.config, served.connection.facts
        if config.lifetime == "rollout" or served.restarts >= config.max_restarts:
            raise ResourceDown(f"MCP server {config.name}: the connection was lost")
        try:
            async with asyncio.timeout(seconds):
                connection = await self.servers.shared(config)
        except TimeoutError:
            raise ResourceDown(f"MCP server {config.name}: no connection within {seconds:g} s") from None
        if connection.facts.digest != facts.digest:
            raise ResourceDown(f"MCP server {config.name}: came back with other tools")
        if connection is not served.connection:  # another call of the turn may have replaced it
            served.connection, served.restarts = connection, served.restarts + 1

    async def close(self) -> None:
        """Ends the servers that are this episode's alone. Idempotent."""
        await _close([served.connection for served in self.served if served.config.lifetime == "rollout"])


@dataclass(slots=True)
class McpServers:
    """The servers of a job in one process: opens an episode's tools. Belongs to one event loop."""

    configs: tuple[McpServerConfig, ...]
    _shared: dict[str, asyncio.Task[Connection]] = field(default_factory=dict[str, "asyncio.Task[Connection]"])

    async def open(self) -> McpTools:
        """Connects to all servers at once.

        Each has `timeout` seconds a try and `max_restarts` further ones. Raises ResourceDown for a required one that
        is not there, UserError for what no episode can work with. Nothing stays open when it raises or is cancelled.
        """
        opened: list[_Served] = []

        async def one(config: McpServerConfig) -> ServerFacts:
            try:
                served = await self._serve(config)
            except ResourceDown as error:
                if config.required:
                    raise
                log.warning("an episode goes on without its tools: %s", error)
                return ServerFacts(config.name, missing=str(error))
            opened.append(served)
            return served.connection.facts

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one(config)) for config in self.configs]
            order = {config.name: place for place, config in enumerate(self.configs)}
            opened.sort(key=lambda served: order[served.config.name])
            specs, routes = _told(opened)
        except BaseException as error:
            await _close([served.connection for served in opened if served.config.lifetime == "rollout"])
            if (cause := innermost(error)) is not error:
                raise cause from None
            raise
        return McpTools(self, tuple(opened), tuple(task.result() for task in asked), specs, routes)

    async def _serve(self, config: McpServerConfig) -> _Served:
        restarts = 0
        while True:
            try:
                connection = await (self.shared(config) if config.lifetime == "worker" else connect(config))
                return _Served(config, connection, restarts)
            except ResourceDown:
                if restarts >= config.max_restarts:
                    raise
            restarts += 1
            await asyncio.sleep(_PAUSE)

    async def shared(self, config: McpServerConfig) -> Connection:
        """The process's connection to a server: made once for all who ask, and again when it was lost."""
        task = self._shared.get(config.name)
        if task is None or (task.done() and _useless(task)):
            # It is no episode's, so its log lines must not carry the ids of the one that happened to ask first.
            task = asyncio.create_task(connect(config), context=Context())
            task.add_done_callback(_seen)
            self._shared[config.name] = task
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends the servers that episodes shared. Idempotent."""
        tasks, self._shared = list(self._shared.values()), {}
        for task in tasks:
            task.cancel()
        done = [task for task in tasks if task.done() and not task.cancelled() and task.exception() is None]
        await _close([task.result() for task in done])


def _told(opened: Sequence[_Served]) -> tuple[tuple[ToolSpec, ...], dict[str, tuple[_Served, str]]]:
    """All tools under the names that the policy calls them by. Raises UserError where two would have one name."""
    specs: list[ToolSpec] = []
    routes: dict[str, tuple[_Served, str]] = {}
    for served in opened:
        for spec in served.connection.tools:
            # Endpoints and chat templates take letters, digits, _ and - in a name; MCP allows more.
            name = re.sub(r"[^A-Za-z0-9_-]", "_", spec.name)
            name = f"{served.config.name}__{name}" if served.config.prefix else name
            if name in routes:
                other = routes[name][0].config.name
                raise UserError(
                    f"mcp_servers.{served.config.name}: a tool '{name}' is one of {other} already; set prefix"
                )
            routes[name] = (served, spec.name)
            specs.append(replace(spec, name=name))
    return tuple(specs), routes


async def _close(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.release()
    await asyncio.gather(*(connection.close() for connection in connections))


def _useless(task: asyncio.Task[Connection]) -> bool:
    return task.cancelled() or task.exception() is not None or task.result().lost


def _seen(task: asyncio.Task[Connection]) -> None:
    """Whoever asked for it may have gone by the time that it fails."""
    if not task.cancelled():
        task.exception()
