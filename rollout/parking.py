"""Episodes that wait for a person, off their slots: the side of whoever plays them.

    async with parking.away(episode_id):    the wait; nobody counts its time
        ...                                 the slot goes to another episode meanwhile
    ...                                     there is a slot again

A runner tells its driver who has left and who would come back (`take`), and lets those on that have a slot (`resume`);
`rollout.scheduling` decides. A wait that is over before anybody was told of it has kept its slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Container, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


def _nobody() -> None:
    """Nobody listens."""


@dataclass(slots=True)
class Parking:
    """The waits of one process. Without `playing`, where nobody hands out slots, everybody stays where they are."""

    playing: Container[str] = ()
    """Episodes that have a slot of their own: a child of another waits in its parent's."""
    news: Callable[[], None] = _nobody
    """Called when there is something to take."""
    _left: dict[str, None] = field(default_factory=dict[str, None])
    _back: dict[str, None] = field(default_factory=dict[str, None])
    _gates: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])

    @asynccontextmanager
    async def away(self, episode_id: str) -> AsyncGenerator[None]:
        """The slot is given away for the block, and there is one again behind it, however long that takes.

        A block that raises ends its episode, which needs no slot for that.
        """
        if episode_id not in self.playing or episode_id in self._gates:
            yield
            return
        gate = self._gates[episode_id] = asyncio.Event()
        try:
            self._left[episode_id] = None
            self.news()
            yield
            if episode_id not in self._left:
                self._back[episode_id] = None
                self.news()
                await gate.wait()
        finally:
            del self._gates[episode_id]
            self._left.pop(episode_id, None)
            self._back.pop(episode_id, None)

    def take(self) -> tuple[list[str], list[str]]:
        """Who has left and who would come back since this was asked last, in order."""
        left, back = list(self._left), list(self._back)
        self._left.clear()
        self._back.clear()
        return left, back

    def resume(self, episode_ids: Iterable[str]) -> None:
        """Lets those on that have a slot again; who has ended meanwhile is not missed."""
        for episode_id in episode_ids:
            if (gate := self._gates.get(episode_id)) is not None:
                gate.set()
