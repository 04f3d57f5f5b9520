"""Calls that begin while the policy still samples: the same episode as without, one result a call, whatever happens."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import pytest
from fakes import ADD, GOLD, LIMITS, SUBMIT, TEMPLATE, FaultyPolicy, counter, lease, says, setting

from rollout.conduct import plain_early
from rollout.episode import Setting, run_episode
from rollout.errors import Unavailable
from rollout.parsing import FORMATS
from rollout.protocols import Policy, Seeded, Session
from rollout.scripted import ScriptedPolicy
from rollout.sessions import LocalSessions, SessionTable
from rollout.stream_reading import token_reader
from rollout.streaming import Delta, Heard
from rollout.trajectory import (
    Completion,
    Prompt,
    Score,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    ToolUse,
    Trajectory,
    Transcript,
)

CALL = ADD[ADD.index("<tool_call>") :]
FOUR = "\n".join([CALL] * 4)


@dataclass
class Log:
    """What happened in which order."""

    lines: list[str] = field(default_factory=list)


@dataclass
class Watched:
    """A session and a policy that write down when calls begin and end, and when the policy is done."""

    inner: Session
    log: Log

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        self.log.lines.append(f"begin {call.id}")
        try:
            answer = await self.inner.call(call, seconds)
        except asyncio.CancelledError:
            self.log.lines.append(f"cancelled {call.id}")
            raise
        self.log.lines.append(f"end {call.id}")
        return answer

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        return await self.inner.verify(transcript, seconds)

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class WatchedSessions:
    log: Log
    wrap: Callable[[Session], Session] = lambda session: session

    async def seed_session(self, task: Task, seed: int, seconds: float) -> Seeded:
        seeded = await LocalSessions(SessionTable(counter())).seed_session(task, seed, seconds)
        return replace(seeded, session=Watched(self.wrap(seeded.session), self.log))

    async def restore_session(self, task: Task, seed: int, snapshot: bytes, seconds: float) -> Seeded:
        raise NotImplementedError


@dataclass
class WatchedPolicy:
    """Sometimes fails when it has said everything."""

    inner: ScriptedPolicy
    log: Log
    fails: BaseException | None = None

    async def complete(self, prompt: Prompt) -> Completion:
        raise AssertionError("it is listened to")

    async def stream(self, prompt: Prompt, heard: Heard) -> Completion:
        completion = await self.inner.stream(prompt, heard)
        await asyncio.sleep(0)
        self.log.lines.append("sampled")
        if self.fails is not None:
            raise self.fails
        return completion


def early(policy: Policy, sessions: WatchedSessions | None = None) -> Setting:
    return setting(
        policy,
        sessions,
        conduct=partial(plain_early, 5.0),
        new_reader=partial(token_reader, TEMPLATE, FORMATS["hermes"].open),
    )


def timeless(use: ToolUse) -> ToolUse:
    return replace(use, result=replace(use.result, seconds=0.0))


def told(episode: Trajectory) -> object:
    """All of an episode but its times."""
    turns = [replace(turn, model_seconds=0.0, tool_uses=tuple(map(timeless, turn.tool_uses))) for turn in episode.turns]
    return turns, episode.messages, episode.score, episode.stop_reason, episode.failure, episode.events


@pytest.mark.parametrize(
    "lines", [GOLD, (FOUR, SUBMIT), ("no call",), (f"{CALL}<tool_call>no JSON</tool_call>", SUBMIT)]
)
@pytest.mark.parametrize("piece", [1, 7])
async def test_an_episode_is_the_same_whenever_its_calls_begin(lines: tuple[str, ...], piece: int) -> None:
    before = await run_episode(lease(), setting(says(*lines)))
    after = await run_episode(lease(), early(ScriptedPolicy(TEMPLATE, lines, piece=piece)))
    assert told(after) == told(before)


async def test_calls_run_while_the_policy_still_samples() -> None:
    log = Log()
    policy = WatchedPolicy(ScriptedPolicy(TEMPLATE, [FOUR, SUBMIT]), log)
    await run_episode(lease(), early(policy, WatchedSessions(log)))
    first = log.lines[: log.lines.index("sampled")]
    assert first[:6] == [f"{what} call_0_{place}" for place in range(3) for what in ("begin", "end")]


async def test_a_completion_that_is_cut_keeps_the_results_of_calls_that_had_begun() -> None:
    room = len(TEMPLATE.encode(f"{CALL}\n{CALL}")) + 5
    policy = ScriptedPolicy(TEMPLATE, [FOUR])
    cut = replace(early(policy), limits=replace(LIMITS, turn_tokens=room))
    episode = await run_episode(lease(), cut)
    assert episode.stop_reason is StopReason.MAX_TOKENS
    [turn] = episode.turns
    assert [use.result.skipped for use in turn.tool_uses] == [False, False, True]


async def test_what_began_for_a_turn_that_never_came_is_cancelled_and_told() -> None:
    log = Log()

    @dataclass
    class Slow:
        inner: Session

        async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
            await asyncio.Event().wait()
            raise AssertionError

        async def verify(self, transcript: Transcript, seconds: float) -> Score:
            return await self.inner.verify(transcript, seconds)

        async def close(self) -> None:
            await self.inner.close()

    policy = WatchedPolicy(ScriptedPolicy(TEMPLATE, [FOUR]), log, Unavailable("the endpoint died"))
    episode = await run_episode(lease(), early(policy, WatchedSessions(log, Slow)))
    assert episode.failure is not None
    assert episode.turns == ()
    assert [line for line in log.lines if line.startswith("cancelled")] == [f"cancelled call_0_{n}" for n in range(4)]
    assert [(event.kind, event.name, event.detail["result"]) for event in episode.events] == [
        ("early_call", "add", None)
    ] * 4


async def test_a_tool_that_breaks_early_fails_the_episode_as_one_that_breaks_later() -> None:
    async def breaks(call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        raise ValueError("broken")

    @dataclass
    class Broken:
        inner: Session
        call: Callable[[ToolCall, float], Awaitable[tuple[ToolResult, bytes | None]]] = breaks

        async def verify(self, transcript: Transcript, seconds: float) -> Score:
            return await self.inner.verify(transcript, seconds)

        async def close(self) -> None:
            await self.inner.close()

    def wrap(session: Session) -> Session:
        return cast(Session, Broken(session))

    lines = [f"{CALL}\n{CALL}", SUBMIT]
    later = await run_episode(lease(), setting(says(*lines), WatchedSessions(Log(), wrap)))
    sooner = await run_episode(lease(), early(ScriptedPolicy(TEMPLATE, lines), WatchedSessions(Log(), wrap)))
    assert told(sooner) == told(later)
    assert sooner.failure is not None


async def test_a_policy_that_cannot_be_listened_to_plays_the_same_episode() -> None:
    deaf = FaultyPolicy(says(*GOLD), lambda: asyncio.sleep(0))
    assert told(await run_episode(lease(), early(deaf))) == told(await run_episode(lease(), setting(says(*GOLD))))


async def test_what_a_listener_hears_is_what_was_sampled() -> None:
    policy, heard = ScriptedPolicy(TEMPLATE, GOLD, piece=3), list[Delta]()
    prompt = Prompt("r", "s", 0, TEMPLATE.encode("x"), (), (), 11, setting(policy).agent.sampling, 5.0)
    streamed, whole = await policy.stream(prompt, heard.append), await policy.complete(prompt)
    assert streamed == whole
    assert [number for one in heard for number in one.ids] == list(whole.ids or ())
