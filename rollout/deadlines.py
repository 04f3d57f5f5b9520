"""Deadlines for awaits that nearly always end in time, thousands of them at once.

A timer for each (`asyncio.timeout`) costs as much as a small await itself: it goes through the event loop's heap and
stays there, cancelled, until its time. Here all deadlines of a loop that are not near stand in one set, which is looked
through a few times a second; a deadline of `NEAR` seconds or less has a timer, as it would be late otherwise.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

NEAR = 5.0
LOOK_SECONDS = 0.25
"""How late a deadline that is not near may be at most: a twentieth."""


class _State(Enum):
    OPEN = auto()
    EXPIRING = auto()
    CLOSED = auto()


class deadline:
    """`async with deadline(seconds)` raises TimeoutError when what stands in it has not ended by then.

    Works by cancelling the task, as `asyncio.timeout` does and with its rules: a cancellation from elsewhere goes on as
    one, and what ended with an error of its own keeps it. `expired` tells whether the time was up.
    """

    __slots__ = ("_cancelling", "_state", "_task", "_timer", "_waiting", "seconds", "when")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._state = _State.OPEN
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: _Waiting | None = None

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline belongs to a task")
        self._task = task
        self._cancelling = task.cancelling()
        loop = task.get_loop()
        if self.seconds <= NEAR:
            self._timer = loop.call_later(max(0.0, self.seconds), self.expire)
        else:
            self.when = loop.time() + self.seconds
            self._waiting = _of(loop)
            self._waiting.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state is _State.OPEN:
            self._state = _State.CLOSED
            if self._timer is not None:
                self._timer.cancel()
            elif self._waiting is not None:
                self._waiting.remove(self)
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expired(self) -> bool:
        """Whether it passed before what it bounds had ended."""
        return self._state is _State.EXPIRING

    def expire(self) -> None:
        """The time is up."""
        self._state = _State.EXPIRING
        self._task.cancel()


class _Waiting:
    """The deadlines of a loop that are not near. It does not hold the loop, which would then never be freed."""

    def __init__(self) -> None:
        self._open: dict[deadline, None] = {}
        self._looks = False

    def add(self, one: deadline) -> None:
        self._open[one] = None
        if not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def remove(self, one: deadline) -> None:
        self._open.pop(one, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for one in [one for one in self._open if one.when <= now]:
            del self._open[one]
            one.expire()
        self._looks = bool(self._open)
        if self._looks:
            loop.call_later(LOOK_SECONDS, self._look)


_LOOPS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Waiting] = WeakKeyDictionary()


def _of(loop: asyncio.AbstractEventLoop) -> _Waiting:
    found = _LOOPS.get(loop)
    if found is None:
        found = _LOOPS[loop] = _Waiting()
    return found
