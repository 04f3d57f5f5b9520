"""A person's own functions, named in a configuration: called with a deadline, plain ones off the event loop."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from rollout.deadlines import deadline
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
    if _is_async(function):
        return await _within(function(*arguments, **named), seconds, what)
    context = contextvars.copy_context()
    plain = partial(function, *arguments, **named)
    value = await threaded(lambda: context.run(plain), seconds, what)
    return await _within(value, seconds, what) if inspect.isawaitable(value) else value


async def asked(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float, where: str) -> Any:
    """The same at the boundary to what is not ours: raises BoundaryError of kind `agent` for whatever goes wrong.

    Its cause is a TimeoutError when the function did not answer in time. UserError is let through.
    """
    begun = _begun(function, arguments) if _is_async(function) else None
    if isinstance(begun, _Answered):
        return begun.value
    async with boundary(FailureKind.AGENT, where, 2 * seconds + _GRACE):
        if begun is not None:
            return await _within(begun, seconds, where)
        return await called(function, arguments, {}, seconds, where)


@cache
def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


@dataclass(frozen=True, slots=True)
class _Answered:
    """It waited for nothing, as most hooks and checks do: no deadline need be kept."""

    value: Any


@dataclass(slots=True)
class _Rest:
    """A coroutine that was begun, from where it first waits on; or what it raised before that."""

    work: Coroutine[Any, Any, Any] | None
    waits: Any = None
    raised: Exception | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        if self.work is None:
            assert self.raised is not None, "it waits or it has raised"
            raise self.raised
        waits = self.waits
        while True:
            try:
                sent = yield waits
            except GeneratorExit:
                self.work.close()
                raise
            except BaseException as error:  # a cancellation, and what it waited for: both belong into it
                step, given = self.work.throw, error
            else:
                step, given = self.work.send, sent
            try:
                waits = step(given)
            except StopIteration as answered:
                return answered.value


def _begun(function: Callable[..., Coroutine[Any, Any, Any]], arguments: tuple[Any, ...]) -> _Answered | _Rest:
    """Runs it in this task up to where it waits for something."""
    try:
        work = function(*arguments)
        return _Rest(work, work.send(None))
    except StopIteration as answered:
        return _Answered(answered.value)
    except Exception as error:  # raised again behind the boundary
        return _Rest(None, raised=error)


async def _within(work: Awaitable[Any], seconds: float, what: str) -> Any:
    bound = deadline(seconds)
    try:
        async with bound:
            return await work
    except TimeoutError:
        if bound.expired():
            raise TimeoutError(f"{what}: no answer within {seconds:g} s") from None
        raise
