"""From an agent's configuration to its parts: functions are imported, files are read, nothing is started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rollout.agents.approval import Approvals
from rollout.agents.approval_queue import ApprovalQueue
from rollout.agents.approval_section import ApprovalConfig
from rollout.agents.conduct import AgentConduct
from rollout.agents.context import ContextConfig
from rollout.agents.functions import FunctionTools
from rollout.agents.guardrails import Guardrails
from rollout.agents.handoffs import handoff_tools
from rollout.agents.hooks import Hooks
from rollout.agents.mcp_tools import McpServers
from rollout.agents.memory_tools import Memories, open_memories
from rollout.agents.model_settings import model_settings
from rollout.agents.parts import Budget, Parts, Shortening, Team
from rollout.agents.section import AgentConfig, MemberConfig
from rollout.agents.skills import load_skills
from rollout.agents.tool_section import ToolConfig, rules
from rollout.conduct import Conduct
from rollout.errors import UserError
from rollout.trajectory import Agent, Lease, Sampling

_PATHS = re.compile(
    r"\.(ref|check|function|when|skills|skill_dirs|path|snapshot|output_schema|service|history_filter)$|\.hooks\.\w+$"
)
"""Keys whose text may be a file, or a function in one."""


@dataclass(slots=True)
class Loaded:
    """An agent with all it may hand over to, and what of it stays open between episodes."""

    parts: Parts
    memories: list[Memories] = field(default_factory=list[Memories])
    servers: list[McpServers] = field(default_factory=list[McpServers])

    def conduct(self, agent: Agent, lease: Lease) -> Conduct:
        """How the agent goes about one attempt at an episode."""
        return AgentConduct(self.parts, lease)

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
    tokens: bool = False
    """Prompts are rendered here, with the same variables of the chat template for all."""
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
    return value if not there.exists() else f"{there.resolve()}{colon + name if there != Path(value) else ''}"


async def load_agent(config: AgentConfig, around: Around) -> Loaded:
    """The agent that section `agent` describes. Raises UserError, one line that begins with the key, for what cannot
    be used."""
    found = _Found()
    if config.streaming_tools:
        _check_early(config)
    parts = await _member(config, config.name, around, "agent", found)
    early = around.tool_seconds if config.streaming_tools else None
    return Loaded(replace(parts, budget=around.budget, early=early), found.memories, found.servers)


@dataclass(slots=True)
class _Found:
    memories: list[Memories] = field(default_factory=list[Memories])
    servers: list[McpServers] = field(default_factory=list[McpServers])


async def _member(config: MemberConfig, name: str, around: Around, key: str, found: _Found) -> Parts:
    settings = model_settings(config.api_kwargs, around.sampling, f"{key}.api_kwargs")
    if around.tokens and settings.template:
        wanted = "a model.engine that renders messages itself (openai without tokenizer)"
        raise UserError(f"{key}.api_kwargs: {min(settings.template)} is for the chat template; expected {wanted}")
    own = [tool for tool in config.tools or () if isinstance(tool, ToolConfig)]
    references = [tool.ref for tool in own if tool.ref is not None]
    agent = Agent(name, None, config.chosen, settings.sampling)
    hooks = Hooks.of(config.hooks, agent, f"{key}.hooks")
    queue = None if around.requests is None else ApprovalQueue(around.requests)
    interrupt = None if hooks is None else hooks.should_interrupt
    if config.memory is not None:
        found.memories.append(await open_memories(config.memory, f"{key}.memory"))
    if config.mcp_servers:
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
        approvals=Approvals.of(config.approval, queue, None, interrupt, f"{key}.approval"),
        output=config.form(key),
        shortening=_shortening(config.context, around.context),
        skills=skills if skills.skills else None,
        memories=found.memories[-1] if config.memory is not None else None,
        servers=found.servers[-1] if config.mcp_servers else None,
        max_iterations=config.max_iterations,
        force_final=config.on_max_iterations == "force_final",
        trainable=config.trainable,
        team=await _team(config, around, key, found),
    )


def _check_early(config: AgentConfig) -> None:
    """Raises UserError for what has a word in a call before it is made, or needs to know what comes behind it."""
    own = [tool for tool in config.tools or () if isinstance(tool, ToolConfig)]
    against = {
        "sub_agents": bool(config.sub_agents),
        "approval": config.approval != ApprovalConfig(),
        "hooks.should_interrupt": config.hooks.should_interrupt is not None,
        "hooks.on_tool_call": config.hooks.on_tool_call is not None,
        "guardrails": any(guardrail.at == "tool_input" for guardrail in config.guardrails),
        "output_schema": config.output_schema is not None,
        "parallel_tools": not config.parallel_tools,
        "max_tool_concurrency": config.max_tool_concurrency > 0,
        "tools": any(tool.return_direct or tool.sequential for tool in own),
    }
    if found := next((name for name, there in against.items() if there), None):
        raise UserError(f"agent.streaming_tools: no call can begin early beside agent.{found}; expected one of the two")


async def _team(config: MemberConfig, around: Around, key: str, found: _Found) -> Team | None:
    if not config.sub_agents:
        return None
    place = f"{key}.sub_agents"
    tools, targets = handoff_tools({name: one.description for name, one in config.sub_agents.items()}, place)
    agents = {
        name: await _member(one, name, around, f"{place}.{name}", found) for name, one in config.sub_agents.items()
    }
    told = config.handoffs
    return Team(agents, tools, targets, told.follow, told.max_handoffs, told.filter(f"{key}.handoffs"))


def _shortening(config: ContextConfig, window: int | None) -> Shortening | None:
    reach = config.context_window or window
    rule = None if reach is None else config.value(reach)
    return None if rule is None else Shortening(rule, frozenset(config.when), config.train_summaries)
