"""A run and the runs it begins: children are episodes of their own, played in the session of whoever began them.

A child plays by the one turn loop, with a ledger, turns and limits of its own. What it samples counts against the
limits of all runs above it, as it is sampled. It neither seeds, judges nor closes the session; its score is what is
handed down to it when the whole episode has one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rollout.protocols import Seeded, Session
from rollout.streaming import HeardSession
from rollout.trajectory import (
    Agent,
    Event,
    Lease,
    Limits,
    Message,
    Score,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Transcript,
    Turn,
)

if TYPE_CHECKING:  # whose agents begin children
    from rollout.conduct import Conduct

Share = Callable[[Score | None, Sequence[Score]], tuple[Score | None, Sequence[Score | None]]]
"""The scores of a run and of those children that have one of their own, from the run's score and theirs."""
ABANDONED = "abandoned"
"""Why a child was dropped whose parent waited no longer for it."""


@dataclass(frozen=True, slots=True)
class Child:
    """A run that an agent begins."""

    number: int
    """Among those that its parent begins, from 1."""
    agent: Agent
    conduct: Callable[[Agent, Lease], Conduct]
    seeded: Seeded
    """What it begins with; its session is lent."""
    limits: Limits

    def lease(self, parent: Lease) -> Lease:
        """Its own, of the same attempt."""
        task = replace(parent.task, messages=self.seeded.messages)
        return replace(parent, task=task, path=(*parent.path, (self.number, self.agent.name)))


@dataclass(slots=True)
class Family:
    """One run, what it has used, and its children."""

    limits: Limits
    turns: list[Turn]
    """Of this run, as they are played."""
    began: float
    """By time.monotonic."""
    begin: Callable[[Child], Awaitable[Trajectory]]
    """Plays a child to its end. Never raises for what happens in it; raises when it is cancelled, and for a job that no
    episode can work in."""
    above: Family | None = None
    below: list[Family] = field(default_factory=list["Family"])
    turn: int = 0
    """The parent's when this run began."""
    played: Trajectory | None = None
    """This run, once it has ended."""
    waited: float = 0.0
    """Seconds of it that people took: they are nobody's."""
    beside_usd: float = 0.0
    """What calls cost that are no turns: those of approvers that are models."""
    share: Share | None = None
    """What of a score is the children's; None where there can be none."""

    @property
    def tokens(self) -> int:
        """Sampled so far, by the run and all below it."""
        own = sum(turn.completion.num_sampled for turn in self.turns)
        return own + sum(child.tokens for child in self.below)

    @property
    def tokens_left(self) -> int:
        """Of its own limit and of those above."""
        left = self.limits.max_tokens - self.tokens
        return left if self.above is None else min(left, self.above.tokens_left)

    @property
    def seconds(self) -> float:
        """Since it began, less what people took."""
        return time.monotonic() - self.began - self.waited

    def all_turns(self) -> list[Turn]:
        """Those of the whole episode so far: of the sample's own run and of all children."""
        return self.above.all_turns() if self.above is not None else self._turns()

    def all_beside_usd(self) -> float:
        """What calls of the whole episode cost that are no turns, as far as it is known."""
        return self.above.all_beside_usd() if self.above is not None else self._beside_usd()

    def events(self) -> tuple[Event, ...]:
        """The children that have ended, by name, as events of this run."""
        return tuple(_event(child.turn, child.played) for child in self.below if child.played is not None)

    def settled(self, score: Score | None) -> tuple[Score | None, tuple[Trajectory, ...]]:
        """The run's score, less what of it is its children's, and the children with theirs."""
        ended = [(child, child.played) for child in self.below if child.played is not None]
        own = [played.score for _, played in ended if played.score is not None]
        if self.share is not None:
            score, given = self.share(score, own)
        else:
            given = own
        parts = iter(given)
        return score, tuple(
            child._settled(played, None if played.score is None else next(parts)) for child, played in ended
        )

    def _settled(self, played: Trajectory, score: Score | None) -> Trajectory:
        score, children = self.settled(score)
        return replace(played, score=score, children=children)

    def _beside_usd(self) -> float:
        return self.beside_usd + sum(child._beside_usd() for child in self.below)

    def _turns(self) -> list[Turn]:
        return [*self.turns, *(turn for child in self.below for turn in child._turns())]


@dataclass(frozen=True, slots=True)
class Lent:
    """A session that another run has opened and will close. See Session."""

    session: Session

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        """Acts on the one session."""
        return await self.session.call(call, seconds)

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        """What the environment paid the run on its way: the session is judged once, for whoever opened it."""
        return Score(sum(transcript.rewards))

    async def close(self) -> None:
        """It stays open."""


@dataclass(frozen=True, slots=True)
class LentSessions:
    """The one session that a child gets. See Sessions."""

    seeded: Seeded

    async def seed_session(self, task: Task, seed: int, seconds: float) -> Seeded:
        """It is there already."""
        return self.seeded

    async def restore_session(self, task: Task, seed: int, snapshot: bytes, seconds: float) -> Seeded:
        """The same: whoever opened it has restored it."""
        return self.seeded


def lent(seeded: Seeded, asked: str) -> Seeded:
    """A run's session as its children get it, with what one of them is asked. Plain text is their answer, never a
    call."""
    said: tuple[Message, ...] = ({"role": "user", "content": asked},)
    # Who listens to the run hears of the child's result, not of what the child was told by its tools.
    session = seeded.session.inner if isinstance(seeded.session, HeardSession) else seeded.session
    return replace(seeded, session=Lent(session), messages=said, text_tool=None)


def _event(turn: int, child: Trajectory) -> Event:
    detail = {"episode_id": child.lease.episode_id, "status": child.status.value, "stop": child.stop_reason.value}
    return Event(turn, "child", child.agent, detail, child.seconds.total)
