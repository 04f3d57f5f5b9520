"""A person's own functions, named in a configuration: called with a deadline, plain ones off the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, partial
from typing import Any

from rollout.errors import boundary
from rollout.thread import threaded
from rollout.trajectory import FailureKind

_GRACE = 5.0
"""What may pass beyond the deadline of a function before it is given up whatever it does."""


async def called(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any], seconds: float, what: str
) -> Any:
    """What `function` gives, plain or async, within `seconds`.

    A plain function has a thread of its own, with a copy of the caller's context variables, as it may block. Raises
    TimeoutError naming `what`, and whatever the function raises.
    """
    work = partial(function, *arguments, **named)
    if _is_async(function):
        return await _within(work(), seconds, what)
    context = contextvars.copy_context()
    value = await threaded(lambda: context.run(work), seconds, what)
    return await _within(value, seconds, what) if inspect.isawaitable(value) else value


async def asked(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float, where: str) -> Any:
    """The same at the boundary to what is not ours: raises BoundaryError of kind `agent` for whatever goes wrong.

    Its cause is a TimeoutError when the function did not answer in time. UserError is let through.
    """
    async with boundary(FailureKind.AGENT, where, 2 * seconds + _GRACE):
        return await called(function, arguments, {}, seconds, where)


@cache
def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


async def _within(work: Awaitable[Any], seconds: float, what: str) -> Any:
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            return await work
    except TimeoutError:
        if deadline.expired():
            raise TimeoutError(f"{what}: no answer within {seconds:g} s") from None
        raise
