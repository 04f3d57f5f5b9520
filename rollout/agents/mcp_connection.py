"""One connection to an MCP server, over stdio or streamable HTTP, through the official `mcp` package.

Calls may come from any task of the loop that it was made in.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from mcp import Client, MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    Tool,
)
from pydantic import ValidationError

from rollout.agents.mcp_hold import Hold, why_ended
from rollout.agents.mcp_section import McpServerConfig
from rollout.errors import ResourceDown, UserError, describe, nearest
from rollout.trajectory import ToolResult, ToolSpec

CLOSE_SECONDS = 10.0
"""What a server may take to end before it is left to itself: the mcp package ends its process within 7."""
_HTTP_DOWN = {INVALID_REQUEST, INTERNAL_ERROR, METHOD_NOT_FOUND, PARSE_ERROR}
"""Errors that the mcp package also makes of HTTP statuses, so that over HTTP they may be a server that is down. The
first is what it makes of a session that the server has forgotten."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server said of itself: a part of the environment's version."""

    name: str
    """As the configuration calls it."""
    server: str = ""
    version: str = ""
    protocol: str = ""
    digest: str = ""
    """SHA-256 over names, descriptions and schemas of the tools that are used."""
    missing: str | None = None
    """Why an episode goes on without it; None where it is there."""


@dataclass(slots=True)
class Connection:
    """A server that answers. Made by `connect`."""

    config: McpServerConfig
    facts: ServerFacts
    tools: tuple[ToolSpec, ...]
    """Under the names that the server has for them."""
    client: Client
    secrets: tuple[str, ...]
    task: asyncio.Task[None]
    stop: asyncio.Event
    broken: bool = False

    @property
    def lost(self) -> bool:
        """It answers no more."""
        return self.broken or self.task.done()

    async def call(self, tool: str, arguments: str, seconds: float) -> ToolResult:
        """Calls a tool with JSON text for arguments.

        What tool and arguments did wrong, and no answer within `seconds`, is in the result. Raises ResourceDown when
        the connection is lost or the server is down: whether the tool has run then, nobody knows.
        """
        began = time.monotonic()
        try:
            parsed = _object(arguments)
        except ValueError as error:
            return _failed(f"{tool}: expected a JSON object of arguments; {error}", time.monotonic() - began)
        content, error = await self._ask(tool, parsed, seconds)
        hidden = _hidden(content, self.secrets)
        return ToolResult(hidden, None if error is None else hidden, seconds=time.monotonic() - began)

    async def _ask(self, tool: str, arguments: dict[str, Any], seconds: float) -> tuple[str, str | None]:
        """What the policy reads, and the same once more where it is an error."""
        if self.lost:
            raise self._down("the connection was lost")
        try:
            async with asyncio.timeout(seconds):
                answer = await self.client.call_tool(tool, arguments)
        except TimeoutError:
            if self.lost:
                raise self._down("the connection was lost") from None
            told = f"error: {tool} did not answer within {seconds:g} s"
            return told, told
        except MCPError as error:
            http = self.config.url is not None
            self.broken = self.broken or error.code == CONNECTION_CLOSED or (http and error.code == INVALID_REQUEST)
            if self.lost or (http and error.code in _HTTP_DOWN):
                raise self._down(why_ended(self.task, error)) from error
            told = f"error: {error.message}"
            return told, told
        except (RuntimeError, ValidationError) as error:  # what came is no answer to this call: the tool's bug
            if self.lost:
                raise self._down("the connection was lost") from error
            told = f"error: {tool} gave no sound answer: {describe(error)}"
            return told, told
        content = _text(answer)
        return content, (content or "error") if answer.is_error else None

    def _down(self, reason: str) -> ResourceDown:
        return ResourceDown(_hidden(f"MCP server {self.config.name}: {reason}", self.secrets))

    def release(self) -> None:
        """Lets the connection end by itself, in its own time."""
        self.stop.set()

    async def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Ends connection and process, waiting up to `seconds` for it. Idempotent; goes on when it is cancelled."""
        self.release()
        done, _ = await asyncio.wait({self.task}, timeout=seconds)
        if not done:
            log.warning("MCP server %s has not ended within %g s", self.config.name, seconds)


async def connect(config: McpServerConfig) -> Connection:
    """Starts or reaches a server, and lists its tools.

    Raises ResourceDown when it is not there within `config.timeout` seconds, UserError for a secret that is not set or
    a filter that fits no tool. Cancelling it leaves nothing running.
    """
    secrets = config.secrets()
    hold = Hold(config, secrets, asyncio.get_running_loop().create_future(), asyncio.Event())
    task = hold.start()
    waiting = {cast("asyncio.Future[Any]", task), cast("asyncio.Future[Any]", hold.ready)}
    try:
        await asyncio.wait(waiting, timeout=config.timeout, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _end(task)
        raise
    hidden = tuple(secrets.values())
    if not hold.ready.done():
        answered = task.done()
        reason = why_ended(task, None) if answered else f"no connection within {config.timeout:g} s"
        await _end(task)
        raise ResourceDown(_hidden(f"MCP server {config.name}: {reason}{hold.words.said()}", hidden))
    client, tools = hold.ready.result()
    try:
        used = _filtered(config, tools)
    except UserError:
        await _end(task)
        raise
    info = client.server_info
    specs = tuple(ToolSpec(tool.name, tool.description or "", tool.input_schema) for tool in used)
    name, version = (info.name, info.version) if info is not None else ("", "")
    facts = ServerFacts(config.name, name, version, client.protocol_version, _digest(specs))
    return Connection(config, facts, specs, client, hidden, task, hold.stop)


async def _end(task: asyncio.Task[None]) -> None:
    """Waits for it too: cancelled a second time, as a loop does at its end, the mcp package lets its process run."""
    task.cancel()
    await asyncio.wait({task}, timeout=CLOSE_SECONDS)


def _filtered(config: McpServerConfig, tools: Sequence[Tool]) -> list[Tool]:
    if config.tool_filter is None:
        return list(tools)
    names = [tool.name for tool in tools]
    for pattern in config.tool_filter:
        if not fnmatch.filter(names, pattern):
            where = f"mcp_servers.{config.name}.tool_filter"
            raise UserError(f"{where}: no tool is called '{pattern}'{nearest(pattern, names)}")
    return [tool for tool in tools if any(fnmatch.fnmatchcase(tool.name, pattern) for pattern in config.tool_filter)]


def _digest(specs: Sequence[ToolSpec]) -> str:
    told = sorted((spec.as_openai()["function"] for spec in specs), key=lambda function: function["name"])
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _object(text: str) -> dict[str, Any]:
    def refused(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    value: Any = json.loads(text or "{}", parse_constant=refused)
    if not isinstance(value, dict):
        raise ValueError(f"found {type(value).__name__}")
    return cast(dict[str, Any], value)


def _failed(message: str, seconds: float) -> ToolResult:
    return ToolResult(f"error: {message}", error=message, seconds=seconds)


def _text(answer: CallToolResult) -> str:
    """An answer as the policy reads it: its text; of what is no text, what and how large it is."""
    if not answer.content and answer.structured_content is not None:
        return json.dumps(answer.structured_content, ensure_ascii=False, separators=(",", ":"))
    return "\n".join(_block(block) for block in answer.content)


def _block(block: TextContent | ImageContent | AudioContent | ResourceLink | EmbeddedResource) -> str:
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, ImageContent | AudioContent):
        return f"[{block.type}, {block.mime_type}, {len(block.data) * 3 // 4} bytes]"
    if isinstance(block, ResourceLink):
        return f"[resource {block.uri}]"
    if isinstance(block.resource, TextResourceContents):
        return block.resource.text
    return f"[resource {block.resource.uri}, {len(block.resource.blob) * 3 // 4} bytes]"


def _hidden(text: str, secrets: Sequence[str]) -> str:
    """A server may say the secrets that it was given: they must not reach a row or a log."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
