"""What this process waits for elsewhere: which part of the job, what kind of answer, how many, since when.

    with HERE.on("tool call", "host 1"):        whoever asks another process says so, at about a microsecond an await
        ...
    Courier(HERE.heard_by("host 1", exchange))  every trip that comes back is a sign of life of that part

A runner sends what `Waits.sight` gives along with its reports, and the driver's watchdog (`rollout.watch`) judges.
Times are told as seconds ago, because two processes' clocks have nothing to do with each other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MODEL_CALL = "model call"
"""The kind of await whose answer is a turn."""
RECENT_SECONDS = 10.0
"""How long a part owes an answer that was given up: longer than anybody pauses before asking again."""
MOST_PARTS = 16
"""Parts a sight tells of: those that have been waited for longest."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What one part is waited for. All times are seconds ago."""

    part: str
    kinds: tuple[tuple[str, int], ...]
    """What kind of answer, and how many of it."""
    oldest: float
    """When the first of them was asked for."""
    stalled: float
    """When the part last finished something, or got something to do."""
    silent: float | None = None
    """When it last gave a sign of life while it owed one; None for parts that give none before they are done."""
    who: str | None = None
    """Which of several that may be the part answered last: a replica's name."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a process has done and what it waits for."""

    turns: int
    """Model calls that were answered, since the process started."""
    waits: tuple[Wait, ...] = ()


class _Part:
    """One part as this process knows it."""

    __slots__ = ("count", "finished", "lively", "lost_at", "open", "strict", "trips", "who")

    def __init__(self) -> None:
        self.open: dict[str, dict[int, float]] = {}
        self.count = 0
        self.finished = 0.0
        self.strict = False
        self.trips = 0
        self.lost_at = float("-inf")
        self.lively = 0.0
        self.who: str | None = None

    def owes(self, now: float) -> bool:
        """True when a sign of life is due: somebody asks, or asked in vain and may ask again at any moment."""
        return self.trips > 0 or now - self.lost_at < RECENT_SECONDS


class Waits:
    """Everything one process waits for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._parts: dict[str, _Part] = {}
        self.turns = 0
        """Model calls that were answered."""

    def on(self, kind: str, part: str, strict: bool = False) -> _Waiting:
        """A block that waits for an answer of this kind. A `strict` part is one that answers at once when it is well:
        how long it is waited for is how long it has been silent."""
        known = self._part(part)
        known.strict = strict
        return _Waiting(self, known, kind)

    def heard_by(self, part: str, exchange: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """The same exchange, whose every answer is a sign of life of the part. One that fails is none."""
        known = self._part(part)

        async def heard(*arguments: P.args, **options: P.kwargs) -> T:
            if not known.owes(self._clock()):
                known.lively = self._clock()
            known.trips += 1
            answered = False
            try:
                answer = await exchange(*arguments, **options)
                answered = True
            finally:
                known.trips -= 1
                known.lost_at = float("-inf") if answered else self._clock()
            known.lively = self._clock()
            return answer

        return heard

    def met(self, part: str, who: str | None) -> None:
        """Who it was that answered for the part."""
        self._part(part).who = who

    def sight(self) -> Sight:
        """What is waited for now, the parts that are silent and those waited for longest first."""
        now = self._clock()
        waits = [wait for part, known in self._parts.items() if (wait := _wait(part, known, now)) is not None]
        waits.sort(key=lambda wait: (wait.silent or 0.0, wait.stalled), reverse=True)
        return Sight(self.turns, tuple(waits[:MOST_PARTS]))

    def _part(self, name: str) -> _Part:
        if (known := self._parts.get(name)) is None:
            known = self._parts[name] = _Part()
        return known

    def forget(self, part: str) -> None:
        """Drops a part that is gone for good: a runner that was replaced by one of another name."""
        self._parts.pop(part, None)


class _Waiting:
    """One await. A class, because a generator would cost twice as much."""

    __slots__ = ("_kind", "_number", "_part", "_waits")

    def __init__(self, waits: Waits, part: _Part, kind: str) -> None:
        self._waits = waits
        self._part = part
        self._kind = kind
        self._number = 0

    def __enter__(self) -> None:
        part, now = self._part, self._waits._clock()  # pyright: ignore[reportPrivateUsage] - two halves of one thing
        self._number = next(self._waits._numbers)  # pyright: ignore[reportPrivateUsage]
        if not part.count:
            part.finished = now
        part.count += 1
        if (open_ := part.open.get(self._kind)) is None:
            open_ = part.open[self._kind] = {}
        open_[self._number] = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        part = self._part
        part.count -= 1
        del part.open[self._kind][self._number]
        if kind is None:
            part.finished = self._waits._clock()  # pyright: ignore[reportPrivateUsage]
            if self._kind is MODEL_CALL:
                self._waits.turns += 1


HERE = Waits()
"""What the running process waits for."""


def _wait(part: str, known: _Part, now: float) -> Wait | None:
    """None for a part that owes nothing. Awaits are kept in the order they began: the first is the oldest."""
    owes = known.owes(now)
    if not known.count and not owes:
        return None
    kinds = tuple((kind, len(open_)) for kind, open_ in known.open.items() if open_)
    began = [next(iter(open_.values())) for open_ in known.open.values() if open_]
    oldest = now - min(began, default=now)
    silent = oldest if known.strict else now - known.lively if owes else None
    return Wait(part, kinds, oldest, now - known.finished if known.count else 0.0, silent, known.who)
