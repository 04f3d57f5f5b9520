"""Places at an engine, and the order in which those that wait get one."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class Places:
    """A semaphore whose next place goes to the one that is due first, and of equals to the one that came first."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def take(self, due: float) -> None:
        """Waits for a place. Whoever has one gives it back; a cancelled wait leaves none taken."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (due, next(self._numbers), place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given in the same moment
                self.give_back()
            raise

    def give_back(self) -> None:
        """A place is free."""
        while self._waiting:
            place = heapq.heappop(self._waiting)[2]
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


def due(now: float, priority: int, seconds: float) -> float:
    """When a call is due that came at `now`, in seconds of any clock: each step of its priority counts as so many
    seconds of waiting, so that nobody waits for ever behind those that are more urgent."""
    return now + priority * seconds
