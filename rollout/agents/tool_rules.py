"""How the tools of an agent are used, and what is made of calls before they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rollout.tool_use import refusal
from rollout.trajectory import ToolCall, ToolResult, ToolUse

Ruling = ToolCall | ToolResult
"""What becomes of a call: the call to make, perhaps not as it was sampled, or the result it has without being made."""


@dataclass(frozen=True, slots=True)
class ToolRule:
    """How one tool is used."""

    return_direct: bool = False
    """Its answer, if it is no error, ends the run."""
    sequential: bool = False
    """It runs alone."""
    timeout: float | None = None
    """Seconds a call may take; None is the limit of the episode."""
    max_output: int | None = None
    """Characters the policy reads; 0 is all, None as many as of the agent's other tools."""
    on_error: Literal["feed_back", "infra_error"] = "feed_back"
    """What a tool that crashed or gave no answer in time is. An error that the policy made is always fed back."""
    retries: int | None = None
    """Errors in a row that the policy may answer with another try; None is any number. See `out_of_retries`."""


PLAIN = ToolRule()


def unruled(calls: Sequence[ToolCall], allowed: Sequence[str], cut: bool) -> tuple[Ruling, ...]:
    """What becomes of calls before anybody is asked: those that cannot run have their results."""
    return tuple(refusal(call, allowed, cut) or call for call in calls)


def out_of_retries(uses: Iterable[ToolUse], rules: Mapping[str, ToolRule]) -> str | None:
    """The first tool whose latest calls were errors, more in a row than its `retries` allow.

    Of all tool uses of an episode in order, so that it also holds behind restored turns. Calls that were not made
    count neither way.
    """
    in_a_row: dict[str, int] = {}
    for use in uses:
        if not use.result.skipped:
            in_a_row[use.call.name] = in_a_row.get(use.call.name, 0) + 1 if use.result.error is not None else 0
    for name, count in in_a_row.items():
        allowed = rules.get(name, PLAIN).retries
        if allowed is not None and count > allowed:
            return name
    return None
