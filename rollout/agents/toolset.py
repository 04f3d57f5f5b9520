"""The seam for tools beside those of the resource: MCP servers, skills, memory, handoffs, plain functions."""

from __future__ import annotations

from typing import Protocol

from rollout.trajectory import ToolCall, ToolResult, ToolSpec


class ToolSet(Protocol):
    """Tools beside those of the resource: what the policy is told, and what answers."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools as the policy is told of them; the same as long as the set is open."""
        ...

    async def call(self, call: ToolCall, seconds: float) -> ToolResult:
        """Runs one tool within `seconds`. What the tool or its arguments did wrong is in the result.

        Raises ResourceDown when the tools cannot work at all: that is no answer to the policy.
        """
        ...

    async def close(self) -> None:
        """Frees what the set holds. Idempotent."""
        ...
