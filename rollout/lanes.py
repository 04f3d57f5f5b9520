"""The samples that wait: a lane for each environment of a job, and what of a task is in the engine.

Everything here is read ahead only so far that the longest of it can go first; what has ended is forgotten.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rollout.trajectory import Lease, Task

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a sample is tried again: the first pause, doubled with each attempt, up to the longest."""
LOOK_AHEAD = 16
"""Samples that are read ahead to find the longest among them, for each that may be in flight."""
OVERTAKEN = 4
"""How many times its look-ahead may overtake a short task before it goes first: no task waits for ever."""


@dataclass(slots=True, eq=False)
class Group:
    """The samples of one task that have no committed row yet."""

    lane: Lane
    open: int
    """Samples without a committed row."""
    waiting: deque[Lease]
    """Not handed out yet, in order."""
    place: int
    """How many leases its lane had handed out when it came."""
    again: dict[str, Lease] = field(default_factory=dict[str, Lease])
    """Attempts that failed and are to be repeated, by episode."""
    running: dict[str, str] = field(default_factory=dict[str, str])
    """The runner that plays a sample, by episode."""
    good: int = 0
    """Committed rows that did not fail."""
    closed: str | None = None
    """Why what is left of it is dropped; None while it goes on."""


@dataclass(slots=True, eq=False)
class Lane:
    """Samples of one environment, group by group; how large its share is and what it may hold.

    With `expected` the longest of the samples that were read ahead goes first, and of equals the first that came;
    without it the lane is a queue. A sample whose pause is over goes before all others.
    """

    source: Iterator[Lease]
    """First leases, the samples of a task next to each other. What it raises comes out of `Scheduler.assign`."""
    name: str = ""
    weight: float = 1.0
    """Its share of the slots in relation to those of other lanes."""
    limit: int | None = None
    """Episodes that may run at once: sessions that its hosts hold."""
    expected: Callable[[Task], float] | None = None
    """How long an episode of a task takes, in seconds."""
    look_ahead: int = 4096
    """Samples that are read ahead where `expected` is known."""
    running: int = 0
    """Episodes being played now."""
    parked: int = 0
    """Episodes that wait without a slot; their sessions stay open."""
    exhausted: bool = False
    """True when the source has given everything."""
    _waiting: int = 0
    _pausing: int = 0
    _handed: int = 0
    _entries: int = 0
    _longest: list[tuple[float, int, Group]] = field(default_factory=list[tuple[float, int, Group]])
    _oldest: deque[Group] = field(default_factory=deque[Group])
    _pauses: list[tuple[float, int, str, Group]] = field(default_factory=list[tuple[float, int, str, Group]])
    _ahead: Lease | None = None
    """The first sample of the next group: it showed that the one before was whole."""

    @property
    def load(self) -> float:
        """Running episodes in relation to the weight: the lane with the least is owed the next slot."""
        return self.running / self.weight

    @property
    def full(self) -> bool:
        """True when its hosts hold all they may."""
        return self.limit is not None and self.running + self.parked >= self.limit

    @property
    def drained(self) -> bool:
        """True when it has nothing left to hand out, now or later."""
        return self.exhausted and not self._waiting and not self._pausing

    @property
    def hungry(self) -> bool:
        """True when more of the source should be read before the next lease is chosen."""
        return not self.exhausted and self._waiting < (self.look_ahead if self.expected else 1)

    def read(self) -> Group | None:
        """The next group of the source; None, and `exhausted`, when there is none."""
        first = self._ahead or next(self.source, None)
        self._ahead = None
        if first is None:
            self.exhausted = True
            return None
        waiting = deque([first])
        for lease in self.source:
            if lease.task.index != first.task.index:
                self._ahead = lease
                break
            waiting.append(lease)
        group = Group(self, len(waiting), waiting, self._handed)
        seconds = self.expected(waiting[0].task) if self.expected else 0.0
        heapq.heappush(self._longest, (-seconds, self._entry(), group))
        if self.expected:
            self._oldest.append(group)
        self._waiting += len(waiting)
        if len(self._longest) > 2 * self.look_ahead:  # short tasks that went first as the oldest are still at its end
            self._longest = [entry for entry in self._longest if entry[2].waiting]
            heapq.heapify(self._longest)
        return group

    def pause(self, lease: Lease, group: Group, now: float) -> None:
        """Lets a sample whose attempt failed wait for its next one, longer with each."""
        seconds = min(FIRST_PAUSE * 2.0 ** (lease.attempt - 1), LONGEST_PAUSE)
        group.again[lease.episode_id] = lease
        self._pausing += 1
        heapq.heappush(self._pauses, (now + seconds, self._entry(), lease.episode_id, group))

    def take_again(self, now: float) -> tuple[Lease, Group] | None:
        """The failed attempt whose pause was over first; None while all pauses last."""
        while self._pauses and self._pauses[0][0] <= now:
            _, _, episode_id, group = heapq.heappop(self._pauses)
            if (lease := group.again.pop(episode_id, None)) is not None:
                self._pausing -= 1
                return lease, group
        return None

    def take_new(self) -> tuple[Lease, Group] | None:
        """The fresh sample that is to be played next, of those that were read."""
        if (group := self._first()) is None:
            return None
        self._waiting -= 1
        self._handed += 1
        return group.waiting.popleft(), group

    def withdraw(self, group: Group) -> list[Lease]:
        """Takes out all of a group that is not being played: fresh samples and those between attempts."""
        gone = [*group.waiting, *group.again.values()]
        self._waiting -= len(group.waiting)
        self._pausing -= len(group.again)
        group.waiting.clear()
        group.again.clear()
        return gone

    def withdraw_one(self, group: Group, episode_id: str) -> Lease | None:
        """The same for one sample; None when it is being played or has ended."""
        if (lease := group.again.pop(episode_id, None)) is not None:
            self._pausing -= 1
            return lease
        lease = next((lease for lease in group.waiting if lease.episode_id == episode_id), None)
        if lease is not None:
            group.waiting.remove(lease)
            self._waiting -= 1
        return lease

    def _first(self) -> Group | None:
        """The longest, but the oldest where too many have overtaken it."""
        while self._oldest and not self._oldest[0].waiting:
            self._oldest.popleft()
        if self._oldest and self._handed - self._oldest[0].place >= OVERTAKEN * self.look_ahead:
            return self._oldest[0]
        while self._longest and not self._longest[0][2].waiting:
            heapq.heappop(self._longest)
        return self._longest[0][2] if self._longest else None

    def _entry(self) -> int:
        """Numbers heap entries: of equals the first that came is the first."""
        self._entries += 1
        return self._entries
