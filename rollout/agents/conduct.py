"""How an agent that is told more than instructions and tools goes about an episode: all of `Parts`, in order.

    before a call   budget -> before_llm_call -> a shorter view, where the conversation got long
    behind it       after_llm_call -> the form of the answer, guardrails on it; or the calls
    calls           guardrails on arguments -> handoffs -> approval -> tools, with hooks and guardrails around each
    at the end      on_error or on_complete, on_stop; whatever was opened is closed

What the policy is shown is `_view`, and the ledger follows it: as long as the view only grows the segment goes on, a
view that was rewritten begins another.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from rollout.agents.approval import About, ApprovalEvent, Ruled
from rollout.agents.child_runs import ChildRuns
from rollout.agents.children import Place
from rollout.agents.context import Plan, compacted, due, leading_system
from rollout.agents.guardrails import Block, Guarded, Pass, Retry
from rollout.agents.handoffs import Handoffs, Taken, conversation
from rollout.agents.hooks import Rewritten, compared
from rollout.agents.model_settings import FINAL_BODY, FINAL_MESSAGE, final_uses, next_call
from rollout.agents.parts import Parts
from rollout.agents.pipelines import PipelineConduct
from rollout.agents.pricing import Usage, spent
from rollout.agents.replies import tool_messages
from rollout.agents.role import Role, last_said, open_role
from rollout.agents.structured import Reading
from rollout.agents.tool_rules import PLAIN, Ruling, out_of_retries, unruled
from rollout.conduct import Acted, Conduct, Ended, Ready, Said, Sample, Then, acted
from rollout.early import EarlySession
from rollout.errors import BoundaryError, boundary, describe
from rollout.family import Family
from rollout.parking import Parking
from rollout.protocols import Ledger, Seeded
from rollout.streaming import Hears, both
from rollout.tool_use import refusal
from rollout.trajectory import (
    Agent,
    Event,
    Extras,
    FailureKind,
    Json,
    Lease,
    Message,
    StopReason,
    ToolSpec,
    ToolUse,
    Turn,
)

log = logging.getLogger(__name__)
_FILTER_SECONDS = 30.0
"""What a person's own history filter may take."""


@dataclass(slots=True)
class AgentConduct:
    """See Conduct."""

    parts: Parts
    lease: Lease
    parking: Parking = field(default_factory=Parking)
    """Where the episode's slot goes while a person is asked."""
    _seeded: Seeded | None = None
    _runs: ChildRuns | None = None
    """Those it may begin."""
    _roles: list[Role] = field(default_factory=list[Role])
    """All that were put to work; the last one is at it."""
    _view: list[Message] = field(default_factory=list[Message])
    """What the policy is shown."""
    _anew: str | None = None
    """Why the view does not go on from what the ledger has, where it does not."""
    _segments: int = 1
    _calls: int = 0
    """Model calls of this agent's run."""
    _final: bool = False
    """The next call is the last one: its tools are off."""
    _bare: bool = False
    """The call under way is no turn of the conversation: it has no tools."""
    _handoffs: Handoffs = field(default_factory=Handoffs)
    _text: str = ""
    """What the policy said last."""
    _answer: Json = None
    _stop: StopReason | None = None
    """Why nothing is asked at all."""
    _heard: bool = False
    """Guardrails were asked of what was said before it was told."""
    _events: list[Event] = field(default_factory=list[Event])
    _untrained: set[int] = field(default_factory=set[int])
    _usd: float | None = 0.0
    """What approvers that are models cost; None where one's cost is not known."""
    _early: EarlySession | None = None
    """Where calls begin while the policy still samples."""

    @property
    def agent(self) -> Agent:
        """See Conduct."""
        return self._role.parts.agent if self._roles else self.parts.agent

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """See Conduct."""
        return () if self._bare else self._role.tools

    async def open(self, seeded: Seeded, family: Family) -> tuple[Message, ...]:
        """See Conduct. Asks the guardrails on the input."""
        self._seeded = seeded = self._begins_early(seeded)
        self._runs = ChildRuns(family, seeded, conduct_of, self.parts.budget, Place(len(self.lease.path)))
        if self.parts.team is not None:
            self._handoffs = Handoffs(self.parts.team.max_handoffs, self.parts.team.follow)
        role = await self._enter(self.parts)
        return (*role.system, *await self._admitted(role.opening))

    async def prepare(
        self, ledger: Ledger, said: Sequence[Message], turns: Sequence[Turn], sample: Sample
    ) -> Ready | StopReason:
        """See Conduct."""
        if (stop := self._stop or self._spent()) is not None:
            return stop
        if self._anew is None:
            self._view += said
        more = await self._hooked(len(turns))
        if self._anew is not None:
            self._begin(ledger)
        else:
            ledger.extend([*said, *more], self.tools)
        if (stop := await self._shorten(ledger, turns, sample)) is not None:
            return stop
        return Ready(self._extras(), more, self._hears(len(turns)))

    async def act(self, said: Said, turns: Sequence[Turn], seconds: float, cut: bool) -> Acted:
        """See Conduct."""
        telling = self._role.telling
        step = await self._acted(said, turns, seconds, cut)
        if telling is not None:
            for use in step.uses:
                telling.result(use)
        return step

    async def _acted(self, said: Said, turns: Sequence[Turn], seconds: float, cut: bool) -> Acted:
        role, number, calls = self._role, len(turns) - 1, said.calls
        message = said.recorded.message
        self._calls += 1
        self._view.append(message)
        if role.telling is not None:
            if calls:  # what is said beside calls nobody judges
                role.telling.release()
            await role.telling.settle()
        self._text = turns[-1].text
        if not role.parts.trainable:
            self._untrained.add(number)
        if role.parts.hooks is not None:
            await role.parts.hooks.observe("after_llm_call", self._calls, message)
        if cut:
            under_way = self._early.under_way(calls) if self._early is not None else ()
            rulings = [refusal(call, role.allowed, call.id not in under_way) or call for call in calls]
            used = await role.box.use(self._open.session, calls, role.allowed, seconds, cut, rulings)
            return acted(used, said.implied)
        if role.parsing is not None and (reading := role.parsing.read(number, self._text, calls)) is not None:
            return self._next(await self._formed(reading, number))
        if not calls:
            step = self._next(await self._judged(self._text, None, StopReason.DONE, number))
            if step.stop is StopReason.DONE:  # what a person says next is another run's
                self._calls, self._final = 0, False
            return step
        if self._final:
            uses = final_uses(calls)
            return Acted(uses, tool_messages(uses), StopReason.MAX_TURNS)
        return self._next(await self._use(said, turns, seconds))

    async def end(self, stop: StopReason, failed: BoundaryError | None) -> Ended:
        """See Conduct. Raises BoundaryError when a hook breaks that is to fail the episode."""
        roles, self._roles = self._roles, self._roles[-1:]
        tellings = [role.telling for role in roles if role.telling is not None]
        try:
            if failed is None and stop is not StopReason.FAILED:
                for telling in tellings:
                    await telling.settle()
            if roles and (hooks := roles[-1].parts.hooks) is not None:
                if failed is not None:
                    await hooks.observe("on_error", failed.failure)
                elif stop is not StopReason.FAILED:  # else it is broken off
                    await hooks.observe("on_complete", self._text if self._answer is None else self._answer)
                await hooks.observe("on_stop", stop.value)
        finally:
            for telling in tellings:
                await telling.stop()
            if self._early is not None:
                self._events += await self._early.settle()
            for closed in await asyncio.gather(*(role.box.close() for role in roles), return_exceptions=True):
                if closed is not None:  # what is not closed must not cost the episode
                    log.warning("tools of %s were not closed: %s", self.agent.name, describe(closed))
        parsings = [role.parsing for role in roles if role.parsing is not None]
        untrained = self._untrained.union(*(parsing.untrained_turns for parsing in parsings))
        penalty = sum(parsing.penalty for parsing in parsings)
        return Ended(self._answer, tuple(self._events), penalty, frozenset(untrained), self._usd)

    # -- before a call

    def _spent(self) -> StopReason | None:
        """Of the whole episode: other runs of it spend from the same budget."""
        budget, runs = self.parts.budget, self._runs
        if budget is None or budget.episode_usd is None or runs is None:
            return None
        used = budget.used(runs.family.all_turns()) + Usage(known_usd=runs.family.all_beside_usd())
        return StopReason.COST if spent(used, budget.episode_usd) else None

    async def _hooked(self, turn: int) -> tuple[Message, ...]:
        """Lets `before_llm_call` see the view. What it adds to its end; a view that it rewrites begins anew."""
        if (hooks := self._role.parts.hooks) is None or not hooks.rewrites:
            return ()
        shown = await hooks.before_llm_call(self._calls + 1, self._view)
        change = compared(self._view, shown)
        self._view = shown
        if isinstance(change, Rewritten):
            self._anew = f"before_llm_call rewrote message {change.since}"
            self._happened(turn, "hook", "before_llm_call", {"since": change.since, "messages": list(change.messages)})
            return ()
        return change.messages

    async def _shorten(self, ledger: Ledger, turns: Sequence[Turn], sample: Sample) -> StopReason | None:
        """Shortens the view where it is due; why the episode ends, where that cannot be done."""
        shortening = self._role.parts.shortening
        if shortening is None or ("before_call" if self._calls else "run_start") not in shortening.at:
            return None
        tokens = len(ledger.prompt()[0]) or ledger.count(self._view, self.tools)
        plan = due(self._view, leading_system(self._view), tokens, shortening.rule, self._segments)
        if plan is None:
            return None
        summary = await self._summary(plan, ledger, turns, sample) if plan.rule.strategy == "summary" else None
        if isinstance(summary, StopReason):
            return summary
        made = compacted(plan, lambda view: ledger.count(view, self.tools), summary)
        if made is None:
            return StopReason.CONTEXT
        self._view, self._anew = list(made.view), f"compacted: {made.record.strategy}"
        self._happened(len(turns), "compaction", made.record.strategy, asdict(made.record))
        self._begin(ledger)
        return None

    async def _summary(self, plan: Plan, ledger: Ledger, turns: Sequence[Turn], sample: Sample) -> str | StopReason:
        """Has the policy sum up what gives way, in a segment of its own."""
        self._bare = True
        try:
            ledger.begin(plan.request, (), "summary")
            self._segments += 1
            recorded = await sample(Extras())
        finally:
            self._bare = False
        if isinstance(recorded, StopReason):
            return recorded
        shortening = self._role.parts.shortening
        if shortening is not None and not shortening.train_summaries:
            self._untrained.add(len(turns) - 1)
        return turns[-1].text

    def _begin(self, ledger: Ledger) -> None:
        ledger.begin(self._view, self.tools, self._anew or "")
        self._segments += 1
        self._anew = None

    def _begins_early(self, seeded: Seeded) -> Seeded:
        """The session as the agent's calls go to it."""
        parts, most = self.parts, self.parts.early
        if most is None:
            return seeded
        chosen = parts.agent.tools
        names = [spec.name for spec in seeded.tools if chosen is None or spec.name in chosen]
        self._early = EarlySession(seeded.session, lambda name: parts.rules.get(name, PLAIN).timeout or most, names)
        return replace(seeded, session=self._early)

    def _hears(self, turn: int) -> Hears | None:
        """Who listens to the next model call."""
        telling = self._role.telling
        told = telling.listens() if telling is not None else None
        early = self._early.listens(turn) if self._early is not None and not self._final else None
        if told is None or early is None:
            return early if told is None else told
        return both(early, told)

    def _extras(self) -> Extras:
        role, settings = self._role, self._role.parts.settings
        if role.parsing is None and not self._final:
            return role.parts.extras
        body, grammar = dict(settings.body), None
        if role.parsing is not None:
            asked = role.parsing.ask()
            body, grammar = {**body, **asked.body}, asked.structured_outputs
        if self._final and self.tools:
            body |= FINAL_BODY
        return Extras(body, settings.vllm, grammar, settings.max_tokens)

    # -- behind a call

    def _next(self, step: Acted) -> Acted:
        """The step, and what the number of model calls makes of it."""
        if step.stop is not None or step.broken is not None or self._anew is not None:
            return step
        parts = self._role.parts
        if parts.max_iterations is None:
            return step
        follows = next_call(self._calls, parts.max_iterations, "force_final" if parts.force_final else "stop")
        if follows == "stop":
            return replace(step, stop=StopReason.MAX_TURNS)
        if follows == "final":
            self._final = True
            return replace(step, said=(*step.said, FINAL_MESSAGE))
        return step

    async def _formed(self, reading: Reading, number: int) -> Acted:
        """An answer in its form, or another attempt at it."""
        role = self._role
        if len(reading.parsing.failed) > len(role.parsing.failed if role.parsing is not None else ()):
            wrong = reading.parsing.failed[-1]
            self._happened(number, "parse_error", "output", {"attempt": wrong.attempt, "errors": list(wrong.errors)})
        role.parsing = reading.parsing
        if reading.kind == "value":
            text = json.dumps(reading.value, ensure_ascii=False)
            step = await self._judged(text, reading.value, StopReason.DONE, number)
            return replace(step, uses=reading.uses, said=(*reading.messages, *step.said))
        stop = StopReason.PARSE_ERROR if reading.kind == "parse_error" else None
        return Acted(reading.uses, reading.messages, stop)

    async def _judged(self, text: str, value: Json, stop: StopReason, number: int) -> Acted:
        """What the guardrails make of an answer: `value`, where it is not simply the turn's text."""
        guarded = await self._check("output", text, number)
        self._tell_judged(guarded, text)
        match guarded.verdict if guarded is not None else None:
            case Block(reason):
                self._answer = reason
                return Acted(stop=StopReason.GUARDRAIL)
            case Retry(told):
                return Acted(said=({"role": "user", "content": told},))
            case _:
                changed = guarded is not None and guarded.value != text
                self._answer = guarded.value if guarded is not None and changed else value
                return Acted(stop=stop)

    def _tell_judged(self, guarded: Guarded | None, text: str) -> None:
        """Who listens is told what was held back until now, as far as guardrails let it pass."""
        if (telling := self._role.telling) is None or guarded is None:
            return
        if not isinstance(guarded.verdict, Pass):
            telling.instead(None)
        elif guarded.value != text:
            telling.instead(str(guarded.value))
        else:
            telling.release()

    async def _use(self, said: Said, turns: Sequence[Turn], seconds: float) -> Acted:
        """Makes a turn's calls, as far as nobody objects."""
        role, number = self._role, len(turns) - 1
        rulings: Sequence[Ruling] = unruled(said.calls, role.allowed, False)
        if role.parts.team is not None:
            taken = self._handoffs.take(role.parts.agent.name, role.parts.team.targets, said.calls)
            if taken.kind != "go_on":
                return await self._handed_over(taken, number)
            rulings = [ruling if use is None else use.result for ruling, use in zip(rulings, taken.uses, strict=True)]
        rulings = await role.gates.admitted(rulings)
        if said.then is not None:
            rulings = [_again(*one, said.then, role) for one in zip(rulings, said.then.uses, strict=True)]
        ruled = await self._approved(said, rulings, number)
        decided = tuple(event.event(number) for event in ruled.events)
        self._events += decided
        used = await role.box.use(
            self._open.session, said.calls, role.allowed, seconds, False, ruled.rulings, ruled.in_turn
        )
        self._record(role.gates.events, number)
        role.gates.events.clear()
        step = acted(used, said.implied)
        step = replace(step, said=(*step.said, *ruled.said), decided=decided, waited=ruled.waited)
        if step.stop is not None or step.broken is not None:
            return step
        if ruled.stop is not None:
            return replace(step, stop=StopReason(ruled.stop))
        if used.direct is not None:
            given = used.outputs[used.direct]
            judged = await self._judged(given, given, StopReason.RETURN_DIRECT, number)
            return replace(step, stop=judged.stop, said=(*step.said, *judged.said))
        if not role.parts.rules:
            return step
        uses = [use for turn in turns[:-1] for use in turn.tool_uses]
        if (name := out_of_retries([*uses, *used.uses], role.parts.rules)) is not None:
            self._happened(number, "tool_retries", name)
            return replace(step, stop=StopReason.TOOL_RETRIES)
        return step

    async def _approved(self, said: Said, rulings: Sequence[Ruling], number: int) -> Ruled:
        """What whoever is asked for approval makes of the calls. The slot is somebody else's while a person is."""
        approvals = self._role.parts.approvals
        if approvals is None:
            return Ruled(tuple(rulings))
        if said.then is not None:
            ruled = approvals.recalled(said.calls, rulings, [ApprovalEvent.of(one) for one in said.then.decided])
        else:
            asked = await approvals.ask(rulings, About(self.lease.episode_id, number, self.agent.name))
            if not asked.pending:
                ruled = await asked.ruled()
            else:
                began = time.monotonic()
                async with self.parking.away(self.lease.episode_id):
                    ruled = await asked.ruled()
                ruled = replace(ruled, waited=time.monotonic() - began)
        for told in (event.told for event in ruled.events if event.told is not None):
            self._usd = None if self._usd is None or told.usd is None else self._usd + told.usd
            if self._runs is not None:
                self._runs.family.beside_usd += told.usd or 0.0
        return ruled

    async def _handed_over(self, taken: Taken, number: int) -> Acted:
        """The turn handed over to another agent, which goes on in a segment of its own, or the run ends with that."""
        team, handoff = self._role.parts.team, taken.handoff
        assert team is not None and handoff is not None, "a handoff was taken"
        uses = tuple(use for use in taken.uses if use is not None)
        told = tool_messages(uses)
        self._handoffs = taken.state
        detail = {**asdict(handoff), "followed": taken.kind == "follow", "limited": taken.limited}
        self._happened(number, "handoff", handoff.target, detail)
        if taken.kind == "end":
            self._answer = handoff.message or None
            return Acted(uses, told, StopReason.HANDOFF)
        history, asked = [*self._view, *told], last_said(self._view)
        role = await self._enter(team.agents[handoff.target])
        async with boundary(FailureKind.AGENT, "history_filter", _FILTER_SECONDS):
            view = conversation(handoff, role.system, history, asked, team.kept)
        self._view, self._anew, self._calls = list(view), f"handoff to {handoff.target}", 0
        new = view[-1:] if view[-1]["role"] == "user" and view[-1] not in history else ()
        return Acted(uses, (*told, *role.system, *new))

    # -- all along

    @property
    def _role(self) -> Role:
        return self._roles[-1]

    @property
    def _open(self) -> Seeded:
        assert self._seeded is not None, "open comes first"
        return self._seeded

    async def _enter(self, parts: Parts) -> Role:
        earlier = next((role.instructions for role in self._roles if role.parts is parts), None)
        role = await open_role(parts, self.lease, self._open, earlier, self._runs)
        self._roles.append(role)
        return role

    async def _admitted(self, opening: Sequence[Message]) -> tuple[Message, ...]:
        """The opening as guardrails on the input leave it. One that blocks ends the run before any model call."""
        places = [place for place, message in enumerate(opening) if message["role"] == "user"]
        if not places or self._heard:
            return tuple(opening)
        place = places[-1]
        guarded = await self._check("input", opening[place]["content"], 0)
        if guarded is None:
            return tuple(opening)
        if isinstance(guarded.verdict, Block):
            self._answer, self._stop = guarded.verdict.reason, StopReason.GUARDRAIL
        changed = cast(Message, {**opening[place], "content": guarded.value})
        return (*opening[:place], changed, *opening[place + 1 :])

    async def admitted(self, words: Message, turn: int) -> Message | str:
        """See Admits. What is asked of here is not asked of again when the episode opens with it."""
        self._heard = True
        guarded = await self._check("input", words["content"], turn)
        if guarded is None:
            return words
        return guarded.verdict.reason if isinstance(guarded.verdict, Block) else {**words, "content": guarded.value}

    async def _check(self, on: Any, text: str, number: int) -> Guarded | None:
        """What the guardrails there say; None where there are none."""
        guardrails = (self._roles[-1].parts if self._roles else self.parts).guardrails
        if guardrails is None or not guardrails.on(on):
            return None
        guarded = await guardrails.check(on, text)
        self._record(guarded.events, number)
        return guarded

    def _record(self, events: Iterable[Any], number: int) -> None:
        """What guardrails did; that one let something pass is what happens nearly always, and told by the others."""
        for event in events:
            if event.decision != "pass":
                detail = asdict(event)
                self._happened(number, "guardrail", detail.pop("name"), detail, detail.pop("ms") / 1000)

    def _happened(
        self, turn: int, kind: str, name: str, detail: Mapping[str, Json] | None = None, seconds: float = 0.0
    ) -> None:
        self._events.append(Event(turn, kind, name, detail or {}, seconds))


def conduct_of(parts: Parts, lease: Lease, parking: Parking | None = None) -> Conduct:
    """How an agent goes about one attempt at an episode, or about a run in it, which has no slot of its own to park."""
    return (
        AgentConduct(parts, lease, parking or Parking())
        if parts.pipeline is None
        else PipelineConduct(parts, lease, conduct_of)
    )


def _again(ruling: Ruling, use: ToolUse, then: Then, role: Role) -> Ruling:
    """A call of a turn that was played before: only the environment's tools are called again, and only where its
    session is a fresh one. What functions did is done."""
    if use.result.skipped or not then.replays or role.box.owns(use.call.name):
        return use.result
    return ruling
