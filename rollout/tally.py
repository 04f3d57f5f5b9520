"""Counts over finished episodes: what runners send the driver instead of the episodes themselves.

A tally holds a few dozen numbers however many episodes went into it, and tallies add up in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from rollout.trajectory import Status, Trajectory

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over finished episodes. The empty one is `Tally()`.

    Children are no episodes of the job, but what they took was taken: tokens and cost are sums over them, too.
    """

    statuses: Counts = field(default_factory=dict[str, int])
    """Episodes by status."""
    stops: Counts = field(default_factory=dict[str, int])
    """Episodes by stop reason."""
    failures: Counts = field(default_factory=dict[str, int])
    """Failed episodes by the kind of their failure."""
    drops: Counts = field(default_factory=dict[str, int])
    """Dropped episodes by drop reason."""
    retries: int = 0
    """Attempts beyond the first."""
    scored: int = 0
    """Episodes with a reward."""
    rewards: float = 0.0
    """Sum of their rewards."""
    turns: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    tool_calls: int = 0
    tool_errors: int = 0
    restored: int = 0
    """Episodes that went on behind the turns of an earlier attempt."""
    restored_turns: int = 0
    restored_tokens: int = 0
    """Sampled tokens of those turns."""
    started_again: int = 0
    """Episodes that had such turns and started again all the same."""
    usd: float = 0.0
    """Cost of the episodes whose cost is known."""

    @classmethod
    def of(cls, trajectory: Trajectory) -> Self:
        """The tally of one episode."""
        failure, drop = trajectory.failure, trajectory.drop_reason
        family = list(trajectory.family)
        completions = [turn.completion for one in family for turn in one.turns]
        uses = [use for turn in trajectory.turns for use in turn.tool_uses]
        return cls(
            statuses={trajectory.status.value: 1},
            stops={trajectory.stop_reason.value: 1},
            failures={failure.kind.value: 1} if failure else {},
            drops={drop: 1} if drop is not None else {},
            retries=trajectory.lease.attempt - 1,
            scored=int(trajectory.reward is not None),
            rewards=trajectory.reward or 0.0,
            turns=len(trajectory.turns),
            prompt_tokens=sum(completion.prompt_tokens or 0 for completion in completions),
            completion_tokens=sum(completion.num_sampled for completion in completions),
            cached_tokens=sum(completion.cached_tokens or 0 for completion in completions),
            tool_calls=len(uses),
            tool_errors=sum(use.result.error is not None for use in uses),
            restored=int(bool(trajectory.restored_turns)),
            restored_turns=trajectory.restored_turns or 0,
            restored_tokens=trajectory.restored_tokens,
            started_again=int(trajectory.restored_turns == 0),
            usd=sum(one.cost or 0.0 for one in family),
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            statuses=_sum(self.statuses, other.statuses),
            stops=_sum(self.stops, other.stops),
            failures=_sum(self.failures, other.failures),
            drops=_sum(self.drops, other.drops),
            retries=self.retries + other.retries,
            scored=self.scored + other.scored,
            rewards=self.rewards + other.rewards,
            turns=self.turns + other.turns,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            tool_calls=self.tool_calls + other.tool_calls,
            tool_errors=self.tool_errors + other.tool_errors,
            restored=self.restored + other.restored,
            restored_turns=self.restored_turns + other.restored_turns,
            restored_tokens=self.restored_tokens + other.restored_tokens,
            started_again=self.started_again + other.started_again,
            usd=self.usd + other.usd,
        )

    @property
    def episodes(self) -> int:
        """All episodes, whatever became of them."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Episodes that something outside the policy broke."""
        return self.statuses.get(Status.FAILED.value, 0)

    @property
    def mean_reward(self) -> float | None:
        """Over the scored episodes; None when there are none."""
        return self.rewards / self.scored if self.scored else None

    @property
    def mean_turns(self) -> float | None:
        """Turns an episode; None without episodes."""
        return self.turns / self.episodes if self.episodes else None

    @property
    def cached_share(self) -> float | None:
        """Share of the prompt tokens that the engine had cached; None without prompt tokens."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


def _sum(first: Counts, second: Counts) -> Counts:
    if not second:
        return first
    return {key: first.get(key, 0) + second.get(key, 0) for key in sorted({*first, *second})}
