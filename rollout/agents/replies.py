"""What the policy is told of calls that no tool of the environment answers: each gets its one result all the same."""

from __future__ import annotations

from collections.abc import Iterable

from rollout import tool_use
from rollout.conduct import answer
from rollout.trajectory import Message, ToolCall, ToolResult, ToolUse


def skipped(call: ToolCall, why: str) -> ToolUse:
    """A call that never ran, and the reason that the policy reads."""
    return ToolUse(call, tool_use.skipped(why))


def refused(call: ToolCall, why: str) -> ToolUse:
    """A call that was read and is wrong, and what the policy reads about it."""
    return ToolUse(call, ToolResult(f"error: {why}", error=why))


def answered(call: ToolCall, content: str) -> ToolUse:
    """A call that the engine itself answers."""
    return ToolUse(call, ToolResult(content))


def tool_messages(uses: Iterable[ToolUse]) -> tuple[Message, ...]:
    """The results as the policy reads them, in the order of the calls."""
    return tuple(answer(use) for use in uses)
