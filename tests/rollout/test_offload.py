import asyncio
import operator
import os
import signal
import time
from collections.abc import Iterator
from itertools import repeat

import pytest

from rollout import offload
from rollout.errors import ResourceDown

SOON = 30.0
"""More than a process needs to start on a busy machine."""


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    offload.shutdown()
    offload.configure(1)
    yield
    offload.shutdown()
    offload.configure(2)


async def test_work_is_done_in_another_process() -> None:
    assert await offload.offload(operator.add, 2, 3, seconds=SOON) == 5
    assert await offload.offload(os.getpid, seconds=SOON) != os.getpid()


async def test_a_function_that_spins_for_ever_is_killed_and_the_pool_goes_on() -> None:
    with pytest.raises(offload.OffloadTimeout, match=r"countOf ran longer than 0\.2 s"):
        await offload.offload(operator.countOf, repeat(0), 1, seconds=0.2)
    assert await offload.offload(operator.add, 2, 3, seconds=SOON) == 5


async def test_a_process_that_dies_is_the_resources_failure_and_the_pool_goes_on() -> None:
    with pytest.raises(ResourceDown, match="_exit died"):
        await offload.offload(os._exit, 3, seconds=SOON)
    assert await offload.offload(operator.add, 2, 3, seconds=SOON) == 5


async def test_a_process_that_is_killed_while_it_waits_costs_nothing_that_comes_later() -> None:
    for _ in range(3):
        os.kill(await offload.offload(os.getpid, seconds=SOON), signal.SIGKILL)
        works = [offload.offload(operator.add, 2, 3, seconds=SOON) for _ in range(5)]
        ends = await asyncio.gather(*works, return_exceptions=True)
        assert all(end == 5 or isinstance(end, ResourceDown) for end in ends), ends
        assert await offload.offload(operator.add, 2, 3, seconds=SOON) == 5


async def test_what_the_function_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        await offload.offload(int, "x", seconds=SOON)


async def test_waiting_in_the_queue_is_not_running() -> None:
    works = [offload.offload(time.sleep, 0.3, seconds=1.0) for _ in range(5)]
    assert await asyncio.gather(*works) == [None] * 5


async def test_cancelled_work_frees_its_process() -> None:
    work = asyncio.create_task(offload.offload(operator.countOf, repeat(0), 1, seconds=3600))
    await asyncio.sleep(0.1)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await offload.offload(operator.add, 2, 3, seconds=SOON) == 5


async def test_the_pool_can_be_stopped_and_comes_back() -> None:
    first = await offload.offload(os.getpid, seconds=SOON)
    offload.shutdown()
    offload.shutdown()
    assert await offload.offload(os.getpid, seconds=SOON) != first
