"""How many episodes may run at once, from what the engines report: additive rise, multiplicative cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rollout.load import Load

CLEAR, FULL = 0.6, 0.9
"""Shares of a KV cache: below the first there is room for more, from the second on an engine is about to preempt.
Between them the limit stays: an episode's context grows for many turns after it was let in."""
PRESSED = 0.5
"""Share of the replicas that must be under pressure for a cut. Sessions stick to their replica: a few long ones fill
one cache, and of many replicas there is always one with a few long ones."""
CUT = 0.8
"""What a cut leaves of what runs."""
BINDING = 0.9
"""Share of the limit that must be running before the limit is what holds the run back."""
OBSERVE_SECONDS = 5.0
"""Between two looks at the engines; the limit rises by one episode a replica at a look at most."""
SETTLE_SECONDS = 10.0
"""After a cut: how long reports are about the time before it."""


@dataclass(slots=True)
class Pace:
    """The adaptive limit of episodes in flight.

    It begins at `most` and stays there until an engine says that it is too much: a rise from below would cost every run
    its first minutes, and a cut comes within seconds. The law is AIMD on KV pressure as in prime-rl's concurrency
    controller (`prime_rl/orchestrator/concurrency.py`), with its thresholds of a growth below 60 % KV use and a hard
    bound at 90 %, and what its later versions learned: cut from what runs, not from the limit; ignore pressure until
    what runs has drained to the cut, or one moment of pressure is punished many times; rise only while the limit binds.
    A queue in an engine forbids a rise but is no reason to cut: engines queue by their own bound on a batch as well,
    and there it costs nothing. Of several replicas the half decides (`scripts/simulate.py` shows why not the worst).
    """

    most: int
    """As configured, and never more."""
    least: int = 1
    """No cut goes below this, nor below one episode a replica."""
    limit: int = field(init=False)
    """Episodes that may run now."""
    cuts: int = 0
    """How often the limit was cut."""
    _preemptions: dict[str, int] = field(default_factory=dict[str, int])
    _draining: bool = False
    _cut_at: float = float("-inf")
    _seen_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.limit = self.most

    def observe(self, loads: Mapping[str, Load], running: int, now: float) -> None:
        """Takes in what replicas report, by name, while `running` episodes are in flight; `now` in seconds.

        May be called as often as one likes. Preemptions are counted from look to look; those of a replica that was
        not known, or has restarted, are from before.
        """
        if not loads or now - self._seen_at < OBSERVE_SECONDS:
            return
        self._seen_at = now
        before = self._preemptions
        self._preemptions = {name: load.preemptions for name, load in loads.items()}
        pressed = sum(
            load.kv_usage >= FULL or load.preemptions > before.get(name, load.preemptions)
            for name, load in loads.items()
        )
        self._draining = self._draining and running > self.limit
        if pressed >= PRESSED * len(loads):
            if not self._draining and now - self._cut_at >= SETTLE_SECONDS:
                self._cut(running, len(loads), now)
        elif self.limit < self.most and now - self._cut_at >= SETTLE_SECONDS:
            usage = sum(load.kv_usage for load in loads.values()) / len(loads)
            waiting = sum(load.waiting > 0 for load in loads.values())
            if usage < CLEAR and waiting < PRESSED * len(loads) and running >= BINDING * self.limit:
                self.limit = min(self.most, self.limit + len(loads))

    def _cut(self, running: int, replicas: int, now: float) -> None:
        floor = min(self.most, max(self.least, replicas))
        limit = max(floor, int(CUT * min(running, self.limit)))
        if limit < self.limit:
            self.limit, self._cut_at, self._draining = limit, now, True
            self.cuts += 1
