"""Tools that are typed async functions of this process, as a ToolSet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from rollout.errors import ToolError, nearest
from rollout.resource import BoundTool, ToolFunction, as_result, bind
from rollout.trajectory import ToolCall, ToolResult, ToolSpec


async def _nothing() -> None:
    """Holds nothing."""


@dataclass(frozen=True, slots=True)
class LocalTools:
    """Functions as tools. ToolError is told to the policy; whatever else one raises is let through: it broke."""

    tools: tuple[BoundTool, ...]
    closes: Callable[[], Awaitable[None]] = _nothing
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, *functions: ToolFunction, closes: Callable[[], Awaitable[None]] = _nothing) -> LocalTools:
        """Of documented async functions `(seconds, **arguments)` with annotations; `seconds` is the call's time."""
        return cls(tuple(bind(function, 1) for function in functions), closes)

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """In the order they were given."""
        return tuple(bound.spec for bound in self.tools)

    async def call(self, call: ToolCall, seconds: float) -> ToolResult:
        """Raises TimeoutError when the function takes longer than `seconds`, and what it raises beside ToolError."""
        began = self.clock()
        try:
            async with asyncio.timeout(seconds):
                result = await self._run(call, seconds)
        except ToolError as error:
            result = ToolResult(f"error: {error}", error=str(error))
        return replace(result, seconds=self.clock() - began)

    async def _run(self, call: ToolCall, seconds: float) -> ToolResult:
        known = {bound.spec.name: bound for bound in self.tools}
        if (bound := known.get(call.name)) is None:
            raise ToolError(f"there is no tool '{call.name}'{nearest(call.name, known)}")
        return as_result(await bound.function(seconds, **bound.parse(call.arguments)))

    async def close(self) -> None:
        """Frees what the functions work on."""
        await self.closes()
