"""A person talks with an agent: the turn loop as it is, around a conduct that asks the person where the agent is done.

What the person says are messages like any others; what the agent does is an ordinary trajectory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from rollout.agents.replies import tool_messages
from rollout.conduct import Acted, Conduct, Ended, Ready, Said, Sample
from rollout.errors import BoundaryError
from rollout.protocols import Ledger, Seeded
from rollout.streaming import CallResult, HeardSession, Hears, StreamEvent, both
from rollout.trajectory import Agent, Message, StopReason, ToolSpec, Turn

Hear = Callable[[Sequence[Turn]], Awaitable[str | None]]
"""What the person says next, given the turns so far; None when they have said all."""


@dataclass(slots=True)
class Chatting:
    """See Conduct. Tasks are not played here: the person's first words stand where the task's messages would."""

    inner: Conduct
    hear: Hear
    hears: Hears
    """Is told what the agent says, calls and gets, as it happens."""
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

    async def open(self, seeded: Seeded) -> tuple[Message, ...]:
        """See Conduct."""
        first = await self.hear(())
        self._silent = first is None
        said: tuple[Message, ...] = () if first is None else ({"role": "user", "content": first},)
        return await self.inner.open(replace(seeded, messages=said, session=HeardSession(seeded.session, self._tell)))

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
        answer = await self.hear((*turns[:-1], replace(turns[-1], tool_uses=step.uses)))
        if answer is None:
            return step
        results = tool_messages(step.uses) if step.uses and not step.said else ()
        return replace(step, stop=None, said=(*results, *step.said, {"role": "user", "content": answer}))

    def _tell(self, event: StreamEvent) -> None:
        if isinstance(event, CallResult):
            self._answered.add(event.use.call.id)
        self.hears(event)

    async def end(self, stop: StopReason, failed: BoundaryError | None) -> Ended:
        """See Conduct."""
        return await self.inner.end(stop, failed)
