"""Many pieces of work at once, never more than so many, however many there are in all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from rollout.thread import DISK_SECONDS, threaded

T = TypeVar("T")
R = TypeVar("R")


async def windowed(batches: Iterator[Sequence[T]], work: Callable[[T], Awaitable[R]], limit: int) -> AsyncGenerator[R]:
    """What `work` gives for every item, in the order in which it ends; at most `limit` items are in work at once.

    The next batch is read in a thread, when the one before is in work. `work` keeps its own deadlines; what it raises
    ends the rest. Close the generator when leaving it early.
    """
    running: set[asyncio.Future[R]] = set()
    try:
        while (batch := await threaded(partial(next, batches, None), DISK_SECONDS, "reading rows")) is not None:
            for item in batch:
                while len(running) >= limit:
                    ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for one in ended:
                        yield one.result()
                running.add(asyncio.ensure_future(work(item)))
        while running:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for one in ended:
                yield one.result()
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
