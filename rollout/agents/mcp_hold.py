"""The task that holds a connection to an MCP server.

The scopes of the official `mcp` package must be left by the task that entered them, so each connection has a task of
its own. It ends when it is told to, or when the connection breaks, and with it the server's process.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TextIO, cast

import httpx2
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Tool

from rollout.agents.mcp_section import McpServerConfig
from rollout.errors import describe

_READ_SECONDS = 300.0
"""How long an HTTP server may say nothing on a stream that is open; calls have deadlines of their own."""
_LAST_WORDS = 2000

log = logging.getLogger(__name__)
_held: set[asyncio.Task[None]] = set()
"""Connections that have not ended: the event loop itself keeps no hold of its tasks."""


@dataclass(slots=True)
class LastWords(asyncio.Protocol):
    """What a process said last on its standard error, for the message when it does not start."""

    text: bytes = b""

    def data_received(self, data: bytes) -> None:
        self.text = (self.text + data)[-_LAST_WORDS:]

    def said(self) -> str:
        """`; it said: ...` with its last line, or nothing."""
        lines = [line.strip() for line in self.text.decode(errors="replace").splitlines() if line.strip()]
        return f"; it said: {lines[-1][:300]}" if lines else ""


@dataclass(slots=True)
class Hold:
    """The task that has entered a connection's scopes."""

    config: McpServerConfig
    secrets: dict[str, str]
    ready: asyncio.Future[tuple[Client, list[Tool]]]
    stop: asyncio.Event
    words: LastWords = field(default_factory=LastWords)

    def start(self) -> asyncio.Task[None]:
        """The task, begun. `ready` is set when the server has listed its tools; it ends once `stop` is set."""
        task = asyncio.create_task(self._run(), name=f"mcp {self.config.name}")
        _held.add(task)
        task.add_done_callback(_ended)
        return task

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            client = await self._client(stack)
            tools: list[Tool] = []
            page = await client.list_tools()
            tools += page.tools
            while page.next_cursor:
                page = await client.list_tools(cursor=page.next_cursor)
                tools += page.tools
            self.ready.set_result((client, tools))
            await self.stop.wait()

    async def _client(self, stack: AsyncExitStack) -> Client:
        config = self.config
        if config.url is not None:
            http = httpx2.AsyncClient(
                headers=self._headers(), timeout=httpx2.Timeout(config.timeout, read=_READ_SECONDS)
            )
            await stack.enter_async_context(http)
            return await stack.enter_async_context(
                Client(streamable_http_client(config.url, http_client=http), cache=None)
            )
        assert config.command is not None, "it was validated"
        env = {**config.env, **{variable: self.secrets[variable] for variable in config.pass_env}}
        with await self._stderr(stack) as stderr:  # the process has its own end of it from here on
            server = StdioServerParameters(command=config.command, args=list(config.args), env=env)
            return await stack.enter_async_context(Client(stdio_client(server, stderr), cache=None))

    def _headers(self) -> dict[str, str]:
        config = self.config
        headers = {**config.headers, **{name: self.secrets[var] for name, var in config.headers_env.items()}}
        if config.bearer_env is not None:
            headers["Authorization"] = f"Bearer {self.secrets[config.bearer_env]}"
        return headers

    async def _stderr(self, stack: AsyncExitStack) -> TextIO:
        read, write = os.pipe()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: self.words, os.fdopen(read, "rb", 0))
        stack.callback(transport.close)
        return os.fdopen(write, "w")


def why_ended(task: asyncio.Task[None], error: Exception | None) -> str:
    """Why a connection is lost: what ended its task says more than the error that its callers get."""
    if task.done() and not task.cancelled() and (ended := task.exception()) is not None:
        return describe(innermost(ended))
    return describe(error) if error is not None else "the connection was lost"


def innermost(error: BaseException) -> BaseException:
    """The first error that is in a group of groups, which is what ended the others."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    return innermost(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])


def _ended(task: asyncio.Task[None]) -> None:
    _held.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("%s ended: %s", task.get_name(), describe(innermost(error)))
