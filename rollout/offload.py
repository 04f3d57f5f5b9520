"""CPU-heavy work off the event loop, in a bounded pool of processes with a hard deadline.

A function that spins for ever costs one process: at its deadline the process is killed and replaced, and only the
caller that sent it hears of it. Processes are spawned, not forked: hosts have threads.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any, cast

from pebble import CONSTS, ProcessExpired, ProcessPool

from rollout.errors import ResourceDown


class OffloadTimeout(Exception):
    """The function did not end within its deadline; its process was killed."""


@lru_cache(maxsize=1)
def _pool() -> ProcessPool:
    CONSTS.term_timeout = 0.2  # the whole pool waits this long for a process that C code keeps from hearing SIGTERM
    context = cast(Any, multiprocessing.get_context("spawn"))  # pebble's annotation leaves spawn contexts out
    return ProcessPool(max_workers=_Settings.workers, max_tasks=1000, context=context)


def _working_pool() -> ProcessPool:
    """The pool; a new one when it broke, which it does when an idle process of it is killed, by the kernel say."""
    if not (pool := _pool()).active:
        _pool.cache_clear()
        pool.stop()
    return _pool()


class _Settings:
    workers = 2
    pending = 0


def configure(workers: int) -> None:
    """Sets the number of processes; takes effect if no work has been offloaded yet."""
    _Settings.workers = workers


def pending() -> int:
    """Calls in the processes, or waiting for one."""
    return _Settings.pending


async def offload(function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """`function(*arguments)` in a pool process; function and arguments must pickle.

    The deadline of `seconds` runs from when a process takes the work, so a long queue kills nobody. Raises
    OffloadTimeout at the deadline, ResourceDown if the process died, and whatever the function raised.
    """
    future = _working_pool().schedule(function, args=list(arguments), timeout=seconds)
    _Settings.pending += 1
    try:
        return await asyncio.wrap_future(future)
    except TimeoutError:
        raise OffloadTimeout(f"{getattr(function, '__name__', 'work')} ran longer than {seconds:g} s") from None
    except (ProcessExpired, BrokenProcessPool) as error:
        raise ResourceDown(f"the process running {getattr(function, '__name__', 'work')} died: {error}") from error
    finally:
        _Settings.pending -= 1


def shutdown() -> None:
    """Ends the pool's processes. For hosts that stop and for tests."""
    if _pool.cache_info().currsize:
        pool = _pool()
        pool.stop()
        pool.join()
        _pool.cache_clear()
