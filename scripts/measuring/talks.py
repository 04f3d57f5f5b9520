"""Episodes of given lengths, for measurements: so many turns, so many tokens a turn, whatever the policy says.

Sessions of a group share their opening; the number of turns has a long tail and goes with the group. What a policy
samples is an action, whatever it is, and the answer to it takes a while and has a given number of characters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rollout.episode import Setting, run_episode
from rollout.protocols import Placing, Policy
from rollout.resource import Step, StepResource
from rollout.scheduling import sample_seed
from rollout.sessions import LocalSessions, SessionTable
from rollout.template import ChatTemplate
from rollout.tokens import TokenLedger
from rollout.trajectory import (
    Agent,
    Completion,
    Extras,
    FinishReason,
    Lease,
    Limits,
    Prompt,
    Segment,
    Task,
    ToolSpec,
    Trajectory,
)

WORDS = (
    "add",
    "count",
    "total",
    "step",
    "number",
    "result",
    "value",
    "check",
    "report",
    "table",
    "of",
    "the",
    "and",
    "to",
)
LIMITS = Limits(max_turns=200, max_tokens=10**6, turn_seconds=600.0, episode_seconds=3600.0)


@dataclass(frozen=True, slots=True)
class Shape:
    """How long everything is."""

    turns: float
    """Of an episode in the mean,"""
    spread: float
    """sigma of a log-normal around it over groups; a third of that within a group,"""
    most: int
    """and the most."""
    sampled: int
    """Tokens of a turn."""
    answered: int
    """Characters of an answer,"""
    tool_seconds: float
    """and the time until it comes, in the mean; it is drawn from an exponential."""
    system: int = 0
    """Characters that all episodes share,"""
    opening: int = 200
    """and those that a group does."""


def words(random: np.random.Generator, characters: int) -> str:
    """Text of about so many characters."""
    return " ".join(random.choice(WORDS, characters // 5))[:characters]


class Talks(StepResource):
    """Answers so many times."""

    name = "talks"

    def __init__(self, shape: Shape, groups: int, seed: int) -> None:
        self._shape, self._groups, self._seed = shape, groups, seed

    def tasks(self, seed: int) -> Iterator[Task]:
        """A task a group."""
        shape = self._shape
        for index in range(self._groups):
            random = np.random.default_rng((self._seed, index))
            mean = shape.turns * random.lognormal(-(shape.spread**2) / 2, shape.spread)
            data = {"mean": mean, "opening": words(random, shape.opening)}
            yield Task(f"talk-{index}", (), data, index)

    async def reset(self, task: Task, seed: int) -> tuple[Any, str]:
        """See StepResource. A session is its answers to come, with the seconds each takes."""
        shape, random = self._shape, np.random.default_rng(seed)
        own = random.lognormal(0.0, shape.spread / 3)
        turns = int(np.clip(round(float(task.data["mean"]) * own), 1, shape.most))
        answers = [(words(random, shape.answered), random.exponential(shape.tool_seconds)) for _ in range(turns)]
        return answers, str(task.data["opening"])

    async def act(self, session: Any, action: str) -> Step:
        """See StepResource."""
        said, seconds = session.pop()
        if session:
            await asyncio.sleep(seconds)
        return Step(said, terminated=not session)


@dataclass(slots=True)
class Steered:
    """A policy whose completions all have one length, and whose prompts are changed on the way."""

    inner: Policy
    tokens: int
    change: Callable[[Prompt], Prompt] = lambda prompt: prompt

    async def complete(self, prompt: Prompt) -> Completion:
        """See Policy."""
        most = min(self.tokens, prompt.max_tokens)
        asked = replace(self.change(prompt), max_tokens=most, extras=Extras(vllm={"ignore_eos": True}))
        return replace(await self.inner.complete(asked), finish_reason=FinishReason.STOP)

    def closed(self, session_id: str) -> None:
        """See Placing."""
        if isinstance(self.inner, Placing):
            self.inner.closed(session_id)


def content(text: str, turn: int, *, tools: Sequence[ToolSpec] = ()) -> tuple[Segment, ...]:
    """A parser that finds no calls: all is said."""
    return (Segment("content", text or "-"),)


@dataclass(frozen=True, slots=True)
class Played:
    """What became of all episodes."""

    episodes: tuple[Trajectory, ...]
    seconds: float
    """From the first to the last."""
    began: tuple[float, ...]
    """When each episode began, in seconds since the first."""

    @property
    def mean_seconds(self) -> float:
        """Of an episode."""
        return float(np.mean([one.seconds.total for one in self.episodes]))


async def play(
    policy: Policy, template: ChatTemplate, shape: Shape, groups: int, each: int, at_once: int, seed: int, name: str
) -> Played:
    """Plays all episodes, so many at once; raises AssertionError when one fails."""
    resource = Talks(shape, groups, seed)
    setting = Setting(
        agent=Agent(instructions=words(np.random.default_rng(seed), shape.system) or None),
        policy=policy,
        sessions=LocalSessions(SessionTable(resource)),
        limits=LIMITS,
        new_ledger=partial(TokenLedger, template, content),
        resource="talks",
        model="measured",
    )
    leases = [
        Lease(name, task, number, 1, True, sample_seed(seed, task.index, number))
        for task in resource.tasks(seed)
        for number in range(each)
    ]
    waiting, done, starts = iter(leases), list[Trajectory](), list[float]()
    began = time.monotonic()

    async def slot() -> None:
        for lease in waiting:
            starts.append(time.monotonic() - began)
            episode = await run_episode(lease, setting)
            assert episode.failure is None, episode.failure
            done.append(episode)

    await asyncio.gather(*(slot() for _ in range(at_once)))
    return Played(tuple(done), time.monotonic() - began, tuple(starts))
