"""Tools that are not those of the resource: what an agent brings along."""

from __future__ import annotations

from typing import Protocol

from rollout.trajectory import ToolCall, ToolResult, ToolSpec


class ToolSet(Protocol):
    """Tools beside those of the resource: what the policy is told, and what answers."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools as the policy is told of them."""
        ...

    async def call(self, call: ToolCall, seconds: float) -> ToolResult:
        """Runs one of them within `seconds`. What the call did wrong is in the result; what broke outside of the
        policy raises."""
        ...

    async def close(self) -> None:
        """Frees what the tools hold. Idempotent."""
        ...
