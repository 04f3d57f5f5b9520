"""Where the calls of this process go: slots stand for replicas, and what is seen of them feeds the router.

A slot is a seat that `actors.router` gives to a replica. While its replica is gone, the letters of a slot would all go
to one neighbour; so a slot that loses a call is taken out, its sessions find places on all others, and it is back when
somebody has its seat: when what answers for it answers for no other slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rollout.load import Load
from rollout.serving.routing import Route, Router

LOOK_SECONDS = 2.0
"""How often a slot that is out is looked at, as long as there are calls."""


@dataclass(slots=True)
class Slots:
    """A router over slots, whose names are those of the seats. The clock is passed in, in seconds."""

    names: Sequence[str]
    router: Router = field(default_factory=Router)
    routed: Counter[str] = field(default_factory=Counter[str])
    """Calls by `Why`, until somebody takes them."""
    _replicas: dict[str, str] = field(default_factory=dict[str, str])
    """The replica behind a slot, by the slot's name."""
    _out: dict[str, float] = field(default_factory=dict[str, float])
    """Slots that lost a call, and when each was looked at last."""

    def __post_init__(self) -> None:
        self.router.update(self.names)

    def route(self, session: str, group: str | None, now: float) -> Route:
        """The slot of a session's next call. Whoever took it says when it ends: `router.ended`."""
        route = self.router.route(session, group, now)
        assert route is not None, "some slot is always in"
        self.routed[route.why.value] += 1
        return route

    def take_routed(self) -> Counter[str]:
        """What is counted since this was asked last."""
        taken, self.routed = self.routed, Counter()
        return taken

    def answered(self, slot: str, replica: str) -> None:
        """A call of this slot was answered by this replica."""
        if (known := self._replicas.get(slot)) == replica:
            return
        if slot in self._out:
            return
        if self._stands_in(slot, replica):
            self.lost(slot, now=0.0)
            return
        self._replicas[slot] = replica
        if known is not None:
            self.router.emptied(slot)

    def hear(self, slot: str, load: Load, now: float) -> None:
        """The replica behind a slot has told of itself."""
        self.router.hear({slot: load}, now)

    def lost(self, slot: str, now: float) -> None:
        """A call of this slot got no answer. With none left all are in: somebody may have come back."""
        if slot in self._out:
            return
        self._out[slot] = now
        self._replicas.pop(slot, None)
        if len(self._out) == len(self.names):
            self._out.clear()
        self.router.update(name for name in self.names if name not in self._out)

    def due(self, now: float) -> list[str]:
        """Slots that are out and are to be looked at now."""
        if not self._out:
            return []
        due = [slot for slot, at in self._out.items() if now - at >= LOOK_SECONDS]
        for slot in due:
            self._out[slot] = now
        return due

    def seen(self, slot: str, replica: str) -> None:
        """This replica has answered who looked at a slot that is out."""
        if slot not in self._out or self._stands_in(slot, replica):
            return
        del self._out[slot]
        self._replicas[slot] = replica
        self.router.update(name for name in self.names if name not in self._out)

    def _stands_in(self, slot: str, replica: str) -> bool:
        """Whether the replica has another slot's seat."""
        return any(name == replica and other != slot for other, name in self._replicas.items())
