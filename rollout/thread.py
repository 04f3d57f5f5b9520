"""Blocking calls off the event loop, each with a deadline: disks and servers of others may never answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

DISK_SECONDS = 300.0
"""What a file of rows or its commit may take, on whatever it is that the run's folder lies on."""


async def threaded(function: Callable[[], T], seconds: float, what: str) -> T:
    """What `function` gives, called in a thread of its own.

    Raises TimeoutError naming `what` when it has not ended within `seconds`. Nothing can end a thread, so it is left
    behind, as a daemon: unlike one of asyncio's executor it keeps no process from ending. A caller that is cancelled
    waits for it all the same, so that what it does is not still going on afterwards.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    answer.add_done_callback(_seen)
    threading.Thread(target=_work, args=(loop, answer, function), name=what, daemon=True).start()
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            return await asyncio.shield(answer)
    except TimeoutError:
        if deadline.expired():
            raise TimeoutError(f"{what}: no answer within {seconds:g} s") from None
        raise
    except asyncio.CancelledError:
        await asyncio.wait([answer], timeout=seconds)
        raise


def _work(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any], function: Callable[[], Any]) -> None:
    value, raised = None, None
    try:
        value = function()
    except BaseException as error:  # raised again where it is waited for
        raised = error
    with suppress(RuntimeError):  # the loop has ended: nobody waits any more
        loop.call_soon_threadsafe(_settle, answer, value, raised)


def _settle(answer: asyncio.Future[Any], value: Any, raised: BaseException | None) -> None:
    if answer.done():
        return
    if raised is None:
        answer.set_result(value)
    else:
        answer.set_exception(raised)


def _seen(answer: asyncio.Future[Any]) -> None:
    """An error that comes after the deadline is nobody's any more."""
    if not answer.cancelled():
        answer.exception()
