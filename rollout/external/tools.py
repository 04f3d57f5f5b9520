"""The environment's tools as a program gets them: over the Model Context Protocol, at /e/{token}/mcp.

One server answers all episodes of a runner. It keeps no sessions: every request brings its token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool

from rollout.errors import BoundaryError, boundary
from rollout.external.captured import CapturedEpisode
from rollout.external.episodes import OpenEpisodes, Tools
from rollout.protocols import Session
from rollout.tool_use import TRANSPORT_SECONDS, refusal, skipped, sound
from rollout.trajectory import Event, FailureKind, StopReason, ToolCall, ToolResult, ToolSpec

_OVER = skipped("the episode is over")


@dataclass(slots=True)
class SessionTools:
    """See Tools: those of the session of one episode, each call within `seconds`."""

    session: Session
    specs: tuple[ToolSpec, ...]
    seconds: float
    scribe: CapturedEpisode
    clock: Callable[[], float] = time.monotonic
    spent: float = 0.0
    """Seconds that calls took,"""
    rewards: list[float] = field(default_factory=list[float])
    """what the environment paid for them,"""
    events: list[Event] = field(default_factory=list[Event])
    """those that were more than answered,"""
    broken: BoundaryError | None = None
    """and what failed outside of tool and program."""

    async def call(self, call: ToolCall) -> ToolResult:
        """See Tools. Nothing is called any more once the environment is over or broke."""
        if self.broken is not None or self.scribe.stop is StopReason.ENVIRONMENT:
            return _OVER
        if (refused := refusal(call, [spec.name for spec in self.specs], cut=False)) is not None:
            return refused
        began = self.clock()
        try:
            async with boundary(FailureKind.TOOL, call.name, self.seconds + TRANSPORT_SECONDS):
                result = sound((await self.session.call(call, self.seconds))[0])
        except BoundaryError as error:
            self.broken = error
            self.scribe.end(StopReason.FAILED)
            return ToolResult("error: the tool cannot work", error=str(error))
        finally:
            self.spent += self.clock() - began
        self._note(call, result, self.clock() - began)
        return result

    def _note(self, call: ToolCall, result: ToolResult, seconds: float) -> None:
        if result.reward is not None:
            self.rewards.append(result.reward)
        if result.done:
            self.scribe.end(StopReason.ENVIRONMENT)
        told = {"reward": result.reward, "done": result.done or None, "error": result.error}
        if detail := {name: value for name, value in told.items() if value is not None}:
            self.events.append(Event(max(0, self.scribe.num_turns - 1), "tool", call.name, detail, seconds))


def tool_server(episodes: OpenEpisodes) -> StreamableHTTPSessionManager:
    """The server. Its `run` is entered once; its requests have the path /e/{token}/mcp."""

    async def list_tools(context: Any, params: Any) -> ListToolsResult:
        specs = _of(episodes, context).specs
        tools = [Tool(name=one.name, description=one.description, input_schema=dict(one.parameters)) for one in specs]
        return ListToolsResult(tools=tools)

    async def call_tool(context: Any, params: Any) -> CallToolResult:
        arguments = json.dumps(params.arguments or {}, ensure_ascii=False)
        result = await _of(episodes, context).call(ToolCall(f"mcp_{context.request_id}", params.name, arguments))
        return CallToolResult(
            content=[TextContent(type="text", text=result.content)], is_error=result.error is not None
        )

    server: Server[Any] = Server("rollout", on_list_tools=list_tools, on_call_tool=call_tool)
    return StreamableHTTPSessionManager(server, json_response=True, stateless=True)


@dataclass(frozen=True, slots=True)
class _None:
    """The tools of an episode that ended while it was asked for them."""

    specs: tuple[ToolSpec, ...] = ()

    async def call(self, call: ToolCall) -> ToolResult:
        return _OVER


def _of(episodes: OpenEpisodes, context: Any) -> Tools:
    token = context.request.url.path.split("/")[2]
    return episodes.tools(token) or _None()
