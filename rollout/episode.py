"""The one turn loop: seed a session, let policy and environment take turns, verify, close.

    seed_session -> [ledger.extend -> policy.complete -> ledger.record -> tools]* -> verify -> close

Turns that an earlier attempt has left (`rollout.restoring`) go through the same loop: their completions come from the
record instead of the policy, and what is rebuilt from them must be what is recorded.

What the policy or a tool does wrong is part of the episode. What breaks outside of them is a Failure: the episode
ends without a reward and whoever holds its lease decides whether to try again. The order of the checks at the top of
a turn is: environment or answer, turns, tokens, time, context.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rollout import logs
from rollout.errors import BoundaryError, ContextExceeded, NotRestored, UserError, boundary
from rollout.lifetime import opened
from rollout.protocols import Ledger, Policy, Recorded, Seeded, Session, Sessions
from rollout.restoring import Diverged, Record
from rollout.saved import Saved
from rollout.soundness import check_completion, check_score
from rollout.tool_use import TRANSPORT_SECONDS, unanswered, use_tools
from rollout.trajectory import (
    Agent,
    Completion,
    Failure,
    FailureKind,
    FinishReason,
    Lease,
    Limits,
    Message,
    Prompt,
    Restores,
    Score,
    Seconds,
    StopReason,
    ToolCall,
    ToolSpec,
    ToolUse,
    Trajectory,
    Transcript,
    Turn,
)

log = logging.getLogger(__name__)


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
    restores: Restores | None = None
    """How the resource's sessions are restored."""
    keep: Callable[[str, int, Saved], None] | None = None
    """Takes finished turns, by episode and number, as they come; None keeps none."""
    vocabulary: int | None = None
    """Token ids the model has; None when nobody knows."""


async def run_episode(
    lease: Lease, setting: Setting, saved: Sequence[Saved] = (), drops: Mapping[str, str] | None = None
) -> Trajectory:
    """Plays one leased sample to its end and scores it; goes on behind the turns that an earlier attempt has left.

    When the environment answers those otherwise than it did then, the episode starts again from nothing.
    Never raises for what happens in an episode; raises UserError for a job that no episode can work in, whatever a
    bug raises, and when it is cancelled, unless `drops` has a reason for its episode by then: that is the trajectory
    as far as it came, without a reward. The session is closed on every path.
    """
    drops = {} if drops is None else drops
    if (record := Record.of(saved, setting.restores)).turns:
        try:
            return await _Episode(lease, setting, record, drops).play()
        except Diverged as difference:
            log.warning("%s starts again: %s", lease.episode_id, difference)
    played = await _Episode(lease, setting, Record(), drops).play()
    return replace(played, restored_turns=0) if saved else played


@dataclass(slots=True)
class _Episode:
    lease: Lease
    setting: Setting
    record: Record
    drops: Mapping[str, str]
    messages: list[Message] = field(default_factory=list[Message])
    opening: int = 0
    turns: list[Turn] = field(default_factory=list[Turn])
    snapshot: bytes | None = None
    """The session's state after the last turn's tools, of resources that give one."""
    tool_seconds: float = 0.0
    verify_seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)

    async def play(self) -> Trajectory:
        score: Score | None = None
        failure: Failure | None = None
        dropped: str | None = None
        stop = StopReason.FAILED
        setting, snapshot = self.setting, self.record.snapshot
        try:
            async with opened(setting.sessions, self.lease, setting.limits, setting.resource, snapshot) as seeded:
                self.tool_seconds = time.monotonic() - self.began
                stop = await self._converse(seeded)
                score = await self._verify(seeded.session, stop)
        except BoundaryError as error:
            if isinstance(error.__cause__, NotRestored):
                raise Diverged(error.failure.message) from error
            failure, stop = error.failure, StopReason.FAILED
        except asyncio.CancelledError:
            if (reason := self.drops.get(self.lease.episode_id)) is None:
                raise
            if score is None:  # else it had ended, only its session was still being closed
                dropped, stop = reason, StopReason.DROPPED
        return self._trajectory(stop, score, failure, dropped)

    async def _converse(self, seeded: Seeded) -> StopReason:
        agent = self.setting.agent
        tools = tuple(spec for spec in seeded.tools if agent.tools is None or spec.name in agent.tools)
        instructions = agent.instructions if agent.instructions is not None else seeded.instructions
        system: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
        ledger = self.setting.new_ledger()
        said: list[Message] = [*system, *seeded.messages]
        self.opening = len(said)
        while True:
            self.messages += said
            if (stop := self._spent()) is not None:
                return stop
            self._extend(ledger, said, tools)
            if (prompt := self._prompt(ledger, tools)) is None:
                return StopReason.CONTEXT
            logs.turn(len(self.turns))
            began = time.monotonic()
            completion = self.record.completion(prompt) or await self._complete(prompt)
            if isinstance(completion, StopReason):
                return completion
            recorded = ledger.record(completion)
            self.messages.append(recorded.message)
            self._keep(recorded, time.monotonic() - began)
            log.debug("%s after %d tokens", completion.finish_reason, completion.num_sampled)
            cut = self._cut(prompt, completion)
            said = await self._act(seeded, recorded, tools, cut is not None)
            self._save()
            if (stop := cut or self._ended()) is not None:
                self.messages += said
                return stop

    def _spent(self) -> StopReason | None:
        limits = self.setting.limits
        if len(self.turns) >= limits.max_turns:
            return StopReason.MAX_TURNS
        if self._tokens_left() <= 0:
            return StopReason.MAX_TOKENS
        return StopReason.TIMEOUT if self._seconds_left() <= 0 else None

    def _extend(self, ledger: Ledger, said: Sequence[Message], tools: tuple[ToolSpec, ...]) -> None:
        try:
            ledger.extend(said, tools)
        except UserError as error:
            if self.turns:
                raise  # the template cannot continue at all, whatever is said
            raise BoundaryError(Failure(FailureKind.SEED, "chat template", str(error))) from error

    def _prompt(self, ledger: Ledger, tools: tuple[ToolSpec, ...]) -> Prompt | None:
        """The next model call; None when it does not fit the model."""
        ids, messages = ledger.prompt()
        limits, context = self.setting.limits, self.setting.context
        room = limits.turn_tokens if context is None else context - len(ids)
        if room <= 0:
            return None
        return Prompt(
            request_id=f"{self.lease.episode_id}.{self.lease.attempt}.{len(self.turns)}",
            session_id=self.lease.episode_id,
            turn=len(self.turns),
            ids=ids,
            messages=messages,
            tools=tools,
            max_tokens=min(limits.turn_tokens, self._tokens_left(), room),
            sampling=self.setting.agent.sampling,
            seconds=min(limits.turn_seconds, self._seconds_left()),
        )

    async def _complete(self, prompt: Prompt) -> Completion | StopReason:
        """One model call. A deadline that is the episode's own truncates; any other is the model's failure."""
        try:
            async with boundary(FailureKind.MODEL, self.setting.model, prompt.seconds):
                completion = await self.setting.policy.complete(prompt)
                check_completion(prompt, completion, self.setting.vocabulary)
        except BoundaryError as error:
            if isinstance(error.__cause__, ContextExceeded):
                return StopReason.CONTEXT
            if isinstance(error.__cause__, TimeoutError) and self._seconds_left() <= 0:
                return StopReason.TIMEOUT
            raise
        if completion.finish_reason is FinishReason.ABORT:
            failure = Failure(FailureKind.MODEL, completion.replica or self.setting.model, "the engine aborted")
            raise BoundaryError(failure)
        return completion

    def _cut(self, prompt: Prompt, completion: Completion) -> StopReason | None:
        """Which limit cut the completion, if one did."""
        if completion.finish_reason is not FinishReason.LENGTH:
            return None
        context = self.setting.context
        full = context is not None and len(prompt.ids) + prompt.max_tokens >= context
        return StopReason.CONTEXT if full else StopReason.MAX_TOKENS

    async def _act(self, seeded: Seeded, recorded: Recorded, tools: tuple[ToolSpec, ...], cut: bool) -> list[Message]:
        """Uses the turn's tools and keeps what they answered. What the policy is told next."""
        calls, implied = self._calls(recorded, seeded.text_tool, tools)
        self.snapshot = None
        if not calls:
            return []
        began = time.monotonic()
        seconds = max(0.1, min(self.setting.limits.tool_seconds, self._seconds_left()))
        if (used := self.record.used(len(self.turns) - 1)) is None:
            try:
                used = await use_tools(seeded.session, calls, [spec.name for spec in tools], seconds, cut)
            except asyncio.CancelledError:  # where the turn is kept all the same, so are its calls
                self.turns[-1] = replace(self.turns[-1], tool_uses=unanswered(calls))
                raise
        self.snapshot = used.snapshot
        self.tool_seconds += time.monotonic() - began
        self.turns[-1] = replace(self.turns[-1], tool_uses=used.uses)
        said = [_answer(use, implied) for use in used.uses]
        if used.broken is not None:
            self.messages += said
            raise used.broken
        return said

    def _calls(
        self, recorded: Recorded, text_tool: str | None, tools: tuple[ToolSpec, ...]
    ) -> tuple[tuple[ToolCall, ...], bool]:
        """The turn's calls; plain text is a call to the resource's text tool where the policy has it."""
        calls = tuple(part.call for part in recorded.segments if part.call is not None)
        spec = next((spec for spec in tools if spec.name == text_tool), None)
        if calls or spec is None:
            return calls, False
        argument = next(iter(spec.parameters["properties"]))
        text = json.dumps({argument: recorded.message["content"].strip()}, ensure_ascii=False)
        return (ToolCall(f"said_{len(self.turns) - 1}", spec.name, text),), True

    def _keep(self, recorded: Recorded, model_seconds: float) -> None:
        turn = Turn(
            agent=self.setting.agent.name,
            segment=recorded.segment,
            prompt_ids=recorded.prompt_ids,
            completion=recorded.completion,
            segments=recorded.segments,
            segment_break=recorded.segment_break,
            sampling=self.setting.agent.sampling,
            model_seconds=model_seconds,
        )
        self.turns.append(turn)

    def _save(self) -> None:
        """Hands the turn that has just ended over to be kept, or holds it against the record that it came from."""
        number = len(self.turns) - 1
        if number < len(self.record.turns):
            self.turns[-1] = self.record.checked(number, self.turns[-1])
        elif self.setting.keep is not None:
            opening = () if number else tuple(self.messages[: self.opening])
            self.setting.keep(self.lease.episode_id, number, Saved(self.turns[-1], self.snapshot, opening))

    def _ended(self) -> StopReason | None:
        uses = self.turns[-1].tool_uses
        if any(use.result.done for use in uses):
            return StopReason.ENVIRONMENT
        return None if uses else StopReason.DONE

    async def _verify(self, session: Session, stop: StopReason) -> Score:
        rewards = tuple(turn.reward for turn in self.turns if turn.reward is not None)
        transcript = Transcript(tuple(self.messages), stop, rewards, self.opening)
        seconds = self.setting.limits.verify_seconds
        began = time.monotonic()
        async with boundary(FailureKind.VERIFY, self.setting.resource, seconds + TRANSPORT_SECONDS):
            score = check_score(await session.verify(transcript, seconds))
        self.verify_seconds = time.monotonic() - began
        return score

    def _tokens_left(self) -> int:
        return self.setting.limits.max_tokens - sum(turn.completion.num_sampled for turn in self.turns)

    def _seconds_left(self) -> float:
        """Until the deadline, less what scoring and closing may take."""
        limits = self.setting.limits
        ends = self.began + limits.episode_seconds - limits.verify_seconds - limits.close_seconds
        return ends - time.monotonic()

    def _trajectory(
        self, stop: StopReason, score: Score | None, failure: Failure | None, dropped: str | None
    ) -> Trajectory:
        queue = sum(turn.completion.queue_seconds for turn in self.turns)
        model = sum(turn.model_seconds for turn in self.turns)
        restored = self.turns[: len(self.record.turns)]
        seconds = Seconds(
            queue=queue,
            model=max(0.0, model - queue),
            tool=self.tool_seconds,
            verify=self.verify_seconds,
            # What the model took for restored turns was spent by an earlier attempt, and belongs to the episode.
            total=time.monotonic() - self.began + sum(turn.model_seconds for turn in restored),
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
            drop_reason=dropped,
            restored_turns=len(restored) or None,
            seconds=seconds,
            started_at=self.started_at,
            finished_at=time.time(),
        )


def _answer(use: ToolUse, implied: bool) -> Message:
    """A result as the policy reads it: a tool message, or simply the next thing it is told."""
    if implied:
        return {"role": "user", "content": use.result.content}
    return {"role": "tool", "content": use.result.content, "tool_call_id": use.call.id, "name": use.call.name}
