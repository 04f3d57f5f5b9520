"""A finished episode against its environment once more: the recorded calls, the recorded words, no model.

A session is seeded anew from the row's task and the seed its lease had, gets the recorded calls turn by turn, those of
a turn at once as when they were played, and the episode is judged. Whatever comes out otherwise is a Departure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rollout.conduct import PENALTY, penalized
from rollout.errors import BoundaryError, boundary
from rollout.lifetime import opened
from rollout.protocols import Seeded, Session, Sessions
from rollout.recorded import Played, PlayedTurn
from rollout.restoring import differences
from rollout.soundness import check_score
from rollout.tool_use import TRANSPORT_SECONDS, use_tools
from rollout.trajectory import (
    Agent,
    Failure,
    FailureKind,
    Limits,
    Message,
    Rescores,
    Score,
    StopReason,
    ToolUse,
    Transcript,
)

_TOLD = ("content", "error", "skipped")
"""What a row tells of each call; whether one ended the episode and what it was worth, it tells by turn."""


@dataclass(frozen=True, slots=True)
class World:
    """The environment that episodes are held against, with the limits and the agent they were played with."""

    sessions: Sessions
    resource: str
    rescores: Rescores | None
    limits: Limits
    agent: Agent


@dataclass(frozen=True, slots=True)
class Departure:
    """One thing that is not as it is recorded."""

    episode_id: str
    turn: int | None
    """None for what belongs to no turn: the opening, the score, a failure."""
    call: int | None
    """Place among the calls of its turn; None for what belongs to the turn."""
    what: str
    """`opening`, `call`, `content`, `error`, `skipped`, `done`, `step reward`, `reward`, `component NAME` or
    `failure`."""
    then: Any
    now: Any

    def __str__(self) -> str:
        place = "" if self.turn is None else f"turn {self.turn} "
        place += "" if self.call is None else f"call {self.call} "
        return f"{place}{self.what}: was {_shown(self.then)}, is {_shown(self.now)}"


async def compare(world: World, episode: Played) -> tuple[Departure, ...]:
    """Everything that differs when an episode's calls are made again and it is judged again.

    An environment that breaks is a departure too, after those that came before it.
    """
    episode_id = episode.lease.episode_id
    found: list[Departure] = []
    try:
        async with opened(world.sessions, episode.lease, world.limits, world.resource) as seeded:
            found += _opening(world, seeded, episode)
            turns = await _calls(world, seeded, episode, found)
            score = await _verify(world, seeded.session, _now(episode, turns), episode.score)
            found += _scores(episode, score)
    except BoundaryError as error:
        found.append(Departure(episode_id, None, None, "failure", None, str(error)))
    return tuple(found)


async def judge(world: World, episode: Played) -> Score:
    """The score of an episode by the world's verifier, in the way that its resource says (`Resource.rescores`).

    Raises BoundaryError when the session cannot be seeded, the verifier breaks, or the session cannot be rebuilt
    because a tool answers otherwise than it did: the score would be that of another episode.
    """
    async with opened(world.sessions, episode.lease, world.limits, world.resource) as seeded:
        if world.rescores == "replay":
            found: list[Departure] = []
            await _calls(world, seeded, episode, found)
            if found:
                raise BoundaryError(Failure(FailureKind.TOOL, "replay", str(found[0])))
        return await _verify(world, seeded.session, episode.transcript, episode.score)


def diverged(failure: Failure) -> bool:
    """True for a failure that another attempt would only repeat."""
    return failure.where == "replay"


async def _calls(world: World, seeded: Seeded, episode: Played, found: list[Departure]) -> list[tuple[ToolUse, ...]]:
    """Makes the recorded calls again; what they answer, and in `found` what is not as it was."""
    agent, turns = world.agent, list[tuple[ToolUse, ...]]()
    allowed = [spec.name for spec in seeded.tools if agent.tools is None or spec.name in agent.tools]
    for number, turn in enumerate(episode.turns):
        calls = [use.call for use in turn.uses]
        used = await use_tools(seeded.session, calls, allowed, world.limits.tool_seconds, turn.cut)
        if used.broken is not None:
            raise used.broken
        turns.append(used.uses)
        found += _turn(episode, number, turn, used.uses)
    return turns


def _turn(episode: Played, number: int, turn: PlayedTurn, now: Sequence[ToolUse]) -> Iterator[Departure]:
    episode_id = episode.lease.episode_id
    for one in differences(turn.uses, now, _TOLD):
        yield Departure(episode_id, number, one.call, one.what, one.then, one.now)
    last = number == len(episode.turns) - 1
    ended = last and episode.transcript.stop_reason is StopReason.ENVIRONMENT
    if (ends := any(use.result.done for use in now)) != ended:
        yield Departure(episode_id, number, None, "done", ended, ends)
    if (worth := _worth(now)) != turn.reward:
        yield Departure(episode_id, number, None, "step reward", turn.reward, worth)


def _worth(uses: Sequence[ToolUse]) -> float | None:
    """Sum of the step rewards of a turn; None when the environment gave none."""
    rewards = [use.result.reward for use in uses if use.result.reward is not None]
    return sum(rewards) if rewards else None


def _opening(world: World, seeded: Seeded, episode: Played) -> Iterator[Departure]:
    told = world.agent.instructions if world.agent.instructions is not None else seeded.instructions
    system: list[Message] = [{"role": "system", "content": told}] if told else []
    now = [(one["role"], one["content"]) for one in (*system, *seeded.messages)]
    then = [(one["role"], one.get("content")) for one in episode.opening]
    if now != then:
        yield Departure(episode.lease.episode_id, None, None, "opening", then, now)


def _now(episode: Played, turns: Sequence[Sequence[ToolUse]]) -> Transcript:
    """The conversation with what the tools answer now: after its opening all is the policy's or a tool's."""
    then = episode.transcript
    answers = iter([use.result.content for uses in turns for use in uses])
    messages = list(then.messages)
    for place in range(then.opening, len(messages)):
        message = messages[place]
        if message["role"] != "assistant":
            messages[place] = {**message, "content": next(answers, message["content"])}
    rewards = tuple(worth for worth in map(_worth, turns) if worth is not None)
    return replace(then, messages=tuple(messages), rewards=rewards)


async def _verify(world: World, session: Session, transcript: Transcript, recorded: Score) -> Score:
    seconds = world.limits.verify_seconds
    async with boundary(FailureKind.VERIFY, world.resource, seconds + TRANSPORT_SECONDS):
        score = check_score(await session.verify(transcript, seconds))
        return penalized(score, -recorded.components.get(PENALTY, 0.0))


def _scores(episode: Played, now: Score) -> Iterator[Departure]:
    episode_id, then = episode.lease.episode_id, episode.score
    if now.reward != then.reward:
        yield Departure(episode_id, None, None, "reward", then.reward, now.reward)
    for name in sorted({*then.components, *now.components}):
        if (old := then.components.get(name)) != (new := now.components.get(name)):
            yield Departure(episode_id, None, None, f"component {name}", old, new)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
