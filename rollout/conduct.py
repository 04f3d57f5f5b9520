"""How an agent goes about an episode: the seam between the turn loop and whatever an agent is told to do.

    open -> [prepare -> (the model call) -> act]* -> the end

`Plain` is an agent that has instructions and its resource's tools, and nothing else; `rollout.agents.conduct` has all
the rest. A conduct belongs to one attempt at one episode.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rollout.early import EarlySession
from rollout.errors import BoundaryError
from rollout.family import Family
from rollout.protocols import Ledger, Recorded, Seeded, Session
from rollout.streaming import Hears
from rollout.tool_use import ToolsUsed, use_tools
from rollout.trajectory import (
    Agent,
    Event,
    Extras,
    Json,
    Lease,
    Message,
    Score,
    StopReason,
    ToolCall,
    ToolSpec,
    ToolUse,
    Turn,
)
from rollout.turn import NO_EXTRAS

Sample = Callable[[Extras], Awaitable[Recorded | StopReason]]
"""One model call with the ledger's prompt: recorded and kept as a turn, or why the episode ends instead."""


PENALTY = "penalty"
"""The component of a score that says what the agent did wrong on the way; no verifier knows it."""


@dataclass(frozen=True, slots=True)
class Then:
    """What became of a turn's calls when an earlier attempt played it."""

    uses: tuple[ToolUse, ...]
    decided: tuple[Event, ...] = ()
    """What somebody decided about them: nobody is asked again."""
    replays: bool = True
    """The environment's tools are called again, so that its session stands where it stood."""


@dataclass(frozen=True, slots=True)
class Said:
    """A completion and the calls in it."""

    recorded: Recorded
    calls: tuple[ToolCall, ...] = ()
    implied: bool = False
    """Its text is the call: one to the resource's text tool."""
    then: Then | None = None
    """None for a turn that is played for the first time, or whose calls had no results yet."""

    @staticmethod
    def of(recorded: Recorded, text_tool: str | None, tools: Sequence[ToolSpec], turn: int) -> Said:
        """Reads the calls of turn `turn`. Text alone is a call to the text tool, where the policy has that."""
        calls = tuple(part.call for part in recorded.segments if part.call is not None)
        spec = next((spec for spec in tools if spec.name == text_tool), None)
        if calls or spec is None:
            return Said(recorded, calls)
        argument = next(iter(spec.parameters["properties"]))
        text = json.dumps({argument: recorded.message["content"].strip()}, ensure_ascii=False)
        return Said(recorded, (ToolCall(f"said_{turn}", spec.name, text),), True)


@dataclass(frozen=True, slots=True)
class Acted:
    """What became of a turn: its calls with their results, and what follows."""

    uses: tuple[ToolUse, ...] = ()
    said: tuple[Message, ...] = ()
    """What the policy is told next."""
    stop: StopReason | None = None
    """Why the episode ends here, if it does."""
    broken: BoundaryError | None = None
    """What failed outside of tool and policy: the episode's failure."""
    snapshot: bytes | None = None
    """The session's state after the calls, of resources that give one."""
    decided: tuple[Event, ...] = ()
    """What somebody decided about the calls: kept with the turn."""
    waited: float = 0.0
    """Seconds that people took for it: they are not the episode's."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The ledger holds the next call's prompt."""

    extras: Extras = NO_EXTRAS
    said: tuple[Message, ...] = ()
    """What was added to what was said."""
    hears: Hears | None = None
    """Listens to the call as it is sampled; None asks for nothing to be streamed."""


READY = Ready()


@dataclass(frozen=True, slots=True)
class Ended:
    """What an agent leaves behind beside its turns."""

    answer: Json = None
    """What it answered, where that is not simply the text of its last turn."""
    events: tuple[Event, ...] = ()
    penalty: float = 0.0
    """Taken from the reward."""
    untrained: frozenset[int] = frozenset()
    """Numbers of turns whose tokens are not to be trained on."""
    usd: float | None = 0.0
    """What it asked models beside its turns; None where that is not known."""


NOTHING = Ended()


class Conduct(Protocol):
    """How one agent goes about one attempt at an episode."""

    @property
    def agent(self) -> Agent:
        """Whose turn it is."""
        ...

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """What the policy may call."""
        ...

    async def open(self, seeded: Seeded, family: Family) -> tuple[Message, ...]:
        """The conversation as it opens; in `family` it may begin other runs. Raises BoundaryError for what breaks
        outside of the policy."""
        ...

    async def prepare(
        self, ledger: Ledger, said: Sequence[Message], turns: Sequence[Turn], sample: Sample
    ) -> Ready | StopReason:
        """Brings what was said into the ledger, and what else the next call needs; or says why there is none.

        Raises UserError for messages that the template cannot place, BoundaryError for what breaks.
        """
        ...

    async def act(self, said: Said, turns: Sequence[Turn], seconds: float, cut: bool) -> Acted:
        """Acts on a completion, the last of `turns`: makes its calls, each within `seconds`; none when it was `cut`.

        Raises BoundaryError for what breaks before any call is made.
        """
        ...

    async def end(self, stop: StopReason, failed: BoundaryError | None) -> Ended:
        """The episode is over, scored or not. Called once, whatever happened; the session is still open."""
        ...


@dataclass(slots=True)
class Plain:
    """An agent that is told nothing but instructions and tools. What is common to its calls is in `agent`."""

    agent: Agent
    tools: tuple[ToolSpec, ...] = ()
    seconds: float | None = None
    """Calls begin while the policy still samples, and may take so long; None makes them when it is done."""
    _session: Session | None = None
    _early: EarlySession | None = None

    async def open(self, seeded: Seeded, family: Family) -> tuple[Message, ...]:
        """See Conduct."""
        agent, self._session = self.agent, seeded.session
        self.tools = tuple(spec for spec in seeded.tools if agent.tools is None or spec.name in agent.tools)
        if (seconds := self.seconds) is not None:
            names = [spec.name for spec in self.tools]
            self._session = self._early = EarlySession(seeded.session, lambda _: seconds, names)
        instructions = agent.instructions if agent.instructions is not None else seeded.instructions
        system: tuple[Message, ...] = ({"role": "system", "content": instructions},) if instructions else ()
        return (*system, *seeded.messages)

    async def prepare(
        self, ledger: Ledger, said: Sequence[Message], turns: Sequence[Turn], sample: Sample
    ) -> Ready | StopReason:
        """See Conduct."""
        ledger.extend(said, self.tools)
        if self._early is None:
            return READY
        return Ready(hears=self._early.listens(len(turns)))

    async def act(self, said: Said, turns: Sequence[Turn], seconds: float, cut: bool) -> Acted:
        """See Conduct."""
        if not said.calls:
            return _DONE
        if said.then is not None and not said.then.replays:
            return acted(ToolsUsed(said.then.uses), said.implied)
        assert self._session is not None, "open comes first"
        under_way = self._early.under_way(said.calls) if self._early is not None else ()
        names = [spec.name for spec in self.tools]
        used = await use_tools(self._session, said.calls, names, seconds, cut, under_way)
        return acted(used, said.implied)

    async def end(self, stop: StopReason, failed: BoundaryError | None) -> Ended:
        """See Conduct."""
        return NOTHING if self._early is None else Ended(events=await self._early.settle())


_DONE = Acted(stop=StopReason.DONE)


def plain(agent: Agent, lease: Lease) -> Conduct:
    """The conduct of an agent with nothing but instructions and tools."""
    return Plain(agent)


def plain_early(seconds: float, agent: Agent, lease: Lease) -> Conduct:
    """The same, its calls begun while the policy still samples; each may take `seconds`."""
    return Plain(agent, seconds=seconds)


def penalized(score: Score, penalty: float) -> Score:
    """The score less what the agent did wrong on the way; a component says how much."""
    if not penalty:
        return score
    return replace(score, reward=score.reward - penalty, components={**score.components, PENALTY: -penalty})


def acted(used: ToolsUsed, implied: bool = False) -> Acted:
    """What follows from tool calls: their results are told, and the environment may have ended."""
    over = any(use.result.done for use in used.uses)
    said = tuple(answer(use, implied) for use in used.uses)
    return Acted(used.uses, said, StopReason.ENVIRONMENT if over else None, used.broken, used.snapshot)


def answer(use: ToolUse, implied: bool = False) -> Message:
    """A result as the policy reads it: a tool message, or simply the next thing it is told."""
    if implied:
        return {"role": "user", "content": use.result.content}
    return {"role": "tool", "content": use.result.content, "tool_call_id": use.call.id, "name": use.call.name}
