"""An agent at work in one episode: its system message, its tools, and what it holds open until the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rollout.agents.call_gates import CallGates
from rollout.agents.child_runs import ChildRuns
from rollout.agents.instructions import Facts, SystemPrompt
from rollout.agents.open_session import at_hand
from rollout.agents.parts import Parts
from rollout.agents.structured import Parsing
from rollout.agents.telling import Telling
from rollout.agents.toolbox import ToolBox
from rollout.agents.toolset import ToolSet
from rollout.errors import boundary
from rollout.protocols import Seeded
from rollout.trajectory import FailureKind, Lease, Message, ToolSpec

OPEN_SECONDS = 120.0
"""What opening an agent's memory and servers may take; each of them has its own limit below that."""
INSTRUCTIONS_SECONDS = 30.0


@dataclass(slots=True)
class Role:
    """See `open_role`."""

    parts: Parts
    box: ToolBox
    gates: CallGates
    own: tuple[ToolSpec, ...]
    """Its tools, those that hand over included."""
    system: tuple[Message, ...]
    opening: tuple[Message, ...]
    """What the user says at the start, with what the agent remembers of it."""
    instructions: str
    """As they were made for this episode."""
    parsing: Parsing | None = None
    telling: Telling | None = None
    """Its hooks that listen."""

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """All that the policy may call now, the one that gives the answer included."""
        return self.own if self.parsing is None else self.parsing.ask().tools

    @property
    def allowed(self) -> list[str]:
        """Names of the tools."""
        return [spec.name for spec in self.tools]


async def open_role(
    parts: Parts, lease: Lease, seeded: Seeded, earlier: str | None = None, runs: ChildRuns | None = None
) -> Role:
    """Puts an agent to work on an episode; `earlier` are its instructions of the last time it was at work there, `runs`
    those that it may begin. Nothing stays open when it raises.

    Raises BoundaryError of kind seed for what cannot be opened, UserError for tools of one name.
    """
    async with boundary(FailureKind.SEED, f"agent {parts.agent.name}", OPEN_SECONDS):
        sets: list[ToolSet] = []
        try:
            return await _open(parts, lease, seeded, earlier, runs, sets)
        except BaseException:
            await asyncio.gather(*(one.close() for one in sets), return_exceptions=True)
            raise
    raise AssertionError("a boundary swallows nothing")


async def _open(
    parts: Parts, lease: Lease, seeded: Seeded, earlier: str | None, runs: ChildRuns | None, sets: list[ToolSet]
) -> Role:
    memory, rules = None, parts.rules
    if parts.functions is not None:
        sets.append(parts.functions)
    if parts.skills is not None:
        sets.append(parts.skills.tools())
    if parts.memories is not None:
        memory = parts.memories.open(f"{lease.episode_id}.{lease.attempt}")
        sets.append(memory.tools())
    if parts.servers is not None:
        sets.append(await parts.servers.open())
    if runs is not None and parts.crew is not None:
        agents = runs.tools(parts.crew)
        rules = runs.rules(agents, rules)
        sets += agents
    gates = CallGates(parts.guardrails, parts.hooks)
    guarded = parts.guardrails is not None and parts.guardrails.on("output")
    telling = Telling.of(parts.hooks, guarded)
    box = ToolBox(
        tuple(sets),
        rules,
        parallel=parts.parallel and parts.team is None,  # any call may be the one that hands over
        max_concurrency=parts.max_concurrency,
        max_output=parts.max_output,
        around=gates,
        told=telling.result if telling is not None else None,
    )
    chosen = parts.agent.tools
    own = box.specs([spec for spec in seeded.tools if chosen is None or spec.name in chosen])
    tools = (*own, *(parts.team.tools if parts.team is not None else ()))
    parsing = None if parts.output is None else Parsing.of(parts.output, tools)
    recalled = "" if memory is None else await memory.recalled(last_said(seeded.messages))
    facts = Facts(lease.task, parts.agent.name, datetime.now(UTC))
    if (session := at_hand()) is not None:
        told = {"id": session.id, "state": session.state}
        facts = replace(facts, session=told, user={"name": session.user})
    said = seeded.instructions or ""
    if parts.instructions is not None:
        said = await parts.instructions.rendered(facts, earlier, INSTRUCTIONS_SECONDS)
    hint = "" if parsing is None else parsing.hint
    system = SystemPrompt(said, parts.skills.text if parts.skills is not None else "", "", hint).messages
    opening = (*system, *seeded.messages)
    if memory is not None:
        opening = memory.opening(opening, recalled)
    split = 1 if opening and opening[0]["role"] == "system" else 0
    return Role(parts, box, gates, tools, opening[:split], opening[split:], said, parsing, telling)


def last_said(messages: Sequence[Message]) -> str:
    """What the user said last; empty when they said nothing."""
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
