"""A person talks with an agent: the turn loop as it is, around a conduct that asks the person where the agent is done.

What the person says are messages like any others; what the agent does is an ordinary trajectory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from rollout.agents.replies import tool_messages
from rollout.conduct import Acted, Conduct, Ended, Ready, Said, Sample
from rollout.errors import BoundaryError
from rollout.family import Family
from rollout.protocols import Ledger, Seeded
from rollout.streaming import CallResult, HeardSession, Hears, SegmentDone, StreamEvent, TextDelta, both
from rollout.trajectory import Agent, Message, Segment, StopReason, ToolSpec, Turn

Hear = Callable[[Sequence[Turn]], Awaitable[str | None]]
"""What the person says next, given the turns so far; None when they have said all."""


@runtime_checkable
class Admits(Protocol):
    """A conduct that has a word in what a person says."""

    async def admitted(self, words: Message, turn: int) -> Message | str:
        """What is told of a person's words, said before turn `turn`; the reason, as text, when they go no further.

        Raises BoundaryError when whoever judges them breaks.
        """
        ...


@dataclass(slots=True)
class Chatting:
    """See Conduct. Tasks are not played here: the person's first words stand where the task's messages would."""

    inner: Conduct
    hear: Hear
    hears: Hears
    """Is told what the agent says, calls and gets, as it happens."""
    waits: bool = False
    """What was said in an earlier chat still waits for its answer: the person is not asked first."""
    _silent: bool = False
    """The person has said nothing at all."""
    _answered: set[str] = field(default_factory=set[str])
    """Ids of the calls of the turn whose results were told."""

    @property
    def agent(self) -> Agent:
        """See Conduct."""
        return self.inner.agent

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """See Conduct."""
        return self.inner.tools

    async def open(self, seeded: Seeded, family: Family) -> tuple[Message, ...]:
        """See Conduct."""
        first = None if self.waits else await self._heard(())
        self._silent = first is None and not self.waits
        said = () if first is None else (first,)
        told = HeardSession(seeded.session, self._tell)
        return await self.inner.open(replace(seeded, messages=said, session=told), family)

    async def prepare(
        self, ledger: Ledger, said: Sequence[Message], turns: Sequence[Turn], sample: Sample
    ) -> Ready | StopReason:
        """See Conduct."""
        if self._silent:
            return StopReason.DONE
        ready = await self.inner.prepare(ledger, said, turns, sample)
        if isinstance(ready, StopReason):
            return ready
        self._answered.clear()
        return replace(ready, hears=self._tell if ready.hears is None else both(ready.hears, self._tell))

    async def act(self, said: Said, turns: Sequence[Turn], seconds: float, cut: bool) -> Acted:
        """See Conduct. Where the agent has answered, the person goes on, or that was all."""
        step = await self.inner.act(said, turns, seconds, cut)
        for use in step.uses:
            if use.call.id not in self._answered:  # it was not made, or by another than the session
                self._tell(CallResult(use))
        if step.stop is not StopReason.DONE or step.broken is not None:
            return step
        answer = await self._heard((*turns[:-1], replace(turns[-1], tool_uses=step.uses)))
        if answer is None:
            return step
        results = tool_messages(step.uses) if step.uses and not step.said else ()
        return replace(step, stop=None, said=(*results, *step.said, answer))

    def _tell(self, event: StreamEvent) -> None:
        if isinstance(event, CallResult):
            self._answered.add(event.use.call.id)
        self.hears(event)

    async def end(self, stop: StopReason, failed: BoundaryError | None) -> Ended:
        """See Conduct."""
        return await self.inner.end(stop, failed)

    async def _heard(self, turns: Sequence[Turn]) -> Message | None:
        """What the person says next, as far as it is admitted: of what is not the person hears why, and goes on."""
        while (words := await self.hear(turns)) is not None:
            said: Message = {"role": "user", "content": words}
            admitted = await self.inner.admitted(said, len(turns)) if isinstance(self.inner, Admits) else said
            if not isinstance(admitted, str):
                return admitted
            self.hears(TextDelta(0, admitted))
            self.hears(SegmentDone(0, Segment("content", admitted)))
        return None
