"""The tool calls of one turn where an agent has more than its resource's tools, or its own rules for them.

A ToolBox stands where `rollout.tool_use.use_tools` does and keeps to the same: exactly one result a call, in the order
of the calls; what the policy did wrong is told to it, what broke outside is `broken`.

Calls run at once when there are two or more, none of them is of a tool that may end the turn (`return_direct`), and the
agent hands over to nobody; otherwise one after another, as any of them may be the last. Calls that are then not made
have a result that says so. A tool with `sequential` is a barrier: it runs alone, behind what was asked for before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rollout.agents.tool_rules import PLAIN, Ruling, ToolRule, unruled
from rollout.agents.toolset import ToolSet
from rollout.agents.trimming import trimmed
from rollout.errors import BoundaryError, UserError, boundary, nearest
from rollout.protocols import Session
from rollout.tool_use import TRANSPORT_SECONDS, ToolsUsed, skipped, sound
from rollout.trajectory import Failure, FailureKind, ToolCall, ToolResult, ToolSpec, ToolUse

_LEAST_SECONDS = 0.1
_CLOSE_SECONDS = 10.0
"""What closing a tool set may take."""


class Around(Protocol):
    """What is told of every call that is made, and may change what the policy reads of it."""

    async def before(self, call: ToolCall) -> None:
        """The call is about to be made: where several run at once, told of all of them before any begins."""
        ...

    async def after(self, call: ToolCall, result: ToolResult) -> ToolResult:
        """The call has its result, whole: what is returned is trimmed and told. In the order of the calls."""
        ...


@dataclass(frozen=True, slots=True)
class BoxUsed(ToolsUsed):
    """What became of a turn's calls, and whether one of them ends the run."""

    direct: int | None = None
    """Place of the call whose result is the agent's answer."""
    handoff: int | None = None
    """Place of the call that hands over to another agent."""
    outputs: tuple[str, ...] = ()
    """What each call gave, before anything of it was left out."""


@dataclass(frozen=True, slots=True)
class ToolBox:
    """Several tool sets behind one router. One box serves any number of turns and episodes, as far as its sets do."""

    sets: tuple[ToolSet, ...] = ()
    rules: Mapping[str, ToolRule] = field(default_factory=dict[str, ToolRule])
    handoffs: frozenset[str] = frozenset()
    """Tools that hand over to another agent: one that answers without an error ends the turn."""
    parallel: bool = True
    max_concurrency: int = 0
    """Calls of a turn at once at most; 0 is all."""
    max_output: int = 0
    """Characters of a result that the policy reads, where the tool's rule says nothing; 0 is all."""
    around: Around | None = None
    told: Callable[[ToolUse], None] | None = None
    """Is told of every result as soon as it is there, as the tool gave it."""
    clock: Callable[[], float] = time.monotonic

    def specs(self, resource: Sequence[ToolSpec]) -> tuple[ToolSpec, ...]:
        """The resource's tools and behind them those of the sets.

        Raises UserError when two have one name, and for a rule of a tool that there is not.
        """
        specs = (*resource, *(spec for one in self.sets for spec in one.specs))
        names = [spec.name for spec in specs]
        if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
            raise UserError(f"agent.tools: '{twice}' is the name of two tools; expected a name for each")
        if unknown := next((name for name in self.rules if name not in names), None):
            raise UserError(f"agent.tools: there is no tool '{unknown}'{nearest(unknown, names)}")
        return specs

    async def use(
        self,
        session: Session,
        calls: Sequence[ToolCall],
        allowed: Sequence[str],
        seconds: float,
        cut: bool,
        rulings: Sequence[Ruling] | None = None,
        in_turn: bool = False,
        left: float | None = None,
    ) -> BoxUsed:
        """Makes the calls of a turn, each within `seconds`, all within `left`; none when the completion was `cut`.

        `rulings`, one a call, say what guardrails and approval made of them; `in_turn` makes them one after another.
        A function around a call that breaks ends the turn like a call that does.
        """
        ruled = tuple(rulings) if rulings is not None else unruled(calls, allowed, cut)
        ends = None if left is None else self.clock() + left
        batch = _Batch(self, session, tuple(calls), ruled, seconds, ends)
        if in_turn or not self._at_once(ruled):
            await batch.one_by_one()
        else:
            await batch.at_once()
        return batch.used()

    async def close(self) -> None:
        """Closes the sets, all of them whatever one of them raises."""
        ends = await asyncio.gather(*(_closed(one) for one in self.sets), return_exceptions=True)
        if raised := next((end for end in ends if end is not None), None):
            raise raised

    def owns(self, name: str) -> bool:
        """Whether a set of the box has the tool, and not the resource."""
        return any(spec.name == name for one in self.sets for spec in one.specs)

    def rule_of(self, name: str) -> ToolRule:
        """How the tool is used."""
        return self.rules.get(name, PLAIN)

    def _at_once(self, rulings: Sequence[Ruling]) -> bool:
        direct = any(isinstance(one, ToolCall) and self.rule_of(one.name).return_direct for one in rulings)
        return self.parallel and len(rulings) >= 2 and not direct and not self.handoffs


@dataclass(slots=True)
class _Batch:
    box: ToolBox
    session: Session
    calls: tuple[ToolCall, ...]
    rulings: tuple[Ruling, ...]
    seconds: float
    ends: float | None
    """By the box's clock."""
    results: dict[int, ToolResult] = field(default_factory=dict[int, ToolResult])
    outputs: dict[int, str] = field(default_factory=dict[int, str])
    broken: dict[int, BoundaryError] = field(default_factory=dict[int, BoundaryError])
    snapshots: list[bytes] = field(default_factory=list[bytes])
    direct: int | None = None
    handoff: int | None = None

    def __post_init__(self) -> None:
        self.results = {place: one for place, one in enumerate(self.rulings) if isinstance(one, ToolResult)}

    def to_make(self) -> Iterator[tuple[int, ToolCall]]:
        for place, one in enumerate(self.rulings):
            if isinstance(one, ToolCall):
                yield place, one

    async def one_by_one(self) -> None:
        """Each call behind the one before it, until one of them is the last."""
        for place, call in self.to_make():
            await self._before(place, call)
            if not self.broken:
                await self._make(place, call)
                await self._after(place, call)
            result = self.results[place]
            if result.error is None and call.name in self.box.handoffs:
                self.handoff = place
                self._skip(f"{call.name} handed over")
            elif result.error is None and self.box.rule_of(call.name).return_direct:
                self.direct = place
                self._skip(f"{call.name} gave the answer")
            if self._over():
                break

    async def at_once(self) -> None:
        """All calls between two barriers together."""
        made = list(self.to_make())
        for place, call in made:
            await self._before(place, call)
            if self._over():
                return
        limit = asyncio.Semaphore(self.box.max_concurrency or max(1, len(made)))
        for wave in self._waves(made):
            running = [self._limited(limit, place, call) for place, call in wave]
            raised = await asyncio.gather(*running, return_exceptions=True)
            if error := next((one for one in raised if one is not None), None):
                raise error
            if self._over():
                break
        for place, call in made:
            if place in self.outputs:
                await self._after(place, call)

    def used(self) -> BoxUsed:
        uses = tuple(ToolUse(call, self.results[place]) for place, call in enumerate(self.calls))
        first = min(self.broken, default=None)
        return BoxUsed(
            uses,
            None if first is None else self.broken[first],
            self.snapshots[-1] if self.snapshots else None,
            self.direct,
            self.handoff,
            tuple(self.outputs.get(place, use.result.content) for place, use in enumerate(uses)),
        )

    def _waves(self, made: Sequence[tuple[int, ToolCall]]) -> Iterator[list[tuple[int, ToolCall]]]:
        wave: list[tuple[int, ToolCall]] = []
        for place, call in made:
            alone = self.box.rule_of(call.name).sequential
            if wave and (alone or self.box.rule_of(wave[-1][1].name).sequential):
                yield wave
                wave = []
            wave.append((place, call))
        if wave:
            yield wave

    def _over(self) -> bool:
        """True when nothing is to be called any more; what is left has its results then."""
        if self.broken:
            self._skip("another call of this turn broke")
        elif any(result.done for result in self.results.values()):
            self._skip("the environment has ended")
        elif self.ends is not None and self.box.clock() >= self.ends:
            self._skip("the time of the episode is up")
        return len(self.results) == len(self.calls)

    def _skip(self, why: str) -> None:
        for place, _ in self.to_make():
            self.results.setdefault(place, skipped(f"not executed: {why}"))

    async def _limited(self, limit: asyncio.Semaphore, place: int, call: ToolCall) -> None:
        async with limit:
            await self._make(place, call)

    async def _make(self, place: int, call: ToolCall) -> None:
        allowed = self.box.rule_of(call.name)
        seconds = self.seconds if allowed.timeout is None else allowed.timeout
        if self.ends is not None:
            seconds = max(_LEAST_SECONDS, min(seconds, self.ends - self.box.clock()))
        try:
            async with boundary(FailureKind.TOOL, call.name, seconds + TRANSPORT_SECONDS):
                result = sound(await self._called(call, seconds))
            if result.crashed and allowed.on_error == "infra_error":
                raise BoundaryError(Failure(FailureKind.TOOL, call.name, result.error or "it crashed"))
        except BoundaryError as error:
            result, self.broken[place] = ToolResult("", error=str(error)), error
        self.results[place], self.outputs[place] = result, result.content
        if self.box.told is not None:
            self.box.told(ToolUse(call, result))

    async def _called(self, call: ToolCall, seconds: float) -> ToolResult:
        for one in self.box.sets:
            if any(spec.name == call.name for spec in one.specs):
                return await one.call(call, seconds)
        result, snapshot = await self.session.call(call, seconds)
        if snapshot is not None:
            self.snapshots.append(snapshot)
        return result

    async def _before(self, place: int, call: ToolCall) -> None:
        if self.box.around is None:
            return
        try:
            await self.box.around.before(call)
        except BoundaryError as error:
            self.results[place], self.broken[place] = ToolResult("", error=str(error)), error

    async def _after(self, place: int, call: ToolCall) -> None:
        result = self.results[place]
        if self.box.around is not None and place not in self.broken:
            try:
                result = await self.box.around.after(call, result)
            except BoundaryError as error:
                self.broken[place] = error
        self.outputs[place] = result.content
        limit = self.box.rule_of(call.name).max_output
        content = trimmed(result.content, self.box.max_output if limit is None else limit)
        self.results[place] = result if content == result.content else replace(result, content=content)


def _closed(one: ToolSet) -> Awaitable[None]:
    return asyncio.wait_for(one.close(), _CLOSE_SECONDS)
