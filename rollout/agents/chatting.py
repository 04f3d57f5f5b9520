"""A person talks with an agent: the turn loop as it is, around a conduct that asks the person where the agent is done.

What the person says are messages like any others; what the agent does is an ordinary trajectory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from rollout.agents.replies import tool_messages
from rollout.conduct import Acted, Conduct, Ended, Ready, Said, Sample
from rollout.errors import BoundaryError
from rollout.family import Family
from rollout.protocols import Ledger, Seeded
from rollout.trajectory import Agent, Message, StopReason, ToolSpec, ToolUse, Turn

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
    told: Callable[[str, Sequence[ToolUse]], None]
    """Hears what the agent says, and the calls that it has made."""
    waits: bool = False
    """What was said in an earlier chat still waits for its answer: the person is not asked first."""
    _silent: bool = False
    """The person has said nothing at all."""

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
        return await self.inner.open(replace(seeded, messages=said), family)

    async def prepare(
        self, ledger: Ledger, said: Sequence[Message], turns: Sequence[Turn], sample: Sample
    ) -> Ready | StopReason:
        """See Conduct."""
        return StopReason.DONE if self._silent else await self.inner.prepare(ledger, said, turns, sample)

    async def act(self, said: Said, turns: Sequence[Turn], seconds: float, cut: bool) -> Acted:
        """See Conduct. Where the agent has answered, the person goes on, or that was all."""
        step = await self.inner.act(said, turns, seconds, cut)
        self.told(turns[-1].text, step.uses)
        if step.stop is not StopReason.DONE or step.broken is not None:
            return step
        answer = await self._heard((*turns[:-1], replace(turns[-1], tool_uses=step.uses)))
        if answer is None:
            return step
        results = tool_messages(step.uses) if step.uses and not step.said else ()
        return replace(step, stop=None, said=(*results, *step.said, answer))

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
            self.told(admitted, ())
        return None
