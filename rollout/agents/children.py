"""What children of a run may use, how many and how deep they may be, and what of a reward is theirs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from rollout.conduct import PENALTY, penalized
from rollout.family import Share
from rollout.sections import Section
from rollout.trajectory import Limits, Score

Sharing = Literal["shared", "own", "none", "split"]
CHILDREN = "children"
"""The component of a score that says what its children got of it."""


class ChildrenConfig(Section):
    """Runs that agents begin: agents as tools, side by side, and in a pipeline. For all agents of the job."""

    spawn: bool = False
    """Whoever has agents as tools gets the tool `spawn_subagents` as well, which runs several of them side by side."""
    max_depth: Annotated[int, Field(ge=0)] = 2
    """Children of children at most; 0 forbids any."""
    max_children: Annotated[int, Field(ge=0)] = 32
    """Runs that one run may begin, at any time of it."""
    max_parallel: PositiveInt = 8
    """How many of them at once."""
    return_exceptions: bool = True
    """A child that fails among several costs its own result alone."""
    on_child_error: Literal["fail", "feed_back"] = "fail"
    """When an agent that is a tool breaks: the calling episode fails and is tried again, or its policy is told."""
    reward_sharing: Sharing = "shared"
    """A child's reward: its parent's (`shared`), its `own` (what the environment paid in its turns), `none`, or an
    equal part of the parent's (`split`)."""


class PipelineConfig(Section):
    """A run that makes no model calls itself: its agents run one after the other, each as a child of its own."""

    agents: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names in sub_agents. The first gets what the user says, each other the answer of the one before it."""
    rounds: PositiveInt = 1
    """How often all of them run, in turn."""
    stop_when: str | None = None
    """`module:function`, asked after every agent for whether that was the last: gets its name and its answer."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a run has used so far, children included."""

    tokens: int = 0
    """Sampled."""
    seconds: float = 0.0
    """Wall time since the run began."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands among the runs of its episode: how deep (0: the root), how many it has begun."""

    depth: int = 0
    children: int = 0

    def refusal(self, max_depth: int, max_children: int) -> str | None:
        """Why this run may not begin a further one; None when it may."""
        if self.depth >= max_depth:
            return f"no agent can be called from here: they are {max_depth} deep at most"
        if self.children >= max_children:
            return f"no further agent can be called: there were {max_children} already"
        return None

    def begun(self) -> Place:
        """This run's place after it has begun a child."""
        return replace(self, children=self.children + 1)


def child_limits(parent: Limits, used: Used, own: Limits) -> Limits | None:
    """The child's own limits, within what its parent has left of sampled tokens and of wall time; None when no time or
    no token is left for it. The parent keeps back what it needs to score and to close."""
    tokens = min(own.max_tokens, parent.max_tokens - used.tokens)
    kept = parent.verify_seconds + parent.close_seconds
    seconds = min(own.episode_seconds, parent.episode_seconds - kept - used.seconds)
    if tokens <= 0 or seconds <= own.verify_seconds + own.close_seconds:
        return None
    return replace(
        own,
        max_tokens=tokens,
        turn_tokens=min(own.turn_tokens, tokens),
        episode_seconds=seconds,
        turn_seconds=min(own.turn_seconds, seconds),
        tool_seconds=min(own.tool_seconds, seconds),
        seed_seconds=min(own.seed_seconds, seconds),
    )


def shared_rewards(
    sharing: Sharing, reward: float | None, own: Sequence[float | None]
) -> tuple[float | None, tuple[float | None, ...]]:
    """The rewards of a parent and of its children, from the parent's score and the children's `own`.

    `split` gives everyone an equal part, so that the parts add up to the parent's score. Children that failed are not
    to be among them: a failure has no reward.
    """
    if sharing == "own":
        return reward, tuple(own)
    if sharing == "none" or reward is None:
        return reward, (None,) * len(own)
    part = reward / (1 + len(own)) if sharing == "split" else reward
    return part, (part,) * len(own)


def scores_shared(sharing: Sharing) -> Share:
    """`shared_rewards` over scores: what a child did wrong on its way is still taken from what it is given, and a
    component says where its reward is from."""

    def share(score: Score | None, own: Sequence[Score]) -> tuple[Score | None, Sequence[Score | None]]:
        if sharing == "own":
            return score, own
        reward, given = shared_rewards(sharing, None if score is None else score.reward, [one.reward for one in own])
        if score is not None and reward is not None and reward != score.reward:
            components = {**score.components, CHILDREN: reward - score.reward}
            score = replace(score, reward=reward, components=components)
        return score, [_given(sharing, part, one) for part, one in zip(given, own, strict=True)]

    return share


def _given(sharing: Sharing, reward: float | None, own: Score) -> Score | None:
    if reward is None:
        return None
    return penalized(Score(reward, {sharing: reward}), -own.components.get(PENALTY, 0.0))
