"""Tools that are plain typed Python functions, named in a conf.

    def search(query: str, count: int = 5) -> list[str]:
        '''Search the library.

        Args:
            query: What to look for.
            count: How many titles at most.
        '''

Name, docstring and annotations become the tool's schema, as of a resource's tools; plain functions run off the event
loop. They have no session: what must differ from episode to episode belongs into a resource.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from rollout.agents.calling import called
from rollout.errors import ToolError, UserError, describe, nearest
from rollout.references import load_function
from rollout.resource import BoundTool, bind
from rollout.tool_answer import tool_answer
from rollout.trajectory import ToolCall, ToolResult, ToolSpec

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class FunctionTools:
    """A ToolSet of functions. Safe to share between episodes, as far as the functions are."""

    tools: dict[str, BoundTool]
    clock: Callable[[], float] = time.monotonic

    @staticmethod
    def of(references: Iterable[str], key: str = "agent.tools") -> FunctionTools:
        """The functions that these references name. Raises UserError in one line that begins with `key`."""
        tools: dict[str, BoundTool] = {}
        for reference in references:
            bound = _bound(load_function(reference, key), reference.rpartition(":")[2], key)
            if bound.spec.name in tools:
                raise UserError(f"{key}: two functions are named '{bound.spec.name}'; expected a name for each tool")
            tools[bound.spec.name] = bound
        return FunctionTools(tools)

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """See ToolSet."""
        return tuple(bound.spec for bound in self.tools.values())

    async def call(self, call: ToolCall, seconds: float) -> ToolResult:
        """See ToolSet. A function may return what a resource's tool may, and raise ToolError and ResourceDown."""
        return await tool_answer(self._run(call, seconds), call.name, seconds, self.clock)

    async def close(self) -> None:
        """Functions hold nothing."""

    async def _run(self, call: ToolCall, seconds: float) -> Any:
        bound = self.tools.get(call.name)
        if bound is None:
            raise ToolError(f"there is no tool '{call.name}'{nearest(call.name, self.tools)}")
        return await called(bound.function, (), bound.parse(call.arguments), seconds, call.name)


def _bound(function: Callable[..., Any], name: str, key: str) -> BoundTool:
    try:
        odd = [one.name for one in inspect.signature(function).parameters.values() if one.kind not in _NAMED]
        bound = bind(function, 0)
    except Exception as error:  # a person's own annotations are evaluated
        raise UserError(f"{key}: {name}: no schema can be made of its arguments: {describe(error)}") from error
    if odd:
        raise UserError(f"{key}: {name}: '{odd[0]}' cannot be given by name; expected plain named arguments")
    return replace(bound, spec=replace(bound.spec, name=name))
