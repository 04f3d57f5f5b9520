"""Plays agent sessions on simulated replicas under several ways to route their calls.

    python -m scripts.simulate_routing --replicas 256

Groups of sessions share their first prompt; the number of turns has a long tail and goes with the group. A replica
keeps what it has read and sampled, as far as its KV cache reaches, and forgets what was used longest ago. A call takes
the longer the more others are at work beside it. `cached`: share of prompt tokens that were there already. `of ideal`:
that share, over the one on a single replica as large and as fast as all together. `balance`: work of the replica that
had most, over the mean, until the last session begins (behind that nothing new can make up for a long one). `moved`:
calls of sessions that were on another replica before.
"""

from __future__ import annotations

import argparse
import heapq
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from rich.console import Console
from rich.table import Table

from rollout.config import RoutingConfig
from rollout.load import Load
from rollout.serving.routing import Route, Router

SYSTEM = 2_000
"""Tokens that all sessions share."""
SAMPLED, ANSWERED = 250, 600
"""Tokens of a turn in the mean: sampled, and from its tools."""
TURNS, SPREAD, MOST = 8, 0.9, 80
"""Turns of a session: mean and sigma of a log-normal over groups, and the most."""
TOOL_SECONDS = 3.0
READ, WRITE = 1 / 20_000, 1 / 60
"""Seconds to read a token that is not cached, and to sample one alone."""
BATCH = 32
"""Calls at work at which each takes twice as long as alone."""
HEAR_SECONDS = 1.0
"""How often replicas tell of themselves."""


@dataclass(eq=False)
class Session:
    """One episode: the tokens of its turns, and how far it is."""

    name: str
    group: str
    sampled: Sequence[int]
    answered: Sequence[int]
    tools: Sequence[float]
    context: int
    """Tokens of its next prompt."""
    opening: int
    """Those that it shares with its group."""
    turn: int = 0


@dataclass
class Engine:
    """A replica, and how much its KV cache holds."""

    name: str
    room: int
    size: int = 1
    """Replicas that it is as large and as fast as."""
    running: int = 0
    context: int = 0
    """Tokens of the calls at work."""
    work: float = 0.0
    prefixes: OrderedDict[str, int] = field(default_factory=OrderedDict[str, int])
    """Tokens by session and by group, those used longest ago first."""
    held: int = 0

    def begin(self, session: Session) -> tuple[int, float]:
        """Cached tokens of a session's call, and how long it takes."""
        told = max(SYSTEM, self.prefixes.get(session.group, 0), self.prefixes.get(session.name, 0))
        cached = min(told, session.context)
        sampled = session.sampled[session.turn]
        alone = (session.context - cached) * READ
        self.running += 1
        self.context += session.context + sampled
        full = max(1.0, self.context / self.room)
        self.work += alone + sampled * WRITE / BATCH
        return cached, (alone + sampled * WRITE * (1 + self.running / BATCH / self.size)) * full

    def end(self, session: Session) -> None:
        """The call has ended: what it has read and sampled stays, as long as there is room."""
        whole = session.context + session.sampled[session.turn]
        self.running -= 1
        self.context -= whole
        self._keep(session.group, session.opening)
        self._keep(session.name, whole)
        while self.held + self.context > self.room and self.prefixes:
            self.held -= self.prefixes.popitem(last=False)[1]

    def _keep(self, key: str, tokens: int) -> None:
        self.held += tokens - self.prefixes.pop(key, 0)
        self.prefixes[key] = tokens

    def load(self) -> Load:
        """What a real one would report."""
        fit = min(self.running, int(self.running * self.room / max(1, self.context)))
        return Load(fit, self.running - fit, min(1.0, self.context / self.room), 0)


Ways = Callable[[Session, float], tuple[int, Route | None]]
"""The replica of a session's next call, by number."""


@dataclass
class Job:
    """All sessions, so many at once."""

    engines: list[Engine]
    sessions: Sequence[Session]
    slots: int
    route: Ways
    router: Router | None = None
    now: float = 0.0
    cached: int = 0
    read: int = 0
    moved: int = 0
    """Calls of sessions that were on another replica before."""
    worked: Sequence[float] = ()
    """Work of each engine when the last session began."""
    cpu: float = 0.0
    """Seconds to find places, in the mean."""

    def run(self) -> None:
        """Plays all."""
        order, waiting = count(), iter(self.sessions)
        events: list[tuple[float, int, Session | None, int, Route | None]] = []

        def at(when: float, session: Session | None, engine: int = -1, route: Route | None = None) -> None:
            heapq.heappush(events, (when, next(order), session, engine, route))

        places = dict[str, int]()
        spent = calls = 0.0
        for session, number in zip(waiting, range(self.slots), strict=False):
            at(TOOL_SECONDS * number / self.slots, session)
        at(HEAR_SECONDS, None)
        while events:
            self.now, _, session, engine, route = heapq.heappop(events)
            if session is None:
                self._hear()
                if events:
                    at(self.now + HEAR_SECONDS, None)
                continue
            if engine >= 0:
                self.engines[engine].end(session)
                if self.router is not None and route is not None:
                    self.router.ended(route)
                wait = session.tools[session.turn]
                session.context += session.sampled[session.turn] + session.answered[session.turn]
                session.turn += 1
                if session.turn < len(session.sampled):
                    at(self.now + wait, session)
                    continue
                if self.router is not None:
                    self.router.close(session.name)
                if (following := next(waiting, None)) is not None:
                    at(self.now, following)
                    self.worked = [one.work for one in self.engines]
                continue
            began = time.process_time()
            engine, route = self.route(session, self.now)
            spent, calls = spent + time.process_time() - began, calls + 1
            self.moved += places.get(session.name, engine) != engine
            places[session.name] = engine
            cached, seconds = self.engines[engine].begin(session)
            self.cached, self.read = self.cached + cached, self.read + session.context
            at(self.now + seconds, session, engine, route)
        self.cpu = spent / calls

    def _hear(self) -> None:
        if self.router is not None:
            self.router.hear({engine.name: engine.load() for engine in self.engines}, self.now)


def draw(groups: int, each: int, prompt: int, seed: int) -> list[Session]:
    """Sessions in the order in which they begin."""
    random = np.random.default_rng(seed)
    sessions: list[Session] = []
    for group in range(groups):
        mean = TURNS * random.lognormal(-(SPREAD**2) / 2, SPREAD)
        for sample in range(each):
            turns = int(np.clip(mean * random.lognormal(-0.08, 0.4), 1, MOST))
            sampled = (1 + random.exponential(SAMPLED, turns)).astype(int).tolist()
            answered = random.exponential(ANSWERED, turns).astype(int).tolist()
            tools = random.exponential(TOOL_SECONDS, turns).tolist()
            name, opening = f"run-{group}", SYSTEM + prompt
            sessions.append(Session(f"{name}-{sample}", name, sampled, answered, tools, opening, opening))
    return sessions


def ways(engines: list[Engine], seed: int, config: RoutingConfig) -> Iterator[tuple[str, Ways, Router | None]]:
    """The ways to route, by name."""
    size, turn, random = len(engines), count(), np.random.default_rng(seed)

    def lighter(session: Session, now: float) -> tuple[int, None]:
        one, two = random.integers(size, size=2).tolist()
        return (one if engines[one].running <= engines[two].running else two), None

    yield "round robin", lambda session, now: (next(turn) % size, None), None
    yield "power of two", lighter, None
    yield "session by hash", lambda session, now: (zlib.crc32(session.name.encode()) % size, None), None
    yield "group by hash", lambda session, now: (zlib.crc32(session.group.encode()) % size, None), None
    router = Router(config)
    router.update(engine.name for engine in engines)
    numbers = {engine.name: number for number, engine in enumerate(engines)}

    def routed(session: Session, now: float) -> tuple[int, Route | None]:
        route = router.route(session.name, session.group, now)
        assert route is not None, "there are replicas"
        return numbers[route.replica], route

    yield "router", routed, router


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=256)
    parser.add_argument("--slots", type=int, default=16, help="sessions at once, a replica")
    parser.add_argument("--groups", type=int, default=None, help="three times what is played at once when not given")
    parser.add_argument("--each", type=int, default=8, help="sessions of a group")
    parser.add_argument("--prompt", type=int, default=4_000, help="tokens of a group's own prompt")
    parser.add_argument("--room", type=int, default=300_000, help="tokens a KV cache holds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    slots = options.replicas * options.slots
    groups = options.groups or 3 * slots // options.each
    columns = ("routing", "calls", "cached", "of ideal", "balance", "seconds", "moved", "us a call")
    table = Table(*columns)
    ideal = 0.0
    for number in (None, *range(5)):
        engines = [Engine(f"replica-{one}", options.room) for one in range(options.replicas)]
        if number is None:
            engines = [Engine("all in one", options.replicas * options.room, options.replicas)]
        name, route, router = list(ways(engines, options.seed, RoutingConfig()))[number or 0]
        job = Job(engines, draw(groups, options.each, options.prompt, options.seed), slots, route, router)
        job.run()
        work = np.array(job.worked or [engine.work for engine in engines])
        cached = job.cached / job.read
        ideal = ideal or cached
        calls = sum(len(session.sampled) for session in job.sessions)
        balance = f"{work.max() / work.mean():.2f}"
        moved = f"{job.moved / calls:.1%}"
        table.add_row(
            "all in one" if number is None else name,
            f"{calls:,}",
            f"{cached:.1%}",
            f"{cached / ideal:.3f}",
            balance,
            f"{job.now:,.0f}",
            moved,
            f"{job.cpu * 1e6:.0f}",
        )
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{options.replicas} replicas, {slots:,} sessions at once, groups of {options.each}, seed {options.seed}"
    )


if __name__ == "__main__":
    main()
