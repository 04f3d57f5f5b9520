"""The one turn loop: seed a session, let policy and environment take turns, verify, close.

    seed_session -> [ledger.extend -> policy.complete -> ledger.record -> tools]* -> verify -> close

What the policy or a tool does wrong is part of the episode. What breaks outside of them is a Failure: the episode
ends without a reward and whoever holds its lease decides whether to try again. The order of the checks at the top of
a turn is: environment or answer, turns, tokens, time, context.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rollout.errors import BoundaryError, boundary
from rollout.protocols import Ledger, Policy, Recorded, Seeded, Session, Sessions
from rollout.trajectory import (
    Agent,
    Failure,
    FailureKind,
    FinishReason,
    Lease,
    Limits,
    Message,
    Prompt,
    Score,
    Seconds,
    StopReason,
    ToolCall,
    ToolResult,
    ToolSpec,
    ToolUse,
    Trajectory,
    Transcript,
    Turn,
)

TRANSPORT_SECONDS = 5.0
"""What a call to another process may take beyond the deadline that is enforced over there."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all episodes of a job share."""

    agent: Agent
    policy: Policy
    sessions: Sessions
    limits: Limits
    new_ledger: Callable[[], Ledger]
    resource: str
    model: str
    context: int | None = None
    """Positions the model reaches; None leaves the check to the engine."""


async def run_episode(lease: Lease, setting: Setting) -> Trajectory:
    """Plays one leased sample to its end and scores it.

    Never raises for what happens in an episode; raises for bugs and when it is cancelled. The session is closed on
    every path.
    """
    return await _Episode(lease, setting).play()


@dataclass(slots=True)
class _Episode:
    lease: Lease
    setting: Setting
    ledger: Ledger = field(init=False)
    messages: list[Message] = field(default_factory=list[Message])
    turns: list[Turn] = field(default_factory=list[Turn])
    tool_seconds: float = 0.0
    verify_seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)

    async def play(self) -> Trajectory:
        score: Score | None = None
        failure: Failure | None = None
        stop = StopReason.FAILED
        session: Session | None = None
        try:
            seeded = await self._seed()
            session = seeded.session
            stop = await self._converse(seeded)
            score = await self._verify(session, stop)
        except BoundaryError as error:
            failure = error.failure
        finally:
            if session is not None:
                await self._close(session)
        return self._trajectory(stop if failure is None else StopReason.FAILED, score, failure)

    async def _seed(self) -> Seeded:
        limits = self.setting.limits
        began = time.monotonic()
        async with boundary(FailureKind.SEED, self.setting.resource, limits.seed_seconds):
            # Time-to-live of a session whose runner dies: what an episode may take, and the calls in between.
            seconds = limits.episode_seconds + TRANSPORT_SECONDS
            seeded = await self.setting.sessions.seed_session(self.lease.task, self.lease.seed, seconds)
        self.tool_seconds += time.monotonic() - began
        return seeded

    async def _converse(self, seeded: Seeded) -> StopReason:
        agent = self.setting.agent
        tools = tuple(spec for spec in seeded.tools if agent.tools is None or spec.name in agent.tools)
        instructions = agent.instructions if agent.instructions is not None else seeded.instructions
        system: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
        self.ledger = self.setting.new_ledger()
        said: list[Message] = [*system, *seeded.messages]
        while True:
            self.messages += said
            if (stop := self._spent()) is not None:
                return stop
            self.ledger.extend(said, tools)
            turn = await self._complete(tools)
            if isinstance(turn, StopReason):
                return turn
            recorded, model_seconds = turn
            self.messages.append(recorded.message)
            calls, implied = self._calls(recorded, seeded)
            cut = recorded.completion.finish_reason is FinishReason.LENGTH
            uses = await self._use_all(seeded.session, calls, tools, cut)
            self._keep(recorded, uses, model_seconds)
            said = [_answer(use, implied) for use in uses]
            if (stop := _ended(uses, cut)) is not None:
                self.messages += said
                return stop

    def _spent(self) -> StopReason | None:
        limits = self.setting.limits
        if len(self.turns) >= limits.max_turns:
            return StopReason.MAX_TURNS
        if self._tokens_left() <= 0:
            return StopReason.MAX_TOKENS
        return StopReason.TIMEOUT if self._seconds_left() <= 0 else None

    async def _complete(self, tools: tuple[ToolSpec, ...]) -> tuple[Recorded, float] | StopReason:
        """One model call. A deadline that is the episode's own truncates; any other is the model's failure."""
        ids, messages = self.ledger.prompt()
        limits, context = self.setting.limits, self.setting.context
        room = limits.turn_tokens if context is None else context - len(ids)
        if room <= 0:
            return StopReason.CONTEXT
        seconds = min(limits.turn_seconds, self._seconds_left())
        prompt = Prompt(
            request_id=f"{self.lease.episode_id}.{self.lease.attempt}.{len(self.turns)}",
            session_id=self.lease.episode_id,
            turn=len(self.turns),
            ids=ids,
            messages=messages,
            tools=tools,
            max_tokens=min(limits.turn_tokens, self._tokens_left(), room),
            sampling=self.setting.agent.sampling,
            seconds=seconds,
        )
        began = time.monotonic()
        try:
            async with boundary(FailureKind.MODEL, self.setting.model, seconds):
                completion = await self.setting.policy.complete(prompt)
        except BoundaryError:
            if self._seconds_left() <= 0:
                return StopReason.TIMEOUT
            raise
        if completion.finish_reason is FinishReason.ABORT:
            failure = Failure(FailureKind.MODEL, completion.replica or self.setting.model, "the engine aborted")
            raise BoundaryError(failure)
        return self.ledger.record(completion), time.monotonic() - began

    def _calls(self, recorded: Recorded, seeded: Seeded) -> tuple[tuple[ToolCall, ...], bool]:
        """The turn's calls; plain text is a call to the resource's text tool where it has one."""
        calls = tuple(part.call for part in recorded.segments if part.call is not None)
        if calls or seeded.text_tool is None:
            return calls, False
        spec = next(spec for spec in seeded.tools if spec.name == seeded.text_tool)
        argument = next(iter(spec.parameters["properties"]))
        text = json.dumps({argument: recorded.message["content"].strip()}, ensure_ascii=False)
        return (ToolCall(f"said_{len(self.turns)}", seeded.text_tool, text),), True

    async def _use_all(
        self, session: Session, calls: tuple[ToolCall, ...], tools: tuple[ToolSpec, ...], cut: bool
    ) -> list[ToolUse]:
        """All calls of a turn at once, results in the order of the calls. One that breaks fails the episode, after
        the others have ended."""
        if not calls:
            return []
        began = time.monotonic()
        allowed = {spec.name for spec in tools}
        if len(calls) == 1:
            results = [await self._use(session, calls[0], allowed, cut)]
        else:
            running = [self._use(session, call, allowed, cut) for call in calls]
            answers = await asyncio.gather(*running, return_exceptions=True)
            results = [_raised(answer) for answer in answers]
        self.tool_seconds += time.monotonic() - began
        return [ToolUse(call, result) for call, result in zip(calls, results, strict=True)]

    async def _use(self, session: Session, call: ToolCall, allowed: set[str], cut: bool) -> ToolResult:
        if cut:
            return _skipped("the completion was cut before this call could run")
        if not call.name:
            return _skipped("a tool call must be a JSON object with name and arguments")
        if call.name not in allowed:
            return _skipped(f"there is no tool '{call.name}'; there are: {', '.join(sorted(allowed)) or 'none'}")
        seconds = max(0.1, min(self.setting.limits.tool_seconds, self._seconds_left()))
        async with boundary(FailureKind.TOOL, call.name, seconds + TRANSPORT_SECONDS):
            return await session.call(call, seconds)

    def _keep(self, recorded: Recorded, uses: list[ToolUse], model_seconds: float) -> None:
        turn = Turn(
            agent=self.setting.agent.name,
            segment=recorded.segment,
            prompt_ids=recorded.prompt_ids,
            completion=recorded.completion,
            segments=recorded.segments,
            tool_uses=tuple(uses),
            segment_break=recorded.segment_break,
            sampling=self.setting.agent.sampling,
            model_seconds=model_seconds,
        )
        self.turns.append(turn)

    async def _verify(self, session: Session, stop: StopReason) -> Score:
        rewards = tuple(turn.reward for turn in self.turns if turn.reward is not None)
        transcript = Transcript(tuple(self.messages), stop, rewards)
        seconds = self.setting.limits.verify_seconds
        began = time.monotonic()
        async with boundary(FailureKind.VERIFY, self.setting.resource, seconds + TRANSPORT_SECONDS):
            score = await session.verify(transcript, seconds)
        self.verify_seconds = time.monotonic() - began
        return score

    async def _close(self, session: Session) -> None:
        """A session that cannot be closed is left to its host's time-to-live: it must not cost the episode."""
        closing = asyncio.ensure_future(session.close())
        try:
            async with boundary(FailureKind.SEED, "close", self.setting.limits.close_seconds):
                await asyncio.shield(closing)
        except BoundaryError:
            closing.cancel()

    def _tokens_left(self) -> int:
        return self.setting.limits.max_tokens - sum(turn.completion.num_sampled for turn in self.turns)

    def _seconds_left(self) -> float:
        """Until the deadline, less what scoring and closing may take."""
        limits = self.setting.limits
        ends = self.began + limits.episode_seconds - limits.verify_seconds - limits.close_seconds
        return ends - time.monotonic()

    def _trajectory(self, stop: StopReason, score: Score | None, failure: Failure | None) -> Trajectory:
        queue = sum(turn.completion.queue_seconds for turn in self.turns)
        model = sum(turn.model_seconds for turn in self.turns)
        seconds = Seconds(
            queue=queue,
            model=max(0.0, model - queue),
            tool=self.tool_seconds,
            verify=self.verify_seconds,
            total=time.monotonic() - self.began,
        )
        return Trajectory(
            lease=self.lease,
            resource=self.setting.resource,
            agent=self.setting.agent.name,
            model=self.setting.model,
            messages=tuple(self.messages),
            turns=tuple(self.turns),
            stop_reason=stop,
            score=score,
            failure=failure,
            seconds=seconds,
            started_at=self.started_at,
            finished_at=time.time(),
        )


def _ended(uses: list[ToolUse], cut: bool) -> StopReason | None:
    if cut:
        return StopReason.MAX_TOKENS
    if any(use.result.done for use in uses):
        return StopReason.ENVIRONMENT
    return None if uses else StopReason.DONE


def _answer(use: ToolUse, implied: bool) -> Message:
    """A result as the policy reads it: a tool message, or simply the next thing it is told."""
    if implied:
        return {"role": "user", "content": use.result.content}
    return {"role": "tool", "content": use.result.content, "tool_call_id": use.call.id, "name": use.call.name}


def _skipped(why: str) -> ToolResult:
    return ToolResult(f"error: {why}", error=why, skipped=True)


def _raised(answer: ToolResult | BaseException) -> ToolResult:
    if isinstance(answer, BaseException):
        raise answer
    return answer


