"""How often and how much models may be asked: a pure state machine, the clock is an argument.

    ask -> waits in the queue of its limit -> due: it starts -> settle: what it really took

A limit belongs to a model by its exact name; `default` is one limit that all models without their own share; a model
with neither never waits. Who asked first starts first. A call starts only when every bound of its limit has room, so
requests that start within T seconds are at most max(1, burst or rate) + rate * T.

Those who wait hold no place in time: what others give back, and the places of those who left, reach them at once.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from pydantic import PositiveFloat, PositiveInt

from rollout.errors import UserError
from rollout.sections import Section

DEFAULT = "default"
"""Name of the limit of all models without their own."""
_DUST = 1e-6
"""Share of a bucket that may be missing when it is taken from: sums of floats do not come out even."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The bounds of one limit; what is None is not bounded. Raises UserError for a bound that is not above 0."""

    rps: float | None = None
    """Requests a second."""
    burst: float | None = None
    """Requests that may start at once after a pause; a second's worth when not given, at least one in any case."""
    rpm: float | None = None
    """Requests a minute, spread evenly."""
    tpm: float | None = None
    """Tokens a minute, read and sampled."""
    max_concurrency: int | None = None
    """Calls that run at once."""

    def __post_init__(self) -> None:
        for bound in fields(self):
            value = getattr(self, bound.name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"rate_limits: {bound.name}: expected a number above 0, found {value:g}")


class RateConfig(Section):
    """How often one model may be asked, by all runners of a job together."""

    rps: PositiveFloat | None = None
    """Requests a second; may be less than one."""
    burst: PositiveFloat | None = None
    """Requests that may start at once after a pause; a second's worth when not given."""
    rpm: PositiveFloat | None = None
    """Requests a minute, spread evenly."""
    tpm: PositiveFloat | None = None
    """Tokens a minute: a call reserves its prompt and all it may sample, and gives back what it did not take."""
    max_concurrency: PositiveInt | None = None
    """Calls that run at once."""

    def value(self) -> Rate:
        """As the limiter takes it."""
        return Rate(**self.model_dump())


@dataclass(slots=True)
class _Bucket:
    """Fills at `rate` a second up to `capacity`. Debts are allowed: an amount beyond the capacity needs it full."""

    rate: float
    capacity: float
    level: float
    at: float

    def start(self, amount: float, now: float) -> float:
        """When so much may be taken, if nothing else is."""
        missing = min(amount, self.capacity) - self._filled(now)
        return now if missing <= _DUST * self.capacity else now + missing / self.rate

    def take(self, amount: float, now: float) -> None:
        """A negative amount is given back."""
        self.level = min(self.capacity, self._filled(now) - amount)
        self.at = max(self.at, now)

    def _filled(self, now: float) -> float:
        return min(self.capacity, self.level + self.rate * max(0.0, now - self.at))


def _bucket(rate: float | None, seconds: float, burst: float | None, now: float, full: bool) -> tuple[_Bucket, ...]:
    if rate is None:
        return ()
    each = rate / seconds
    capacity = max(1.0, each if burst is None else burst)
    return (_Bucket(each, capacity, capacity if full else 0.0, now),)


@dataclass(frozen=True, slots=True)
class _Ask:
    number: int
    ticket: str
    model: str
    tokens: int
    until: float


@dataclass(slots=True)
class _Limit:
    requests: tuple[_Bucket, ...]
    tokens: tuple[_Bucket, ...]
    most: float
    waiting: OrderedDict[str, _Ask] = field(default_factory=OrderedDict[str, _Ask])
    held: dict[str, int] = field(default_factory=dict[str, int])
    """Calls that have started and not ended, where that matters, and the tokens they have reserved."""
    ends: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    """A heap: when each of them is given up at the latest."""

    @staticmethod
    def of(rate: Rate, now: float, full: bool) -> _Limit:
        requests = _bucket(rate.rps, 1.0, rate.burst, now, full) + _bucket(rate.rpm, 60.0, rate.burst, now, full)
        tokens = _bucket(rate.tpm, 60.0, None, now, full)
        return _Limit(requests, tokens, math.inf if rate.max_concurrency is None else rate.max_concurrency)

    def start(self, now: float) -> float:
        """When the first who waits may start; infinity when nobody waits or the end of another call decides."""
        if not self.waiting or len(self.held) >= self.most:
            return math.inf
        first = next(iter(self.waiting.values()))
        requests = [bucket.start(1.0, now) for bucket in self.requests]
        tokens = [bucket.start(first.tokens, now) for bucket in self.tokens]
        return max([now, *requests, *tokens])

    def begin(self, now: float) -> str:
        """Starts the first who waits."""
        ticket, first = self.waiting.popitem(last=False)
        for bucket in self.requests:
            bucket.take(1.0, now)
        for bucket in self.tokens:
            bucket.take(first.tokens, now)
        if self.tokens or self.most < math.inf:
            self.held[ticket] = first.tokens
            heapq.heappush(self.ends, (first.until, ticket))
        return ticket

    def give_back(self, ticket: str, tokens: int | None, now: float) -> None:
        """Ends a call, or takes one out of the queue."""
        self.waiting.pop(ticket, None)
        reserved = self.held.pop(ticket, None)
        if reserved is not None and tokens is not None:
            for bucket in self.tokens:
                bucket.take(tokens - reserved, now)

    def expire(self, now: float) -> list[str]:
        """Gives up those whose time is over: nobody will settle them."""
        over: list[str] = []
        while self.ends and self.ends[0][0] <= now:
            if self.held.pop(ticket := heapq.heappop(self.ends)[1], None) is not None:
                over.append(ticket)
        while self.waiting and next(iter(self.waiting.values())).until <= now:
            over.append(self.waiting.popitem(last=False)[0])
        return over


class Rates:
    """All limits of a run. Times are seconds of one clock, which may be any."""

    def __init__(self, limits: Mapping[str, Rate], now: float, full: bool = True) -> None:
        """Buckets begin full; empty where somebody may have emptied them just now."""
        self._limits = {name: _Limit.of(rate, now, full) for name, rate in limits.items()}
        self._known: dict[str, _Limit] = {}
        self._free: list[str] = []
        self._asked = 0

    def set(self, name: str, rate: Rate | None, now: float) -> None:
        """Installs a fresh limit, also in the place of one that was there; None takes it away.

        Those who wait stand in the queues as they are now, in the order in which they asked; calls that run under the
        old limit are none of the new one's.
        """
        waiting = [ask for limit in self._limits.values() for ask in limit.waiting.values()]
        for limit in self._limits.values():
            limit.waiting.clear()
        if (old := self._limits.pop(name, None)) is not None:
            for ticket in old.held:
                del self._known[ticket]
        if rate is not None:
            self._limits[name] = _Limit.of(rate, now, full=True)
        for ask in sorted(waiting, key=lambda ask: ask.number):
            self._queue(ask)

    def ask(self, ticket: str, model: str, tokens: int, now: float, seconds: float) -> None:
        """Asks for a call that reserves `tokens` and has ended or been given up after `seconds`, waiting included."""
        self._asked += 1
        self._queue(_Ask(self._asked, ticket, model, tokens, now + seconds))

    def due(self, now: float) -> list[str]:
        """Tickets of the calls that start now. Each is told once."""
        started, self._free = self._free, []
        for limit in self._limits.values():
            for ticket in limit.expire(now):
                del self._known[ticket]
            while limit.start(now) <= now:
                started.append(ticket := limit.begin(now))
                if ticket not in limit.held:
                    del self._known[ticket]
        return started

    def next_at(self, now: float) -> float:
        """When to look again if nobody asks or settles before; infinity when there is nothing to wait for."""
        times = [limit.start(now) for limit in self._limits.values()]
        times += [limit.ends[0][0] for limit in self._limits.values() if limit.waiting and limit.ends]
        return min(times, default=math.inf)

    def settle(self, ticket: str, tokens: int | None, now: float) -> None:
        """A call has ended and took so many tokens, or its asker has left the queue; None leaves all it reserved
        taken. A ticket that is not known, or no longer, changes nothing."""
        if (limit := self._known.pop(ticket, None)) is not None:
            limit.give_back(ticket, tokens, now)

    def _queue(self, ask: _Ask) -> None:
        name = limit_of(self._limits, ask.model)
        if name is None:
            self._known.pop(ask.ticket, None)
            self._free.append(ask.ticket)
        else:
            limit = self._known[ask.ticket] = self._limits[name]
            limit.waiting[ask.ticket] = ask


def limit_of(names: Iterable[str], model: str) -> str | None:
    """Which of the limits is a model's: its own, else the one all others share, else none."""
    known = frozenset(names)
    return model if model in known else DEFAULT if DEFAULT in known else None
