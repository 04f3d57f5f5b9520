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
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from rollout import logs
from rollout.conduct import NOTHING, Acted, Conduct, Ended, Ready, Said, answer, penalized, plain
from rollout.errors import BoundaryError, ContextExceeded, NotRestored, UserError, boundary
from rollout.family import ABANDONED, Child, Family, LentSessions
from rollout.lifetime import opened
from rollout.programs import Played, Program, Programs
from rollout.protocols import Ledger, Placing, Policy, Recorded, Seeded, Session, Sessions
from rollout.restoring import Diverged, Record
from rollout.saved import Saved
from rollout.serving.hints import HintsConfig, episode_hints, vllm_priority
from rollout.soundness import check_completion, check_score
from rollout.stream_reading import MessageReader
from rollout.streaming import Hearing, Hears, Reader, sampled
from rollout.tool_use import TRANSPORT_SECONDS, skipped, unanswered
from rollout.trajectory import (
    Agent,
    Completion,
    Event,
    Extras,
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
    ToolSpec,
    ToolUse,
    Trajectory,
    Transcript,
    Turn,
)

log = logging.getLogger(__name__)

HINTS = HintsConfig()
"""How far the loop's own hints are followed."""


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
    conduct: Callable[[Agent, Lease], Conduct] = plain
    """How the agent goes about an episode."""
    priced: Callable[[Sequence[Turn]], float | None] | None = None
    """What model calls cost, in USD; None where that is not known."""
    patience: float = 0.0
    """Seconds that people may take over an episode, beside its own; 0 where nobody is asked."""
    closes: Callable[[], Awaitable[None]] | None = None
    """Frees what the agent's episodes share; all settings of a job share one agent. Idempotent."""
    new_reader: Callable[[int, Sequence[ToolSpec]], Reader] = MessageReader
    """Reads a turn while it is sampled, for whoever listens."""
    program: Programs | None = None
    """The program that makes the model calls; None where the agent is played here."""


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
    above: Family | None = None
    """The run that began this one; None for a sample of the job."""
    messages: list[Message] = field(default_factory=list[Message])
    opening: int = 0
    turns: list[Turn] = field(default_factory=list[Turn])
    conduct: Conduct = field(init=False)
    family: Family = field(init=False)
    left: Ended = NOTHING
    """What the agent leaves behind, once it has ended."""
    snapshot: bytes | None = None
    """The session's state after the last turn's tools, of resources that give one."""
    full: bool = False
    """The last call had all the room that the model has."""
    decided: tuple[Event, ...] = ()
    """What somebody decided about the last turn's calls."""
    program: Program | None = None
    played: Played | None = None
    """What the program has done, once it has ended."""
    tool_seconds: float = 0.0
    verify_seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.conduct = self.setting.conduct(self.setting.agent, self.lease)
        self.family = Family(self.setting.limits, self.turns, self.began, self._begin, self.above)

    async def play(self) -> Trajectory:
        score: Score | None = None
        broken: BoundaryError | None = None
        dropped: str | None = None
        stop = StopReason.FAILED
        setting, snapshot = self.setting, self.record.snapshot
        program = nullcontext() if setting.program is None else setting.program(self.lease)
        patient = replace(setting.limits, episode_seconds=setting.limits.episode_seconds + setting.patience)
        try:
            async with (
                opened(setting.sessions, self.lease, patient, setting.resource, snapshot) as seeded,
                program as self.program,
            ):
                self.tool_seconds = time.monotonic() - self.began
                try:
                    stop = await self._converse(seeded)
                except BoundaryError as error:
                    broken = error
                    raise
                finally:
                    if isinstance(setting.policy, Placing):
                        setting.policy.closed(self.lease.episode_id)
                    ended = await self.conduct.end(stop, broken)
                    self.left = ended if self.played is None else self.played.ended
                score = await self._verify(seeded.session, stop)
        except BoundaryError as error:
            if isinstance(error.__cause__, NotRestored):
                raise Diverged(error.failure.message) from error
            broken, stop = error, StopReason.FAILED
        except asyncio.CancelledError:
            reason = self.drops.get(self.lease.sample_id, None if self.above is None else ABANDONED)
            if reason is None:
                raise
            if score is None:  # else it had ended, only its session was still being closed
                dropped, stop = reason, StopReason.DROPPED
        return self._trajectory(stop, score, broken.failure if broken is not None else None, dropped)

    async def _begin(self, child: Child) -> Trajectory:
        """See Family.begin. A child that is cancelled is dropped, and on the record all the same."""
        lease = child.lease(self.lease)
        setting = replace(
            self.setting,
            agent=child.agent,
            conduct=child.conduct,
            limits=child.limits,
            sessions=LentSessions(child.seeded),
            restores=None,
            keep=None,
        )
        episode = _Episode(lease, setting, Record(), self.drops, self.family)
        episode.family.turn = max(0, len(self.turns) - 1)
        self.family.below.append(episode.family)
        with logs.within((lease.run_id, lease.episode_id, lease.attempt, 0)):
            episode.family.played = played = await episode.play()
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError  # the child took note of it; it is meant for whoever waits for it, too
        return played

    async def _converse(self, seeded: Seeded) -> StopReason:
        if self.program is not None:
            return await self._run(self.program, seeded)
        conduct, ledger = self.conduct, self.setting.new_ledger()
        said = await conduct.open(seeded, self.family)
        self.opening = len(said)
        while True:
            self.messages += said
            if (stop := self._spent()) is not None:
                return stop
            ready = await self._prepare(ledger, said)
            if isinstance(ready, StopReason):
                return ready
            self.messages += ready.said
            recorded = await self._sample(ledger, ready.extras, ready.hears)
            if isinstance(recorded, StopReason):
                return recorded
            cut = self._cut(recorded)
            step = await self._act(Said.of(recorded, seeded.text_tool, conduct.tools, len(self.turns) - 1), cut)
            self._save()
            if (stop := cut or step.stop) is not None:
                self.messages += step.said
                return stop
            said = step.said

    async def _run(self, program: Program, seeded: Seeded) -> StopReason:
        """The program's turns instead of those played here."""
        self.messages, self.opening = list(seeded.messages), len(seeded.messages)
        try:
            return await program.play(seeded, self._seconds_left())
        finally:
            self.played = played = program.played()
            self.turns[:], self.tool_seconds = played.turns, self.tool_seconds + played.tool_seconds
            if played.turns:
                self.messages, self.opening = list(played.messages), played.opening

    def _spent(self) -> StopReason | None:
        limits = self.setting.limits
        if len(self.turns) >= limits.max_turns:
            return StopReason.MAX_TURNS
        if self._tokens_left() <= 0:
            return StopReason.MAX_TOKENS
        return StopReason.TIMEOUT if self._seconds_left() <= 0 else None

    async def _prepare(self, ledger: Ledger, said: Sequence[Message]) -> Ready | StopReason:
        try:
            return await self.conduct.prepare(ledger, said, self.turns, partial(self._aside, ledger))
        except UserError as error:
            if self.turns:
                raise  # the template cannot continue at all, whatever is said
            raise BoundaryError(Failure(FailureKind.SEED, "chat template", str(error))) from error

    async def _sample(self, ledger: Ledger, extras: Extras, hears: Hears | None = None) -> Recorded | StopReason:
        """One model call, recorded and kept as a turn; why there is none, if there is none."""
        if self._tokens_left() <= 0:  # other runs of the episode may have spent them meanwhile
            return StopReason.MAX_TOKENS
        if (prompt := self._prompt(ledger, extras)) is None:
            return StopReason.CONTEXT
        logs.turn(len(self.turns))
        began = time.monotonic()
        hearing = None
        if (completion := self.record.completion(prompt)) is None:
            hearing = None if hears is None else Hearing(self.setting.new_reader(prompt.turn, prompt.tools), hears)
            completion = await self._complete(prompt, hearing)
        if isinstance(completion, StopReason):
            return completion
        recorded = ledger.record(completion)
        if hearing is not None:
            hearing.end(prompt.turn, recorded)
        self.messages.append(recorded.message)
        self._keep(recorded, prompt, time.monotonic() - began)
        log.debug("%s after %d tokens", completion.finish_reason, completion.num_sampled)
        return recorded

    async def _aside(self, ledger: Ledger, extras: Extras) -> Recorded | StopReason:
        """A model call beside the conversation, which has no tools: what is called in it all the same is not run."""
        recorded = await self._sample(ledger, extras)
        if not isinstance(recorded, StopReason) and (calls := Said.of(recorded, None, (), 0).calls):
            uses = tuple(ToolUse(call, skipped("there are no tools here")) for call in calls)
            self.turns[-1] = replace(self.turns[-1], tool_uses=uses)
            self.messages += [answer(use) for use in uses]
        return recorded

    def _prompt(self, ledger: Ledger, extras: Extras) -> Prompt | None:
        """The next model call; None when it does not fit the model."""
        ids, messages = ledger.prompt()
        limits, context = self.setting.limits, self.setting.context
        most = limits.turn_tokens if extras.max_tokens is None else min(limits.turn_tokens, extras.max_tokens)
        room = most if context is None else context - len(ids)
        if room <= 0:
            return None
        return Prompt(
            request_id=f"{self.lease.episode_id}.{self.lease.attempt}.{len(self.turns)}",
            session_id=self.lease.episode_id,
            turn=len(self.turns),
            ids=ids,
            messages=messages,
            tools=self.conduct.tools,
            max_tokens=min(most, self._tokens_left(), room),
            sampling=self.conduct.agent.sampling,
            seconds=min(limits.turn_seconds, self._seconds_left()),
            extras=extras,
            group=self.lease.group_id,
            priority=self._priority(),
        )

    def _priority(self) -> int:
        """That of the next call: late turns first, of long episodes more so."""
        lease, turn = self.lease, len(self.turns)
        return vllm_priority(episode_hints(lease.episode_id, turn, 0, lease.longer, 1.0), HINTS)

    async def _complete(self, prompt: Prompt, hearing: Hearing | None) -> Completion | StopReason:
        """One model call. A deadline that is the episode's own truncates; any other is the model's failure."""
        try:
            async with boundary(FailureKind.MODEL, self.setting.model, prompt.seconds):
                heard = hearing.heard if hearing is not None else None
                completion = await sampled(self.setting.policy, prompt, heard)
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

    def _cut(self, recorded: Recorded) -> StopReason | None:
        """Which limit cut the completion, if one did."""
        if recorded.completion.finish_reason is not FinishReason.LENGTH:
            return None
        return StopReason.CONTEXT if self.full else StopReason.MAX_TOKENS

    async def _act(self, said: Said, cut: StopReason | None) -> Acted:
        """Acts on the turn and keeps what its tools answered."""
        self.snapshot, self.decided = None, ()
        began = time.monotonic()
        seconds = max(0.1, min(self.setting.limits.tool_seconds, self._seconds_left()))
        if (then := self.record.then(len(self.turns) - 1)) is not None:
            said = replace(said, then=then)
        elif said.calls and self.setting.patience:  # whoever is asked may take longer than this process lives
            self._hand_over(answered=False)
        try:
            step = await self.conduct.act(said, self.turns, seconds, cut is not None)
        except (asyncio.CancelledError, BoundaryError):  # the turn stays, and with it its calls
            self.turns[-1] = replace(self.turns[-1], tool_uses=unanswered(said.calls))
            raise
        self.snapshot, self.decided = step.snapshot, step.decided
        self.family.waited += step.waited
        if step.uses:
            self.tool_seconds += time.monotonic() - began - step.waited
            self.turns[-1] = replace(self.turns[-1], tool_uses=step.uses)
        if step.broken is not None:
            self.messages += step.said
            raise step.broken
        return step

    def _keep(self, recorded: Recorded, prompt: Prompt, model_seconds: float) -> None:
        context = self.setting.context
        self.full = context is not None and len(prompt.ids) + prompt.max_tokens >= context
        turn = Turn(
            agent=self.conduct.agent.name,
            segment=recorded.segment,
            prompt_ids=recorded.prompt_ids,
            completion=recorded.completion,
            segments=recorded.segments,
            segment_break=recorded.segment_break,
            sampling=prompt.sampling,
            model_seconds=model_seconds,
            constrained=prompt.extras.grammar is not None,
        )
        self.turns.append(turn)

    def _save(self) -> None:
        """Hands the turn that has just ended over to be kept, or holds it against the record that it came from."""
        number = len(self.turns) - 1
        if number < len(self.record.turns):
            self.turns[-1] = self.record.checked(number, self.turns[-1])
            if self.record.turns[number].answered:
                return
        self._hand_over(answered=True)

    def _hand_over(self, answered: bool) -> None:
        """The last turn, to be kept, or to be kept in place of the same turn without its answers."""
        if self.setting.keep is not None:
            number = len(self.turns) - 1
            opening = () if number else tuple(self.messages[: self.opening])
            saved = Saved(self.turns[-1], self.snapshot, opening, self.decided, answered)
            self.setting.keep(self.lease.episode_id, number, saved)

    async def _verify(self, session: Session, stop: StopReason) -> Score:
        rewards = tuple(turn.reward for turn in self.turns if turn.reward is not None)
        transcript = Transcript(tuple(self.messages), stop, rewards, self.opening, self.left.answer)
        if (played := self.played) is not None:
            transcript = replace(transcript, rewards=played.rewards, workspace=played.workspace)
        seconds = self.setting.limits.verify_seconds
        began = time.monotonic()
        async with boundary(FailureKind.VERIFY, self.setting.resource, seconds + TRANSPORT_SECONDS):
            score = check_score(await session.verify(transcript, seconds))
        self.verify_seconds = time.monotonic() - began
        return penalized(score, self.left.penalty)

    def _tokens_left(self) -> int:
        return self.family.tokens_left

    def _seconds_left(self) -> float:
        """Until the deadline, less what scoring and closing may take."""
        limits = self.setting.limits
        ends = self.began + self.family.waited + limits.episode_seconds - limits.verify_seconds - limits.close_seconds
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
        # A child's are settled with those of the whole episode.
        score, children = self.family.settled(score) if self.above is None else (score, ())
        return Trajectory(
            lease=self.lease,
            resource=self.setting.resource,
            agent=self.setting.agent.name,
            model=self.setting.model,
            messages=tuple(self.messages),
            turns=self._marked(),
            stop_reason=stop,
            score=score,
            failure=failure,
            drop_reason=dropped,
            restored_turns=len(restored) or None,
            seconds=seconds,
            started_at=self.started_at,
            finished_at=time.time(),
            answer=self.left.answer,
            events=self._events(),
            cost=self._cost(),
            children=children,
        )

    def _events(self) -> tuple[Event, ...]:
        """What the agent's parts did, and the runs that it began."""
        return tuple(sorted((*self.left.events, *self.family.events()), key=lambda event: event.turn))

    def _cost(self) -> float | None:
        """What the episode's model calls cost, those beside its turns included."""
        usd = self.setting.priced(self.turns) if self.setting.priced is not None else None
        return None if usd is None or self.left.usd is None else usd + self.left.usd

    def _marked(self) -> tuple[Turn, ...]:
        """The turns, those marked that are not to be trained on."""
        untrained = self.left.untrained
        if not untrained:
            return tuple(self.turns)
        return tuple(replace(turn, trainable=number not in untrained) for number, turn in enumerate(self.turns))
