"""An agent at work in a session: what was said before opens the episode, what is said is written down as it happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from rollout.agents.chatting import Admits
from rollout.agents.context import leading_system
from rollout.agents.open_session import OpenSession, broken_off, working_at
from rollout.agents.replies import tool_messages
from rollout.agents.role import last_said
from rollout.agents.traces import Price, summaries, summed_up
from rollout.conduct import Acted, Conduct, Ended, Ready, Said, Sample
from rollout.errors import BoundaryError
from rollout.family import Family
from rollout.protocols import Ledger, Seeded
from rollout.trajectory import Agent, Event, Message, StopReason, ToolSpec, Turn


@dataclass(slots=True)
class Conversing:
    """See Conduct. What the policy said is written down before its calls are made, and their results behind them: who
    goes on after a crash knows which calls have none."""

    inner: Conduct
    opens: Callable[[], Awaitable[OpenSession]]
    """The session. Raises BoundaryError when it cannot be had."""
    model: str
    """As summaries of turns name it."""
    price: Price | None = None
    _session: OpenSession | None = None
    _new: tuple[Message, ...] = ()
    """What was said at the start and is not written down yet."""
    _told: tuple[Message, ...] = ()
    """What the policy is to be told next, as far as it is written down."""
    _input: str = ""
    _since: int = 0
    """The first turn since the agent has answered last."""
    _run: tuple[Turn, ...] = ()
    """All turns, where those since then are not summed up yet."""
    _events: list[Event] = field(default_factory=list[Event])

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
        self._session = session = self._session or await self.opens()
        first = leading_system(seeded.messages)
        results, spoken = broken_off(session.history), seeded.messages[first:]
        history = (*session.history, *results)
        if session.log is not None or history or session.state:
            detail = {"messages": len(history), "state": dict(session.state), "kept": session.log is not None}
            self._events.append(Event(0, "session", session.id, detail))
        with working_at(session):
            told = await self.inner.open(
                replace(seeded, messages=(*seeded.messages[:first], *history, *spoken)), family
            )
        self._new = (*results, *told[len(told) - len(spoken) :])
        self._input = last_said((*history, *spoken))
        return told

    async def prepare(
        self, ledger: Ledger, said: Sequence[Message], turns: Sequence[Turn], sample: Sample
    ) -> Ready | StopReason:
        """See Conduct."""
        first = not turns  # a summary before the first call makes `turns` longer
        if not first:
            await self._hear(said[len(self._told) :])
        with working_at(self._open):
            ready = await self.inner.prepare(ledger, said, turns, sample)
        if first and not isinstance(ready, StopReason):  # what a guardrail blocked is no part of a session
            await self._hear(self._new)
            await self._keep_state(0)
        return ready

    async def act(self, said: Said, turns: Sequence[Turn], seconds: float, cut: bool) -> Acted:
        """See Conduct."""
        message, number = said.recorded.message, len(turns) - 1
        if said.calls:
            await self._open.hear((message,))
        with working_at(self._open):
            step = await self.inner.act(said, turns, seconds, cut)
        self._told = step.said or tool_messages(step.uses)
        self._run = (*turns[:-1], replace(turns[-1], tool_uses=step.uses))
        try:
            if not said.calls and step.stop is not StopReason.GUARDRAIL:
                await self._open.hear((message,))
            await self._open.hear(self._told)
            await self._keep_state(number)
            if step.stop is not None and step.stop is not StopReason.GUARDRAIL and step.broken is None:
                await self._sum_up()
        except BoundaryError as error:  # the calls were made, and have their results
            return replace(step, broken=step.broken or error)
        return step

    async def end(self, stop: StopReason, failed: BoundaryError | None) -> Ended:
        """See Conduct. Raises BoundaryError when the session does not take what is left to be written down."""
        if self._session is None:
            return await self.inner.end(stop, failed)
        with working_at(self._session):
            ended = await self.inner.end(stop, failed)
        if failed is None and stop is not StopReason.FAILED:
            if stop is StopReason.GUARDRAIL and self._run:  # what was answered in the place of what the policy said
                await self._session.hear(({"role": "assistant", "content": str(ended.answer)},))
            await self._keep_state(max(0, len(self._run) - 1))
            await self._sum_up()
        return replace(ended, events=tuple(sorted((*self._events, *ended.events), key=lambda event: event.turn)))

    async def admitted(self, words: Message, turn: int) -> Message | str:
        """See Admits. Guardrails find the session, also before the conversation opens."""
        if not isinstance(self.inner, Admits):
            return words
        self._session = session = self._session or await self.opens()
        with working_at(session):
            return await self.inner.admitted(words, turn)

    @property
    def _open(self) -> OpenSession:
        assert self._session is not None, "open comes first"
        return self._session

    async def _hear(self, messages: Sequence[Message]) -> None:
        self._input = last_said(messages) or self._input
        await self._open.hear(messages)

    async def _keep_state(self, turn: int) -> None:
        for key, detail in (await self._open.keep_state()).items():
            self._events.append(Event(turn, "state", key, detail))

    async def _sum_up(self) -> None:
        """Writes down what was used since the last answer."""
        if since := summaries(self._run, self.model, self.price)[self._since :]:
            self._since = len(self._run)
            await self._open.end_turn(summed_up(since, self._input, self._open.clock()))
