"""From an agent's configuration to its parts: functions are imported, files are read, nothing is started."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rollout.agents.approval import Approvals
from rollout.agents.approval_queue import ApprovalQueue
from rollout.agents.approval_section import ApprovalConfig
from rollout.agents.aside import Asks
from rollout.agents.child_runs import tool_names
from rollout.agents.children import ChildrenConfig
from rollout.agents.conduct import conduct_of
from rollout.agents.context import ContextConfig
from rollout.agents.conversing import Conversing
from rollout.agents.functions import FunctionTools
from rollout.agents.guardrails import Guardrails
from rollout.agents.handoffs import handoff_tools
from rollout.agents.hooks import Hooks
from rollout.agents.memory_tools import Memories, open_memories
from rollout.agents.model_settings import ModelSettings, model_settings
from rollout.agents.parts import Budget, Crew, Parts, Pipeline, Shortening, Team
from rollout.agents.section import AgentConfig, MemberConfig, SubAgentConfig
from rollout.agents.skills import load_skills
from rollout.agents.stored_sessions import StoredSessions, open_sessions
from rollout.agents.template_variables import template_variables
from rollout.agents.tool_section import ToolConfig, rules
from rollout.conduct import Conduct
from rollout.errors import UserError
from rollout.parking import Parking
from rollout.references import load_function
from rollout.template import ChatTemplate
from rollout.trajectory import Agent, Json, Lease, Sampling, Turn

if TYPE_CHECKING:
    from rollout.agents.mcp_tools import McpServers

_PATHS = re.compile(
    r"\.(ref|check|function|when|skills|skill_dirs|path|snapshot|output_schema|service|external\.workspace|history_filter|stop_when)$|\.hooks\.\w+$"
)
"""Keys whose text may be a file, or a function in one."""


@dataclass(slots=True)
class Loaded:
    """An agent with all it may hand over to, and what of it stays open between episodes."""

    parts: Parts
    memories: list[Memories] = field(default_factory=list[Memories])
    servers: list[McpServers] = field(default_factory=list["McpServers"])
    sessions: StoredSessions | None = None
    parking: Parking = field(default_factory=Parking)

    def conduct(self, agent: Agent, lease: Lease) -> Conduct:
        """How the agent goes about one attempt at an episode."""
        conduct, sessions, budget = conduct_of(self.parts, lease, self.parking), self.sessions, self.parts.budget
        if sessions is None:
            return conduct
        model = "" if budget is None else budget.model
        price = None if budget is None else partial(_price, budget)
        return Conversing(conduct, lambda: sessions.of_rollout(lease), model, price)

    @property
    def goes_on(self) -> bool:
        """Whether an episode may go on behind the turns that an earlier attempt has left."""
        return self.sessions is None and self.parts.goes_on

    async def close(self) -> None:
        """Closes what episodes share. Idempotent."""
        for memories in self.memories:
            await memories.close()
        for servers in self.servers:
            await servers.close()


@dataclass(frozen=True, slots=True)
class Around:
    """What an agent is told of the job it works in."""

    sampling: Sampling
    """How its model samples where the agent says nothing."""
    context: int | None
    """Tokens the model reaches; None where nobody knows."""
    budget: Budget | None = None
    """What its episodes may cost; None for whatever."""
    requests: str | None = None
    """The folder where calls wait for a person's approval."""
    template: ChatTemplate | None = None
    """What prompts are rendered with here; None where the endpoint does that."""
    model: Asks | None = None
    """What approvers that are models ask."""
    parking: Parking = field(default_factory=Parking)
    """Where episodes wait for people."""
    tool_seconds: float = 60.0
    """What a tool may take that has no limit of its own."""


def is_plain(config: AgentConfig) -> bool:
    """Whether the agent has instructions and the resource's tools, and nothing else: `rollout.conduct.plain` then."""
    same = {"name", "tools", "instructions", "retry", "streaming_tools"}  # retries are the policy's
    if config.on_max_iterations == "stop":
        same.add("max_iterations")  # which is in the limits of the episode
    told = config.model_dump(exclude=same) != AgentConfig().model_dump(exclude=same)
    words = config.instructions is None or isinstance(config.instructions, str)
    return not told and words and all(isinstance(tool, str) for tool in config.tools or ())


def located(config: AgentConfig) -> AgentConfig:
    """The agent with its paths made absolute: who plays episodes does not work in the folder a job was started in."""
    return AgentConfig.model_validate(_located(config.model_dump(), ""))


def _located(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _located(one, f"{key}.{name}") for name, one in cast(dict[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_located(one, key) for one in cast(Sequence[Any], value)]
    if not isinstance(value, str) or not _PATHS.search(key):
        return value
    file, colon, name = value.partition(":")
    there = Path(file) if file.endswith(".py") else Path(value)
    if key.endswith(".memory.path"):  # which need not be there yet
        return str(there.absolute())
    return value if not there.exists() else f"{there.resolve()}{colon + name if there != Path(value) else ''}"


async def load_agent(config: AgentConfig, around: Around) -> Loaded:
    """The agent that section `agent` describes. Raises UserError, one line that begins with the key, for what cannot
    be used."""
    found = _Found(config.children)
    if config.streaming_tools:
        _check_early(config)
    parts = await _member(config, config.name, around, "agent", found)
    early = around.tool_seconds if config.streaming_tools else None
    sessions = None if config.sessions is None else await open_sessions(config.sessions, config.name)
    parts = replace(parts, budget=around.budget, early=early)
    return Loaded(parts, found.memories, found.servers, sessions, around.parking)


def _price(budget: Budget, turn: Turn, prompt: int | None) -> float | None:
    return budget.used((turn,)).usd


@dataclass(slots=True)
class _Found:
    """What is of the whole job while its agents are loaded."""

    children: ChildrenConfig
    memories: list[Memories] = field(default_factory=list[Memories])
    servers: list[McpServers] = field(default_factory=list["McpServers"])
    variables: Mapping[str, Json] | None = None
    """Those of the chat template; None until an agent was looked at."""


async def _member(config: MemberConfig, name: str, around: Around, key: str, found: _Found) -> Parts:
    settings = model_settings(config.api_kwargs, around.sampling, f"{key}.api_kwargs")
    variables = _variables(settings, around, f"{key}.api_kwargs", found)
    own = [tool for tool in config.tools or () if isinstance(tool, ToolConfig)]
    references = [tool.ref for tool in own if tool.ref is not None]
    agent = Agent(name, None, config.chosen, settings.sampling)
    hooks = Hooks.of(config.hooks, agent, f"{key}.hooks")
    queue = None if around.requests is None else ApprovalQueue(around.requests)
    interrupt = None if hooks is None else hooks.should_interrupt
    if config.memory is not None:
        found.memories.append(await open_memories(config.memory, f"{key}.memory"))
    if config.mcp_servers:
        from rollout.agents.mcp_tools import McpServers  # it takes half a second that few jobs need

        found.servers.append(McpServers(config.mcp_servers))
    skills = load_skills(config, key)
    return Parts(
        agent=agent,
        settings=settings,
        instructions=config.loaded(key),
        functions=FunctionTools.of(references, f"{key}.tools") if references else None,
        rules=rules(own, f"{key}.tools"),
        parallel=config.parallel_tools,
        max_concurrency=config.max_tool_concurrency,
        max_output=config.max_tool_output,
        hooks=hooks,
        guardrails=Guardrails.of(config.guardrails, f"{key}.guardrails"),
        approvals=Approvals.of(config.approval, queue, around.model, interrupt, f"{key}.approval"),
        output=config.form(key),
        shortening=_shortening(config.context, around.context),
        skills=skills if skills.skills else None,
        memories=found.memories[-1] if config.memory is not None else None,
        servers=found.servers[-1] if config.mcp_servers else None,
        max_iterations=config.max_iterations,
        force_final=config.on_max_iterations == "force_final",
        trainable=config.trainable,
        variables=variables,
        team=await _team(config, around, key, found),
        crew=await _crew(config, around, key, found),
        pipeline=_pipeline(config, key),
    )


def _variables(settings: ModelSettings, around: Around, key: str, found: _Found) -> Mapping[str, Json]:
    """The agent's variables of the chat template: those of the first agent, for all whom it hands over to."""
    if around.template is None:
        return {}
    own = template_variables(settings, around.template, key)
    if found.variables is None:
        found.variables = own
    elif own and own != found.variables:
        told = f"{min(own)}: prompts of all agents are rendered alike; expected it in agent.api_kwargs alone"
        raise UserError(f"{key}: {told}")
    return found.variables


def _check_early(config: AgentConfig) -> None:
    """Raises UserError for what has a word in a call before it is made, or needs to know what comes behind it."""
    own = [tool for tool in config.tools or () if isinstance(tool, ToolConfig)]
    against = {
        "sub_agents": bool(config.sub_agents),
        "approval": config.approval != ApprovalConfig(),
        "hooks.should_interrupt": config.hooks.should_interrupt is not None,
        "hooks.on_tool_call": config.hooks.on_tool_call is not None,
        "guardrails": any(guardrail.at == "tool_input" for guardrail in config.guardrails),
        "sessions": config.sessions is not None,
        "pipeline": config.pipeline is not None,
        "output_schema": config.output_schema is not None,
        "parallel_tools": not config.parallel_tools,
        "max_tool_concurrency": config.max_tool_concurrency > 0,
        "tools": any(tool.return_direct or tool.sequential for tool in own),
    }
    if found := next((name for name, there in against.items() if there), None):
        raise UserError(f"agent.streaming_tools: no call can begin early beside agent.{found}; expected one of the two")


async def _team(config: MemberConfig, around: Around, key: str, found: _Found) -> Team | None:
    """The agents that it may hand over to."""
    several = {name: one for name, one in config.sub_agents.items() if one.use == "handoff"}
    if not several or config.pipeline is not None:
        return None
    tools, targets = handoff_tools(_purposes(several), f"{key}.sub_agents")
    agents, told = await _members(several, around, key, found), config.handoffs
    own = ":" in told.history_filter
    return Team(agents, tools, targets, told.follow, told.max_handoffs, told.filter(f"{key}.handoffs"), own)


async def _crew(config: MemberConfig, around: Around, key: str, found: _Found) -> Crew | None:
    """The agents that it may begin runs of."""
    whole = config.pipeline is not None
    several = {name: one for name, one in config.sub_agents.items() if whole or one.use == "tool"}
    if not several:
        return None
    tool_names(several, f"{key}.sub_agents")
    agents = await _members(several, around, key, found)
    if waiting := next((name for name, one in agents.items() if one.patience), None):
        told = "the agent that it works for cannot wait so long; expected another approver than human"
        raise UserError(f"{key}.sub_agents.{waiting}.approval: {told}")
    return Crew(agents, _purposes(several), found.children)


async def _members(several: Mapping[str, SubAgentConfig], around: Around, key: str, found: _Found) -> dict[str, Parts]:
    place = f"{key}.sub_agents"
    return {name: await _member(one, name, around, f"{place}.{name}", found) for name, one in several.items()}


def _purposes(several: Mapping[str, SubAgentConfig]) -> dict[str, str]:
    return {name: one.description for name, one in several.items()}


def _pipeline(config: MemberConfig, key: str) -> Pipeline | None:
    if (told := config.pipeline) is None:
        return None
    stop_when = None if told.stop_when is None else load_function(told.stop_when, f"{key}.pipeline.stop_when")
    return Pipeline(told.agents, told.rounds, stop_when, config.handoffs.max_handoffs)


def _shortening(config: ContextConfig, window: int | None) -> Shortening | None:
    reach = config.context_window or window
    rule = None if reach is None else config.value(reach)
    return None if rule is None else Shortening(rule, frozenset(config.when), config.train_summaries)
