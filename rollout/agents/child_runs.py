"""The runs that one run begins: their bounds, what they answer, and the tools that begin them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from rollout.agents.children import Place, Used, child_limits, scores_shared
from rollout.agents.handoffs import Handoff
from rollout.agents.parts import Budget, Crew, Parts
from rollout.agents.teams import AgentTool, Result, Run, spawn_subagents
from rollout.agents.tool_rules import PLAIN, ToolRule
from rollout.agents.toolset import ToolSet
from rollout.conduct import Conduct
from rollout.errors import BoundaryError, ToolError, UserError, nearest
from rollout.family import Child, Family, lent
from rollout.protocols import Seeded
from rollout.trajectory import (
    Agent,
    Failure,
    Lease,
    Limits,
    StopReason,
    ToolCall,
    ToolResult,
    ToolSpec,
    Trajectory,
)

NewConduct = Callable[[Parts, Lease], Conduct]
"""How an agent goes about a run."""
SPAWN = "spawn_subagents"
_END_SECONDS = 1.0
"""What a child keeps back for its end: nobody scores it, and its session stays open."""


class NoAnswer(ToolError):
    """A child that was not begun, or gave no answer. `stop` says why, as a run's own end would."""

    def __init__(self, message: str, stop: StopReason) -> None:
        super().__init__(message)
        self.stop = stop


@dataclass(slots=True)
class ChildRuns:
    """See the module. Belongs to one run, whichever agent is at work in it."""

    family: Family
    seeded: Seeded
    new: NewConduct
    budget: Budget | None
    place: Place
    _gate: asyncio.Semaphore | None = None

    async def run(self, crew: Crew, agent: str, given: str) -> Result:
        """Plays a run of one of the crew. Raises BoundaryError when it fails, NoAnswer when there is none."""
        if (parts := crew.agents.get(agent)) is None:
            raise NoAnswer(f"there is no agent '{agent}'{nearest(agent, crew.agents)}", StopReason.MAX_TURNS)
        self.family.share = scores_shared(crew.rules.reward_sharing)
        self._gate = self._gate or asyncio.Semaphore(crew.rules.max_parallel)
        async with self._gate:
            return _result(await self.family.begin(self._child(crew, parts, given)), crew)

    def tools(self, crew: Crew) -> tuple[ToolSet, ...]:
        """An agent's tools that begin runs."""

        async def run(agent: str, given: str) -> Result:
            return await self.run(crew, agent, given)

        fed_back = crew.rules.on_child_error == "feed_back"
        tools = [
            AgentTool(run, agent, name, crew.purposes[agent] or f"Asks {agent}.", fed_back)
            for name, agent in tool_names(crew.agents, "agent.sub_agents").items()
        ]
        return (*tools, SpawnTool(run, crew)) if crew.rules.spawn else tuple(tools)

    def rules(self, sets: Sequence[ToolSet], rules: Mapping[str, ToolRule]) -> dict[str, ToolRule]:
        """The agent's rules for tools, those that begin runs with the time that a run has: it bounds itself."""
        patient = dict(rules)
        for name in (spec.name for one in sets for spec in one.specs):
            rule = rules.get(name, PLAIN)
            patient[name] = replace(rule, timeout=rule.timeout or self.family.limits.episode_seconds)
        return patient

    def _child(self, crew: Crew, parts: Parts, given: str) -> Child:
        why = self.place.refusal(crew.rules.max_depth, crew.rules.max_children)
        if why is not None:
            raise NoAnswer(why, StopReason.MAX_TURNS)
        limits = self._limits()
        self.place = self.place.begun()
        budgeted = replace(parts, budget=self.budget)

        def conduct(agent: Agent, lease: Lease) -> Conduct:
            return self.new(budgeted, lease)

        return Child(self.place.children, parts.agent, conduct, lent(self.seeded, given), limits)

    def _limits(self) -> Limits:
        family = self.family
        own = replace(family.limits, verify_seconds=_END_SECONDS, close_seconds=_END_SECONDS)
        used = Used(family.limits.max_tokens - family.tokens_left, family.seconds)
        if (limits := child_limits(family.limits, used, own)) is None:
            stop = StopReason.MAX_TOKENS if family.tokens_left <= 0 else StopReason.TIMEOUT
            raise NoAnswer("nothing of the episode's tokens or time is left for another agent", stop)
        return limits


class SpawnTool:
    """Several of the crew side by side, as a tool: takes `jobs`, answers with a JSON list of what each came to."""

    def __init__(self, run: Run, crew: Crew) -> None:
        job = {
            "type": "object",
            "properties": {
                "agent": {"type": "string", "enum": sorted(crew.agents)},
                "input": {"type": "string", "description": "What it is to do. It sees nothing else."},
            },
            "required": ["agent", "input"],
        }
        parameters = {"type": "object", "properties": {"jobs": {"type": "array", "items": job}}, "required": ["jobs"]}
        self.specs = (
            ToolSpec(SPAWN, "Has several agents work at the same time; answers in the order asked.", parameters),
        )
        self._run, self._rules = run, crew.rules

    async def call(self, call: ToolCall, seconds: float) -> ToolResult:
        """Runs the jobs, each within `seconds`. Raises BoundaryError for one that fails where that is to fail all."""
        try:
            jobs = msgspec.json.decode(call.arguments, type=_Jobs).jobs
        except (msgspec.DecodeError, UnicodeEncodeError):
            return _error("expected a JSON object with the list `jobs` of objects with the texts `agent` and `input`")
        began = time.monotonic()
        rules, asked = self._rules, [(job.agent, job.input) for job in jobs]
        try:
            results = await spawn_subagents(self._run, asked, seconds, rules.max_parallel, rules.return_exceptions)
        except BoundaryError as error:
            if isinstance(error.__cause__, ToolError):
                return _error(str(error.__cause__))
            if rules.on_child_error == "feed_back":
                return _error(str(error))
            raise
        told = [{"agent": job.agent, **_told(result)} for job, result in zip(jobs, results, strict=True)]
        good = [result for result in results if isinstance(result, Result)]
        return ToolResult(
            json.dumps(told, ensure_ascii=False),
            done=any(one.done for one in good),
            reward=_sum(one.reward for one in good),
            seconds=time.monotonic() - began,
        )

    async def close(self) -> None:
        """Nothing is held between calls."""


def tool_names(agents: Iterable[str], key: str) -> dict[str, str]:
    """Agents by the name of the tool that each is. Characters that tool names cannot have become `_`.

    Raises UserError that begins with `key` when two get the same name.
    """
    names: dict[str, str] = {}
    for agent in agents:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", agent)
        if name in names or name == SPAWN:
            raise UserError(
                f"{key}: '{names.get(name, SPAWN)}' and '{agent}' are both called by {name}; rename '{agent}'"
            )
        names[name] = agent
    return names


class _Job(msgspec.Struct):
    agent: str
    input: str


class _Jobs(msgspec.Struct):
    jobs: list[_Job]


def _result(played: Trajectory, crew: Crew) -> Result:
    """What a child answered. Raises BoundaryError when it failed, NoAnswer when a limit ended it without a word."""
    if played.failure is not None:
        raise BoundaryError(played.failure)
    text = played.turns[-1].text if played.turns else ""
    value = text if played.answer is None else played.answer
    if value == "" and played.stop_reason.truncated:
        raise NoAnswer(f"{played.agent} gave no answer: {played.stop_reason}", played.stop_reason)
    rewards = [turn.reward for turn in played.turns]
    ended = played.stop_reason is StopReason.ENVIRONMENT
    return Result(value, _handoff(played, crew), ended, _sum(rewards))


def _handoff(played: Trajectory, crew: Crew) -> Handoff | None:
    """The handoff that ended a run, if it is to one of the crew."""
    if played.stop_reason is not StopReason.HANDOFF:
        return None
    told = [event.detail for event in played.events if event.kind == "handoff"][-1]
    if told["target"] not in crew.agents:
        return None
    return Handoff(told["sender"], told["target"], told["message"])


def _told(result: Result | Failure) -> dict[str, str]:
    return {"error": result.message} if isinstance(result, Failure) else {"result": result.text}


def _sum(rewards: Iterable[float | None]) -> float | None:
    """Of what there is; None when there is nothing."""
    told = [reward for reward in rewards if reward is not None]
    return sum(told) if told else None


def _error(why: str) -> ToolResult:
    return ToolResult(f"error: {why}", error=why)
