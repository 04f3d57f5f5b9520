"""How long things took, by cause, counted into buckets: what quantiles are made of without keeping a figure each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from rollout.trajectory import Trajectory

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
"""Upper bounds of the buckets in seconds; one more takes what is beyond."""
CAUSES = {
    "queue": "model calls waited for an engine",
    "model": "model calls took, without that wait,",
    "tool": "tool calls took",
    "verify": "verifiers took",
    "seed": "sessions took to open",
    "commit": "commits took",
    "episode": "whole episodes took",
}
"""What is observed, each with the words for how often."""


@dataclass(slots=True)
class Latencies:
    """Counts and sums by cause. They add up in any order, and are a few hundred numbers however much went in."""

    _buckets: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    _sums: dict[str, float] = field(default_factory=dict[str, float])

    def observe(self, cause: str, seconds: float) -> None:
        """One more of them."""
        if (buckets := self._buckets.get(cause)) is None:
            buckets = self._buckets[cause] = [0] * (len(BOUNDS) + 1)
            self._sums[cause] = 0.0
        buckets[bisect_left(BOUNDS, seconds)] += 1
        self._sums[cause] += seconds

    def take(self, trajectory: Trajectory) -> None:
        """All that an episode waited for: every model call (`model`, and `queue` before it), every tool call that
        ran, also of its children, the verifier, and the `episode` as a whole."""
        for turn in (turn for one in trajectory.family for turn in one.turns):
            queue = turn.completion.queue_seconds
            self.observe("queue", queue)
            self.observe("model", max(0.0, turn.model_seconds - queue))
            for use in turn.tool_uses:
                if not use.result.skipped:
                    self.observe("tool", use.result.seconds)
        if trajectory.score is not None:
            self.observe("verify", trajectory.seconds.verify)
        self.observe("episode", trajectory.seconds.total)

    def add(self, other: Latencies) -> None:
        """Takes in what another has counted."""
        for cause, theirs in other._buckets.items():
            ours = self._buckets.get(cause, [0] * len(theirs))
            self._buckets[cause] = [a + b for a, b in zip(ours, theirs, strict=True)]
            self._sums[cause] = self._sums.get(cause, 0.0) + other._sums[cause]

    def sums(self) -> Iterator[tuple[str, float]]:
        """(cause, seconds) altogether."""
        yield from self._sums.items()

    def at_most(self) -> Iterator[tuple[str, str, int]]:
        """(cause, bound as text, how many took no longer): a histogram as Prometheus counts it, `+Inf` last."""
        for cause, buckets in self._buckets.items():
            total = 0
            for bound, count in zip((*BOUNDS, None), buckets, strict=True):
                total += count
                yield cause, "+Inf" if bound is None else f"{bound:g}", total
