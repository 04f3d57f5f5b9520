"""The watchdog: says what a job waits for, which part is to be replaced, and when a run cannot go on.

A pure state machine; the driver passes in what its runners tell and what the clock says.

    see(runner, sight) ---> what every part is waited for, and since when
    ended()            ---> an episode has a row that is no failure
    look() -> Outlook: waiting  named as soon as a part is silent or nothing ends for `name_seconds`
                       mend     parts silent for `silent_seconds`, or that finished nothing for half of `stuck_seconds`
                       stuck    nothing but failures for `stuck_seconds`, or a part that was replaced in vain

Progress is a turn or an episode that ends otherwise than failed. A model that takes long is no alarm: its replica
shows signs of life all the while, and `stuck_seconds` is more than all attempts of a sample may take.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from rollout.trajectory import Limits
from rollout.waits import Sight, Wait

MOST_MENDS = 3
"""How often a part is replaced"""
MEMORY_SECONDS = 3600.0
"""within so long, before the run is given up."""
NAME_SECONDS = 10.0
"""Twice as long as a part that is well may be silent: see `actors.courier`."""
PAUSE_SECONDS = 5.0
"""A watchdog that was not asked for longer than this was itself kept from running: nobody else is blamed for that."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How patient a watchdog is, in seconds."""

    stuck: float
    silent: float = 60.0
    again: float = 120.0
    """What a replaced part may take to start, before it is replaced again."""
    name: float = NAME_SECONDS
    """When a part that is waited for is named."""

    @staticmethod
    def of(limits: Limits, attempts: int, stuck: float | None, silent: float, again: float) -> Bounds:
        """Where `stuck` is not given it is longer than one sample can hold a run up with all its attempts: so long as
        a resumed run begins with that sample it writes its row, and every run comes further than the one before. After
        `silent` what a part was asked is given up elsewhere; it is replaced after twice as long."""
        longest = max(limits.turn_seconds, limits.tool_seconds, limits.seed_seconds, limits.verify_seconds)
        return Bounds(stuck or (attempts + 1) * longest, 2 * silent, again, min(NAME_SECONDS, silent))


@dataclass(frozen=True, slots=True)
class Mend:
    """A part that is to be replaced. `stalled` says that it finishes nothing, although it may show signs of life."""

    part: str
    stalled: bool
    why: str
    who: str | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the watchdog thinks."""

    waiting: str | None = None
    """What to show, worst first: `host 1: 12 tool calls, the oldest for 95 s`."""
    mend: tuple[Mend, ...] = ()
    stuck: str | None = None
    """Why the run is to end."""


@dataclass(slots=True)
class Watchdog:
    """One for a run. Only `mendable` parts can be replaced; the others are named."""

    bounds: Bounds
    began: float
    mendable: frozenset[str] = frozenset()
    _progress: float = 0.0
    _looked: float = 0.0
    _sights: dict[str, Sight] = field(default_factory=dict[str, Sight])
    _well: dict[str, float] = field(default_factory=dict[str, float])
    """When a part was last known to be well from elsewhere, or was replaced."""
    _mends: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def __post_init__(self) -> None:
        self._progress = self._looked = self.began

    def see(self, who: str, sight: Sight, now: float) -> None:
        """What a process tells; it replaces what it told before."""
        before = self._sights.get(who)
        if sight.turns > (before.turns if before else 0):
            self._progress = now
        self._sights[who] = sight

    def ended(self, now: float) -> None:
        """An episode ended, and not as a failure."""
        self._progress = now

    def forget(self, who: str) -> None:
        """A process that tells nothing any more."""
        self._sights.pop(who, None)

    def well(self, part: str, now: float) -> None:
        """Somebody has looked and it answers: it was not replaced, and its silence counts from now on."""
        self._well[part] = now
        if mends := self._mends.get(part):
            mends.pop()

    def look(self, now: float) -> Outlook:
        """What is to be shown and done now. A part is named for mending once and then left in peace to start."""
        if (away := now - self._looked) > PAUSE_SECONDS:
            self._progress += away
        self._looked = now
        waits = self._merged(now)
        idle = now - self._progress
        worst = self._worst(waits, idle)
        waiting = self._told(worst, waits) if worst is not None else None
        if idle >= self.bounds.stuck:
            what = f"; waiting for {waiting}" if waiting else ""
            return Outlook(waiting, stuck=f"no turn and no episode has ended well for {idle:,.0f} s{what}")
        mends: list[Mend] = []
        for wait in waits:
            if (mend := self._due(wait, now)) is None:
                continue
            recent = [at for at in self._mends.get(wait.part, ()) if now - at < MEMORY_SECONDS]
            if len(recent) >= MOST_MENDS:
                return Outlook(waiting, stuck=f"{mend.why}; it was replaced {len(recent)} times")
            self._mends[wait.part] = [*recent, now]
            self._well[wait.part] = now
            mends.append(mend)
        return Outlook(waiting, tuple(mends))

    def _due(self, wait: Wait, now: float) -> Mend | None:
        mended = self._mends.get(wait.part)
        if wait.part not in self.mendable or (mended and now - mended[-1] < self.bounds.again):
            return None
        if wait.silent is not None and wait.silent >= self.bounds.silent:
            return Mend(wait.part, stalled=False, why=self._line(wait), who=wait.who)
        if wait.stalled >= self.bounds.stuck / 2:
            why = f"{self._line(wait)}, and none has ended well for {wait.stalled:,.0f} s"
            return Mend(wait.part, stalled=True, why=why, who=wait.who)
        return None

    def _worst(self, waits: list[Wait], idle: float) -> Wait | None:
        """The part that has been silent longest; where all give signs of life and nothing ends, the one waited for
        longest."""
        silent = [wait for wait in waits if self._silent(wait)]
        if silent:
            return max(silent, key=lambda wait: wait.silent or 0.0)
        slow = [wait for wait in waits if wait.kinds and wait.oldest >= self.bounds.name]
        return max(slow, key=lambda wait: wait.oldest, default=None) if idle >= self.bounds.name else None

    def _told(self, worst: Wait, waits: list[Wait]) -> str:
        others = sum(wait is not worst and self._silent(wait) for wait in waits)
        return self._line(worst) + (f" (so are {others} more)" if others and self._silent(worst) else "")

    def _line(self, wait: Wait) -> str:
        part = f"{wait.part} (replica {wait.who})" if wait.who else wait.part
        if self._silent(wait):
            owed = f" ({counted(wait.kinds)})" if wait.kinds else ""
            return f"{part}: silent for {wait.silent:,.0f} s{owed}"
        return f"{part}: {counted(wait.kinds)}, the oldest for {wait.oldest:,.0f} s"

    def _silent(self, wait: Wait) -> bool:
        return wait.silent is not None and wait.silent >= self.bounds.name

    def _merged(self, now: float) -> list[Wait]:
        """Every part once: it is as well as the process finds that hears most of it."""
        parts: dict[str, Wait] = {}
        for sight in self._sights.values():
            for wait in sight.waits:
                known = parts.get(wait.part)
                parts[wait.part] = wait if known is None else _both(known, wait)
        for part, at in self._well.items():
            if (wait := parts.get(part)) is not None:
                silent = None if wait.silent is None else min(wait.silent, now - at)
                parts[part] = replace(wait, silent=silent, stalled=min(wait.stalled, now - at))
        return list(parts.values())


def counted(kinds: tuple[tuple[str, int], ...]) -> str:
    """`12 tool calls and 1 seeding`."""
    return " and ".join(f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in kinds)


def _both(one: Wait, other: Wait) -> Wait:
    kinds = Counter(dict(one.kinds))
    kinds.update(dict(other.kinds))
    heard = [wait.silent for wait in (one, other) if wait.silent is not None]
    return Wait(
        one.part,
        tuple(kinds.items()),
        max(one.oldest, other.oldest),
        min(one.stalled, other.stalled),
        min(heard, default=None),
        one.who or other.who,
    )
