"""What a conf may say of an agent: the section `agent`, and each of the agents that it may hand over to."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rollout.agents.approval_section import ApprovalConfig
from rollout.agents.children import ChildrenConfig, PipelineConfig
from rollout.agents.context import ContextConfig
from rollout.agents.conversation_stores import ConversationsConfig
from rollout.agents.guardrails import GuardrailConfig
from rollout.agents.handoffs import HandoffsConfig
from rollout.agents.hooks import HooksConfig
from rollout.agents.instructions import InstructionsConfig
from rollout.agents.mcp_section import McpServerConfig, check_names
from rollout.agents.memory_tools import MemoryConfig
from rollout.agents.model_settings import ModelSettingsConfig
from rollout.agents.retry import RetryConfig
from rollout.agents.skills import SkillsConfig
from rollout.agents.structured import OutputConfig
from rollout.agents.tool_section import ToolConfig
from rollout.errors import nearest
from rollout.external.section import ExternalConfig
from rollout.sections import WHOLE
from rollout.trajectory import Agent, Sampling

Count = Annotated[int, Field(ge=0)]


class MemberConfig(InstructionsConfig, SkillsConfig, ModelSettingsConfig, OutputConfig):
    """One agent."""

    tools: tuple[str | ToolConfig, ...] | None = None
    """Which of the resource's tools it gets, all when none of them is named; functions that are tools; rules for tools.
    """
    parallel_tools: bool = True
    """Several calls of a turn run at once."""
    max_tool_concurrency: Count = 0
    """So many of them at most; 0 is all."""
    max_tool_output: Count = 0
    """Characters of a tool's result that the policy reads; 0 is all."""
    mcp_servers: tuple[McpServerConfig, ...] = ()
    """Servers of the Model Context Protocol whose tools it gets."""
    memory: MemoryConfig | None = None
    """What it remembers; nothing when not given."""
    guardrails: tuple[GuardrailConfig, ...] = ()
    """Checks of inputs, answers and tool calls, in this order."""
    approval: ApprovalConfig = ApprovalConfig()
    """Which calls need whose approval."""
    hooks: HooksConfig = HooksConfig()
    """Functions that are called as it goes along."""
    context: ContextConfig = ContextConfig()
    """What happens when a conversation gets long."""
    sub_agents: dict[str, SubAgentConfig] = Field(default_factory=dict[str, "SubAgentConfig"])
    """Agents it may hand over to, or begin runs of, by name."""
    pipeline: PipelineConfig | None = None
    """It runs its sub_agents in a fixed order instead of making model calls."""
    handoffs: HandoffsConfig = HandoffsConfig()
    """How a run goes on when it hands over."""
    trainable: bool = True
    """Whether its tokens are trained on."""

    _names = field_validator("mcp_servers")(check_names)

    @property
    def chosen(self) -> tuple[str, ...] | None:
        """Names of the resource's tools that the agent gets; None for all."""
        names = tuple(tool for tool in self.tools or () if isinstance(tool, str))
        only = self.tools is not None and len(names) == len(self.tools)
        return names if names or only else None


class SubAgentConfig(MemberConfig):
    """An agent that another one may hand over to, or begin a run of."""

    description: str = ""
    """What it is for, as the one who calls it reads it."""
    use: Literal["handoff", "tool"] = "handoff"
    """Whether it takes the conversation over, or is a tool that plays an episode of its own and answers. The agents of
    a pipeline do neither."""


class AgentConfig(MemberConfig):
    """How the policy is set to work."""

    name: str = "agent"
    retry: RetryConfig | None = None
    """Further attempts at model calls that failed; when not given, model.retries says how many an endpoint gets."""
    sessions: ConversationsConfig | None = None
    """Where conversations are kept that chats go on in and tasks begin with; nowhere when not given."""
    children: ChildrenConfig = ChildrenConfig()
    """What the runs may do that agents begin."""
    external: ExternalConfig | None = None
    """A program that is the agent: it makes the model calls, with tools and instructions of its own."""
    streaming_tools: bool = False
    """A call begins as soon as it is whole, while the policy still samples what comes behind it."""

    def value(self, sampling: Sampling) -> Agent:
        """What of it a plain agent is."""
        words = self.instructions if isinstance(self.instructions, str) else None
        return Agent(self.name, words, self.chosen, sampling)

    @model_validator(mode="after")
    def _has_pipelines_that_can_run(self) -> Self:
        _check_pipelines(self, "agent")
        if self.pipeline is not None and self.sessions is not None:
            line = "agent.sessions: a pipeline makes no model calls; expected one of the two"
            raise PydanticCustomError(WHOLE, line)
        return self

    @model_validator(mode="after")
    def _has_a_program_of_its_own(self) -> Self:
        if self.external is None:
            return self
        own = any(not isinstance(tool, str) for tool in self.tools or ())
        wrong = "tools" if own else "instructions" if not isinstance(self.instructions, str | None) else None
        for name, told in AgentConfig.model_fields.items():
            same = getattr(self, name) == told.get_default(call_default_factory=True)
            wrong = name if name not in _OF_A_PROGRAM and not same else wrong
        if wrong is not None:
            line = "agent.{key}: a program is the agent (agent.external) and knows nothing of it; expected one of them"
            if wrong in ("tools", "instructions"):
                line = "agent.{key}: a program (agent.external) gets the resource's tools by name and a plain text only"
            raise PydanticCustomError(WHOLE, line, {"key": wrong})
        return self

    @model_validator(mode="after")
    def _names_agents_once(self) -> Self:
        if self.name in self.sub_agents:
            line = "agent.sub_agents.{name}: is the name of the agent itself; expected another"
            raise PydanticCustomError(WHOLE, line, {"name": self.name})
        return self


_OF_A_PROGRAM = frozenset({"name", "external", "tools", "instructions", "trainable", "retry", "max_iterations"})
"""Keys that say something where a program is the agent; max_iterations is run.limits.max_turns, where that is given."""
_OF_A_PIPELINE = frozenset({"pipeline", "sub_agents", "handoffs", "max_iterations"})
"""Keys that say something where no model call is made; max_iterations is everybody's (run.limits.max_turns)."""


def _check_pipelines(config: MemberConfig, key: str) -> None:
    """Raises for pipelines of agents there are not, and for one that is told what only a model call could mean."""
    for name, one in config.sub_agents.items():
        if one.pipeline is not None and one.use == "handoff" and config.pipeline is None:
            line = "{key}.sub_agents.{name}.use: a pipeline cannot be handed over to; expected tool"
            raise PydanticCustomError(WHOLE, line, {"key": key, "name": name})
        _check_pipelines(one, f"{key}.sub_agents.{name}")
    if config.pipeline is None:
        return
    for name in config.pipeline.agents:
        if name not in config.sub_agents:
            line = "{key}.pipeline.agents: there is no sub-agent '{name}'{near}"
            near = nearest(name, config.sub_agents)
            raise PydanticCustomError(WHOLE, line, {"key": key, "name": name, "near": near})
    for name, told in MemberConfig.model_fields.items():
        same = getattr(config, name) == told.get_default(call_default_factory=True)
        if name not in _OF_A_PIPELINE and not same:
            line = "{key}.{name}: a pipeline makes no model calls; expected it in one of {key}.sub_agents"
            raise PydanticCustomError(WHOLE, line, {"key": key, "name": name})


MemberConfig.model_rebuild()
