"""How many episodes may run at once, from what the engines report: additive rise, multiplicative cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rollout.load import Load

CLEAR, FULL = 0.6, 0.9
"""Shares of a KV cache: below the first there is room for more, from the second on an engine is about to preempt.
Between them the limit stays: an episode's context grows for many turns after it was let in."""
CUT = 0.8
"""What a cut leaves of what runs."""
BINDING = 0.9
"""Share of the limit that must be running before the limit is what holds the run back."""
SETTLE_SECONDS = 10.0
"""After a cut: how long reports are about the time before it."""
RISE_SECONDS = 1.0
"""Between two steps of the rise; a step is one episode a replica."""


@dataclass(slots=True)
class Pace:
    """The adaptive limit of episodes in flight.

    It begins at `most` and stays there until an engine says that it is too much: a rise from below would cost every run
    its first minutes, and a cut comes within a report. The law is AIMD on KV pressure as in prime-rl's concurrency
    controller (`prime_rl/orchestrator/concurrency.py`), with its thresholds of a growth below 60 % KV use and a hard
    bound at 90 %, and what its later versions learned: cut from what runs, not from the limit; ignore pressure until
    what runs has drained to the cut, or one moment of pressure is punished many times; rise only while the limit binds.
    A queue in an engine forbids a rise but is no reason to cut: engines queue by their own bound on a batch as well,
    and there it costs nothing. The replica under the most pressure decides, for sessions stick to their replica.
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
    _rose_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.limit = self.most

    def observe(self, loads: Mapping[str, Load], running: int, now: float) -> None:
        """Takes in what replicas report, by name, while `running` episodes are in flight; `now` in seconds."""
        preempted = [self._preempts(name, load) for name, load in loads.items()]
        if not loads:
            return
        self._draining = self._draining and running > self.limit
        usage = max(load.kv_usage for load in loads.values())
        if usage >= FULL or any(preempted):
            if not self._draining and now - self._cut_at >= SETTLE_SECONDS:
                self._cut(running, len(loads), now)
        elif self.limit < self.most and now - max(self._cut_at + SETTLE_SECONDS, self._rose_at) >= RISE_SECONDS:
            waiting = any(load.waiting for load in loads.values())
            if usage < CLEAR and not waiting and running >= BINDING * self.limit:
                self.limit, self._rose_at = min(self.most, self.limit + len(loads)), now

    def _cut(self, running: int, replicas: int, now: float) -> None:
        floor = min(self.most, max(self.least, replicas))
        limit = max(floor, int(CUT * min(running, self.limit)))
        if limit < self.limit:
            self.limit, self._cut_at, self._draining = limit, now, True
            self.cuts += 1

    def _preempts(self, name: str, load: Load) -> bool:
        """True when the replica preempted since its last report; one that has restarted counts from 0 again."""
        before = self._preemptions.get(name, load.preemptions)
        self._preemptions[name] = load.preemptions
        return load.preemptions > before
