"""Whether the tool calls of a turn are made: asked of all of them before any is.

    asked = await approvals.ask(rulings, about)   # everybody but people has decided; people have been asked
    ...                                           # asked.pending is what to wait for: a slot may be given away here
    ruled = await asked.ruled()                   # what becomes of every call

What an earlier attempt has had decided is not asked again: `recalled` gives it from the record.

Every call keeps exactly one result. A denied call has one that says so. A redirect and an end of the run deny the whole
turn; what the policy is told beside stands behind the results, so that call and result stay together. An approver that
breaks is a failure of the episode, never a denial: the policy did nothing to deserve one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar, cast, get_args

from rollout.agents.approval_queue import ApprovalQueue, Request
from rollout.agents.approval_section import ApprovalConfig, Approver
from rollout.agents.approvers import ApprovalPolicy
from rollout.agents.arguments import as_arguments
from rollout.agents.aside import Asks, Told
from rollout.agents.calling import asked
from rollout.agents.decisions import Approved, Decision, Denied, Modified, Redirected, Terminated, TimedOut
from rollout.agents.tool_rules import Ruling
from rollout.errors import UserError, boundary
from rollout.restoring import Diverged
from rollout.thread import DISK_SECONDS
from rollout.tool_use import skipped
from rollout.trajectory import Event, FailureKind, Message, ToolCall, ToolResult

T = TypeVar("T")
Word = Literal["approve", "deny", "modify", "redirect", "terminate", "timeout"]


@dataclass(frozen=True, slots=True)
class About:
    """Where the calls stand that are asked about."""

    episode_id: str
    turn: int
    agent: str = "agent"


@dataclass(frozen=True, slots=True)
class ApprovalEvent:
    """What was decided about one call, for the row."""

    call_id: str
    tool: str
    decision: Word
    approver: Approver
    reason: str
    """Of a denial or an end; the text of a redirect."""
    wait_s: float
    arguments: str | None = None
    """What the call was made with, where that is not what was sampled."""
    told: Told | None = None
    """What the model that was asked said, and what that took."""

    def event(self, turn: int) -> Event:
        """As it stands in the row."""
        detail = asdict(self)
        if self.told is None:
            del detail["told"]
        return Event(turn, "approval", detail.pop("tool"), detail, detail.pop("wait_s"))

    @staticmethod
    def of(event: Event) -> ApprovalEvent:
        """From what `event` gave. Raises Diverged for what it did not give."""
        detail: dict[str, Any] = {**event.detail, "tool": event.name, "wait_s": event.seconds}
        try:
            detail["told"] = Told(**detail["told"]) if detail.get("told") else None
            found = ApprovalEvent(**detail)
        except TypeError as error:
            raise Diverged(f"what was decided cannot be read: {error}") from error
        if found.decision not in get_args(Word):
            raise Diverged(f"what was decided cannot be read: {found.decision}")
        return found


@dataclass(frozen=True, slots=True)
class Ruled:
    """What becomes of a turn's calls."""

    rulings: tuple[Ruling, ...]
    """One a call: the call to make or the result it has without being made."""
    said: tuple[Message, ...] = ()
    """What the policy is told behind the results."""
    stop: Literal["approval_denied", "approval_timeout"] | None = None
    """Why the run ends behind them, if it does."""
    in_turn: bool = False
    """Somebody was asked: the calls are made one after another."""
    events: tuple[ApprovalEvent, ...] = ()
    waited: float = 0.0
    """Seconds that people took for it."""


@dataclass(frozen=True, slots=True)
class Approvals:
    """The approval policies of an agent."""

    policies: tuple[ApprovalPolicy, ...]
    timeout: float = 300.0
    on_timeout: Literal["deny", "abort"] = "deny"
    queue: ApprovalQueue | None = None
    model: Asks | None = None
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    @staticmethod
    def of(
        config: ApprovalConfig,
        queue: ApprovalQueue | None = None,
        model: Asks | None = None,
        should_interrupt: Callable[..., Any] | None = None,
        key: str = "agent.approval",
    ) -> Approvals | None:
        """With their functions loaded; None when nothing needs approval.

        `should_interrupt`, of an agent's hooks, is the first policy: what it flags, a person is asked. Raises UserError
        for an approver that has nobody to ask.
        """
        flagged = () if should_interrupt is None else (ApprovalPolicy(when=should_interrupt, approver="human"),)
        told = (ApprovalPolicy.of(one, f"{key}.policies.{place}") for place, one in enumerate(config.policies))
        policies = (*flagged, *told)
        for one in policies:
            if one.approver == "human" and queue is None:
                raise UserError(f"{key}: approver human: expected a folder for what waits for a person")
            if one.approver == "model" and model is None:
                raise UserError(f"{key}: approver model: expected a model to ask")
        return Approvals(policies, config.timeout, config.on_timeout, queue, model) if policies else None

    @property
    def by_people(self) -> bool:
        """Whether a person may be asked."""
        return any(one.approver == "human" for one in self.policies)

    def recalled(self, calls: Sequence[ToolCall], rulings: Sequence[Ruling], events: Sequence[ApprovalEvent]) -> Ruled:
        """What was decided when an earlier attempt asked about these calls. `rulings` have the results of those that
        are not to be made. Raises Diverged when it was about other calls."""
        left, ruled = list(events), list(rulings)
        for place, (call, ruling) in enumerate(zip(calls, rulings, strict=True)):
            if left and (left[0].call_id, left[0].tool) == (call.id, call.name):
                arguments = left.pop(0).arguments
                if arguments is not None and isinstance(ruling, ToolCall):
                    ruled[place] = replace(ruling, arguments=arguments)
        if left:
            raise Diverged(f"a call of {left[0].tool} was decided about, and is not made now")
        said, stop = self.follows([_decided(one) for one in events])
        return Ruled(tuple(ruled), said, stop, True, tuple(events))

    def follows(
        self, decided: Sequence[Decision | TimedOut | None]
    ) -> tuple[tuple[Message, ...], Literal["approval_denied", "approval_timeout"] | None]:
        """What the policy is told behind the results of a turn, and why the run ends, if it does."""
        texts = dict.fromkeys(one.text for one in decided if isinstance(one, Redirected))
        ending = [one for one in decided if self.ends(one)]
        if any(isinstance(one, Terminated) for one in ending):
            return (), "approval_denied"
        if any(isinstance(one, TimedOut) for one in ending):
            return (), "approval_timeout"
        return tuple({"role": "user", "content": text} for text in texts), None

    async def ask(self, rulings: Sequence[Ruling], about: About) -> Asked:
        """Asks about every call that is to be made. People are asked last, and not where the turn is denied already.

        Raises BoundaryError when a function, a model or the folder of requests breaks.
        """
        state = Asked(self, tuple(rulings))
        to_make = [(place, one) for place, one in enumerate(rulings) if isinstance(one, ToolCall)]
        found = await _all([self._policy(call) for _, call in to_make])
        for (place, call), policy in zip(to_make, found, strict=True):
            if isinstance(policy, ToolResult):
                state.refused[place] = policy
            elif policy is not None:
                request = Request.of(call, about.episode_id, about.turn, place, about.agent, self.wall())
                state.open[place] = _Open(call, policy, request)
        await _all([self._decide(one) for one in state.open.values() if one.policy.approver != "human"])
        if not state.denied:
            await _all([self._put(one) for one in state.open.values() if one.decided is None])
        return state

    async def _policy(self, call: ToolCall) -> ApprovalPolicy | ToolResult | None:
        """The first policy that fits; a result where the arguments cannot be judged."""
        for place, one in enumerate(self.policies):
            if not one.names(call.name):
                continue
            if (arguments := as_arguments(call.arguments)) is None:
                return skipped("the arguments of a tool call must be a JSON object")
            where = f"approval policy {place}"
            if one.when is None or await asked(one.when, (call.name, arguments), self.timeout, where):
                return one
        return None

    async def _decide(self, one: _Open) -> None:
        began = self.clock()
        one.decided, one.told = await one.policy.reply(one.request, self.model, self.timeout)
        one.waited = self.clock() - began

    async def _put(self, one: _Open) -> None:
        assert self.queue is not None, "people are asked through a queue"
        async with boundary(FailureKind.AGENT, "approval", DISK_SECONDS + 1):
            one.request = await self.queue.put(one.request)
        one.waits = True

    async def wait(self, one: _Open) -> None:
        """Waits for a person."""
        assert self.queue is not None, "people are asked through a queue"
        began = self.clock()
        async with boundary(FailureKind.AGENT, "approval", self.timeout + DISK_SECONDS + 1):
            one.decided = await self.queue.wait(one.request.id, self.timeout) or TimedOut(self.timeout)
        one.waited, one.waits = self.clock() - began, False

    def ends(self, decided: Decision | TimedOut | None) -> bool:
        """Whether no call of the turn is made after this decision about one of them."""
        return isinstance(decided, Redirected | Terminated) or (
            isinstance(decided, TimedOut) and self.on_timeout == "abort"
        )


@dataclass(slots=True)
class _Open:
    """A call that a policy fits."""

    call: ToolCall
    policy: ApprovalPolicy
    request: Request
    decided: Decision | TimedOut | None = None
    waits: bool = False
    """For a person."""
    waited: float = 0.0
    told: Told | None = None


@dataclass(slots=True)
class Asked:
    """A turn whose calls have been asked about."""

    approvals: Approvals
    rulings: tuple[Ruling, ...]
    open: dict[int, _Open] = field(default_factory=dict[int, _Open])
    refused: dict[int, ToolResult] = field(default_factory=dict[int, ToolResult])

    @property
    def pending(self) -> tuple[Request, ...]:
        """What waits for a person; empty when `ruled` answers at once."""
        return tuple(one.request for one in self.open.values() if one.waits)

    @property
    def denied(self) -> bool:
        """Whether no call of the turn is made, whatever else is decided."""
        return any(self.approvals.ends(one.decided) for one in self.open.values())

    async def ruled(self) -> Ruled:
        """Waits for people, each call up to the timeout, all at once. Raises BoundaryError when their folder breaks."""
        await _all([self.approvals.wait(one) for one in self.open.values() if one.waits])
        said, stop = self.approvals.follows([one.decided for one in self.open.values()])
        rulings = tuple(self._ruling(place, one) for place, one in enumerate(self.rulings))
        in_turn = any(one.policy.approver not in ("auto", "deny") for one in self.open.values())
        return Ruled(rulings, said, stop, in_turn, tuple(self._events()))

    def _ruling(self, place: int, ruling: Ruling) -> Ruling:
        if place in self.refused:
            return self.refused[place]
        if isinstance(ruling, ToolResult):
            return ruling
        one = self.open.get(place)
        if (why := _why_not(one.decided if one is not None else None)) is not None:
            return skipped(f"not approved{why}")
        if self.denied:
            return skipped("not executed: another call of this turn was not approved")
        if one is not None and isinstance(one.decided, Modified):
            return replace(ruling, arguments=one.decided.arguments)
        return ruling

    def _events(self) -> Iterator[ApprovalEvent]:
        for one in self.open.values():
            if one.decided is not None:
                word, reason = _named(one.decided)
                changed = one.decided.arguments if isinstance(one.decided, Modified) else None
                yield ApprovalEvent(
                    one.call.id, one.call.name, word, one.policy.approver, reason, one.waited, changed, one.told
                )


def _why_not(decided: Decision | TimedOut | None) -> str | None:
    """What the policy is told behind `not approved`; None for a call that may be made."""
    match decided:
        case Denied(reason) | Terminated(reason):
            return f": {reason}" if reason else ""
        case Redirected():
            return ""
        case TimedOut(seconds):
            return f": nobody decided within {seconds:g} s"
        case _:
            return None


def _named(decided: Decision | TimedOut) -> tuple[Word, str]:
    match decided:
        case Approved():
            return "approve", ""
        case Denied(reason):
            return "deny", reason
        case Modified():
            return "modify", ""
        case Redirected(text):
            return "redirect", text
        case Terminated(reason):
            return "terminate", reason
        case TimedOut():
            return "timeout", ""


def _decided(event: ApprovalEvent) -> Decision | TimedOut:
    """The decision that `_named` has named."""
    match event.decision:
        case "approve":
            return Approved()
        case "deny":
            return Denied(event.reason)
        case "modify":
            return Modified(event.arguments or "")
        case "redirect":
            return Redirected(event.reason)
        case "terminate":
            return Terminated(event.reason)
        case "timeout":
            return TimedOut(event.wait_s)


async def _all(work: Sequence[Awaitable[T]]) -> list[T]:
    """What all of them give. The first error is raised when all have ended, so that none goes on unseen."""
    ends = await asyncio.gather(*work, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return cast(list[T], ends)
