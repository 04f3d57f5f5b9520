"""The tool calls of one turn: each gets exactly one result, in the order of the calls, whatever happened to it.

What the policy did wrong is told to the policy. What broke outside of it ends the episode, but only after the other
calls of the turn have ended, and its call has a result in the row all the same.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from rollout.errors import BoundaryError, boundary
from rollout.protocols import Session
from rollout.trajectory import FailureKind, ToolCall, ToolResult, ToolUse

TRANSPORT_SECONDS = 5.0
"""What a call to another process may take beyond the deadline that is enforced over there."""


@dataclass(frozen=True, slots=True)
class ToolsUsed:
    """What became of a turn's calls; `broken` is the first one that failed outside of tool and policy."""

    uses: tuple[ToolUse, ...] = ()
    broken: BoundaryError | None = None
    snapshot: bytes | None = None
    """The session's state after the last of them to end, of resources that give one."""


async def use_tools(
    session: Session,
    calls: Sequence[ToolCall],
    allowed: Sequence[str],
    seconds: float,
    cut: bool,
    under_way: Container[str] = (),
) -> ToolsUsed:
    """Runs all calls of a turn at once, each within `seconds`; when the completion was `cut` none but those whose ids
    are `under_way`."""
    snapshots: list[bytes] = []
    if len(calls) == 1:
        one_cut = cut and calls[0].id not in under_way
        answers = [await _use(session, calls[0], allowed, seconds, one_cut, snapshots)]
    else:
        running = [_use(session, one, allowed, seconds, cut and one.id not in under_way, snapshots) for one in calls]
        answers = [_raised(answer) for answer in await asyncio.gather(*running, return_exceptions=True)]
    uses = tuple(ToolUse(call, _result(answer)) for call, answer in zip(calls, answers, strict=True))
    broken = next((answer for answer in answers if isinstance(answer, BoundaryError)), None)
    return ToolsUsed(uses, broken, snapshots[-1] if snapshots else None)


async def _use(
    session: Session, call: ToolCall, allowed: Sequence[str], seconds: float, cut: bool, snapshots: list[bytes]
) -> ToolResult | BoundaryError:
    """One call's result; the state that came with it is put behind those of calls that ended before."""
    if (refused := refusal(call, allowed, cut)) is not None:
        return refused
    try:
        async with boundary(FailureKind.TOOL, call.name, seconds + TRANSPORT_SECONDS):
            result, snapshot = await session.call(call, seconds)
            if snapshot is not None:
                snapshots.append(snapshot)
            return sound(result)
    except BoundaryError as error:
        return error


def unanswered(calls: Sequence[ToolCall]) -> tuple[ToolUse, ...]:
    """What becomes of calls whose episode is broken off while they run."""
    result = ToolResult("", error="the episode was broken off before the answer came")
    return tuple(ToolUse(call, result) for call in calls)


def refusal(call: ToolCall, allowed: Sequence[str], cut: bool) -> ToolResult | None:
    """The result of a call that cannot run: of a completion that was `cut`, unreadable, or of a tool there is not."""
    if cut:
        return skipped("the completion was cut before this call could run")
    if not call.name:
        return skipped("a tool call must be a JSON object with name and arguments")
    if call.name not in allowed:
        return skipped(f"there is no tool '{call.name}'; there are: {', '.join(sorted(allowed)) or 'none'}")
    return None


def sound(result: ToolResult) -> ToolResult:
    """The result, if it is one that a prompt and a row can hold. A tool may return anything."""
    if not isinstance(result.content, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"the tool's content is no text but {type(result.content).__name__}")
    if result.reward is not None and not math.isfinite(result.reward):
        raise ValueError(f"the tool's reward is {result.reward}")
    return result


def _result(answer: ToolResult | BoundaryError) -> ToolResult:
    return ToolResult("", error=str(answer)) if isinstance(answer, BoundaryError) else answer


def skipped(why: str) -> ToolResult:
    """The result of a call that is not run."""
    return ToolResult(f"error: {why}", error=why, skipped=True)


def _raised(answer: ToolResult | BoundaryError | BaseException) -> ToolResult | BoundaryError:
    if isinstance(answer, ToolResult | BoundaryError):
        return answer
    raise answer
