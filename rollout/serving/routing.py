"""Which replica a model call goes to, so that it finds what was computed for it and none has too much to do.

A session stays where its last turn was, for its cache. The first turns of a group share a replica, for the prompt that
they share. Load wins over both past a bound. The place of a group is found without a table that anybody shares: of the
two replicas that come first for it, the one with less to do (rendezvous hashing, Thaler and Ravishankar 1998; two
choices, Mitzenmacher 2001), or the least busy of all where that one has more than its share; and the bound is that of
consistent hashing with bounded loads (Mirrokni et al. 2018). So the groups of a replica that dies are spread over all
others, and nothing else moves.

`Router` is a state machine: replicas, loads, calls and the clock (seconds) go in, places come out.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from rollout.load import FRESH_SECONDS, Load
from rollout.sections import RoutingConfig

_MASK = 2**64 - 1
_COUNT_SECONDS = 1.0
"""How often all calls are counted, lest what a silent replica told counts for ever."""


class Why(StrEnum):
    """Why a call goes where it goes."""

    STICKS = "sticks"
    """Its session was there."""
    GROUP = "group"
    """Its group began there."""
    PLACED = "placed"
    """It is the first of its session and its group."""
    LOAD = "load"
    """It would be elsewhere, were that not too crowded."""
    LOST = "lost"
    """Its session was on a replica that is gone."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes. Whoever took it says when it ends: `Router.ended`."""

    replica: str
    why: Why


@dataclass(slots=True)
class _Replica:
    hashed: int
    under_way: int = 0
    """Calls that were routed here and have not ended."""
    sessions: int = 0
    told: Load | None = None
    at: float = -math.inf
    since: int = 0
    """Calls routed here less those ended, since it told."""

    def calls(self, now: float) -> int:
        """Calls at work and waiting, those of others included where it has told of them lately."""
        if self.told is None or now - self.at > FRESH_SECONDS:
            return self.under_way
        return max(self.under_way, self.told.running + self.told.waiting + self.since)

    def full(self, now: float, usage: float) -> bool:
        told = self.told
        return told is not None and now - self.at <= FRESH_SECONDS and told.waiting > 0 and told.kv_usage >= usage


@dataclass(slots=True)
class _Session:
    name: str
    """Of its replica,"""
    replica: _Replica
    """which may be gone, whoever has its name now."""
    at: float


@dataclass(slots=True)
class Router:
    """See the module. What it holds is bounded by `config.max_sessions`."""

    config: RoutingConfig = field(default_factory=RoutingConfig)
    _replicas: dict[str, _Replica] = field(default_factory=dict[str, _Replica])
    _sessions: OrderedDict[str, _Session] = field(default_factory=OrderedDict[str, _Session])
    """Those that were silent longest come first,"""
    _groups: OrderedDict[str, str] = field(default_factory=OrderedDict[str, str])
    """and groups that were used longest ago."""
    _calls: int = 0
    """At work and waiting, on all replicas together,"""
    _counted: float = -math.inf
    """as of then, and those since."""

    def update(self, replicas: Iterable[str]) -> None:
        """Takes the names of all replicas that live. The sessions of others find a place at their next call."""
        alive = set(replicas)
        for name in self._replicas.keys() - alive:
            del self._replicas[name]
        for name in sorted(alive - self._replicas.keys()):
            self._replicas[name] = _Replica(_hashed(name))
        self._counted = -math.inf

    def hear(self, loads: Mapping[str, Load], now: float) -> None:
        """Takes in what replicas told of themselves. Who is not known is passed over."""
        for name, load in loads.items():
            if (replica := self._replicas.get(name)) is not None:
                before = replica.calls(now)
                replica.told, replica.at, replica.since = load, now, 0
                self._calls += replica.calls(now) - before

    def route(self, session: str, group: str | None, now: float) -> Route | None:
        """The place of a session's next call; None while there are no replicas."""
        if not self._replicas:
            return None
        self._forget(now)
        route = self._chosen(session, group, now)
        self._keep(session, route.replica, now)
        replica = self._replicas[route.replica]
        replica.under_way += 1
        replica.since += 1
        self._calls += 1
        return route

    def emptied(self, name: str) -> None:
        """Who has this name now is another: its cache has nothing of the sessions that were there. Calls under way are
        asked again."""
        if (old := self._replicas.get(name)) is not None:
            self._replicas[name] = _Replica(old.hashed, old.under_way)
            self._counted = -math.inf

    def ended(self, route: Route) -> None:
        """The call has ended, however."""
        if (replica := self._replicas.get(route.replica)) is not None and replica.under_way:
            replica.under_way -= 1
            replica.since -= 1
            self._calls -= 1

    def close(self, session: str) -> None:
        """No call of the session follows. Nothing for one that is not known."""
        if (known := self._sessions.pop(session, None)) is not None:
            known.replica.sessions -= 1

    def __len__(self) -> int:
        """Sessions that are remembered."""
        return len(self._sessions)

    def _chosen(self, session: str, group: str | None, now: float) -> Route:
        known = self._sessions.get(session)
        if known is not None and self._replicas.get(known.name) is known.replica:
            return self._unless_crowded(Route(known.name, Why.STICKS), now)
        why = Why.PLACED if known is None else Why.LOST
        home = self._groups.get(group) if group is not None else None
        if home is None or home not in self._replicas:
            home = self._placed(session if group is None else group, now)
        elif known is None:
            why = Why.GROUP
        route = self._unless_crowded(Route(home, why), now)
        if group is not None:
            self._begun(group, route.replica)
        return route

    def _begun(self, group: str, replica: str) -> None:
        self._groups[group] = replica
        self._groups.move_to_end(group)
        if len(self._groups) > self.config.max_sessions:
            self._groups.popitem(last=False)

    def _placed(self, key: str, now: float) -> str:
        """The emptier of the two replicas that come first for the key, unless it has more sessions than the mean."""
        number = _hashed(key)
        two = heapq.nsmallest(2, self._replicas, key=lambda name: _mixed(number ^ self._replicas[name].hashed))
        home = min(two, key=lambda name: self._busy(self._replicas[name], now))
        uneven = self._replicas[home].sessions * len(self._replicas) > len(self._sessions)
        return self._emptiest(now) if uneven else home

    def _emptiest(self, now: float) -> str:
        return min(self._replicas, key=lambda name: self._busy(self._replicas[name], now))

    def _unless_crowded(self, route: Route, now: float) -> Route:
        """The replica with least to do instead, where the route's own is crowded and that is not."""
        if not self._crowded(self._replicas[route.replica], route.why, now):
            return route
        name = self._emptiest(now)
        if name == route.replica or self._crowded(self._replicas[name], route.why, now):
            return route
        return Route(name, Why.LOAD)

    def _busy(self, replica: _Replica, now: float) -> tuple[bool, int, int]:
        """Sessions that are in their tools come back: they count as much as those at work."""
        calls = replica.calls(now)
        return replica.full(now, self.config.kv_usage), calls + replica.sessions, replica.hashed

    def _crowded(self, replica: _Replica, why: Why, now: float) -> bool:
        """For a session that is there, by the calls at work now; for one that comes, by the sessions that it has."""
        if replica.full(now, self.config.kv_usage):
            return True
        if why is not Why.STICKS:
            return replica.sessions > len(self._sessions) / len(self._replicas) + self.config.uneven
        if now - self._counted > _COUNT_SECONDS:
            self._calls, self._counted = sum(one.calls(now) for one in self._replicas.values()), now
        mean = self._calls / len(self._replicas)
        return replica.calls(now) > self.config.crowded * mean + self.config.slack

    def _keep(self, session: str, name: str, now: float) -> None:
        replica = self._replicas[name]
        replica.sessions += 1
        if (known := self._sessions.get(session)) is not None:
            known.replica.sessions -= 1
        self._sessions[session] = _Session(name, replica, now)
        self._sessions.move_to_end(session)
        if len(self._sessions) > self.config.max_sessions:
            self._forget_oldest()

    def _forget(self, now: float) -> None:
        while self._sessions and now - next(iter(self._sessions.values())).at > self.config.idle_seconds:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._sessions.popitem(last=False)[1].replica.sessions -= 1


def _hashed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _mixed(number: int) -> int:
    """Every bit of a 64-bit number depends on all of them (the finalizer of SplitMix64, Steele et al. 2014)."""
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & _MASK
    return number ^ number >> 31
