"""Blocking calls with a deadline."""

import asyncio
import threading

import pytest

from rollout.thread import threaded


async def test_what_it_gives_and_raises_comes_back() -> None:
    assert await threaded(lambda: 1 + 1, 10, "sum") == 2
    with pytest.raises(ZeroDivisionError):
        await threaded(lambda: 1 // 0, 10, "division")
    with pytest.raises(TimeoutError, match="its own"):
        await threaded(_own, 10, "its own")


def _own() -> None:
    raise TimeoutError("its own")


async def test_invariant_5_a_call_that_never_ends_is_left_behind_and_named() -> None:
    gate = threading.Event()
    try:
        with pytest.raises(TimeoutError, match=r"disk: no answer within 0\.01 s"):
            await threaded(gate.wait, 0.01, "disk")
        [left] = [thread for thread in threading.enumerate() if thread.name == "disk"]
        assert left.daemon, "it keeps no process from ending"
    finally:
        gate.set()


async def test_a_caller_that_is_cancelled_does_not_leave_it_going_on() -> None:
    begun, gate, ended = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait()
        ended.set()

    task = asyncio.create_task(threaded(work, 10, "commit"))
    await begun.wait()
    task.cancel()
    loop.call_later(0.05, gate.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
