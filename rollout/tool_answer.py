"""What a tool gave or raised, as its one result: the same for a resource's tools and for those beside them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from rollout.errors import ResourceDown, ToolError, describe
from rollout.resource import as_result
from rollout.trajectory import ToolResult


async def tool_answer(work: Awaitable[Any], name: str, seconds: float, clock: Callable[[], float]) -> ToolResult:
    """The result of a tool's `work`, which ends by itself within `seconds`; everything but ResourceDown becomes one.

    What the policy did wrong (ToolError) is an error; a bug or a deadline is one too, and has `crashed`.
    """
    started = clock()
    try:
        result = as_result(await work)
    except ResourceDown:
        raise
    except ToolError as error:
        result = ToolResult(f"error: {error}", error=str(error))
    except TimeoutError:
        message = f"{name} did not answer within {seconds:g} s"
        result = ToolResult(f"error: {message}", error=message, crashed=True)
    except Exception as error:  # a tool's bug is the tool's answer: the policy and the row both see it
        result = ToolResult(f"error: {describe(error)}", error=describe(error), crashed=True)
    return replace(result, seconds=clock() - started)
