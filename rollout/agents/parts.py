"""An agent as it is loaded: all of it that the episodes of a job share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rollout.agents.approval import Approvals
from rollout.agents.context import ContextRule
from rollout.agents.functions import FunctionTools
from rollout.agents.guardrails import Guardrails
from rollout.agents.handoffs import HistoryFilter
from rollout.agents.hooks import Hooks
from rollout.agents.instructions import Instructions
from rollout.agents.mcp_tools import McpServers
from rollout.agents.memory_tools import Memories
from rollout.agents.model_settings import ModelSettings
from rollout.agents.pricing import Prices, Usage
from rollout.agents.skills import Skills
from rollout.agents.structured import Output
from rollout.agents.tool_rules import ToolRule
from rollout.trajectory import Agent, Extras, ToolSpec, Turn


@dataclass(frozen=True, slots=True)
class Shortening:
    """When a conversation that gets long is shortened, and what becomes of the summaries that the policy writes."""

    rule: ContextRule
    at: frozenset[str]
    """`run_start`, `before_call` or both."""
    train_summaries: bool = False


@dataclass(frozen=True, slots=True)
class Budget:
    """What an episode may cost."""

    prices: Prices
    model: str
    """As prices and rows name it."""
    episode_usd: float | None = None

    def used(self, turns: Sequence[Turn]) -> Usage:
        """What the model calls of these turns took."""
        return sum((self.prices.usage(self.model, turn.completion) for turn in turns), Usage())


@dataclass(frozen=True, slots=True)
class Parts:
    """One agent. What it shares with others of its job (memories, MCP servers) is closed by whoever opened it."""

    agent: Agent
    """Its name, its sampling, and which of the resource's tools it gets."""
    settings: ModelSettings
    instructions: Instructions | None = None
    """None leaves them to the resource."""
    functions: FunctionTools | None = None
    rules: Mapping[str, ToolRule] = field(default_factory=dict[str, ToolRule])
    parallel: bool = True
    early: float | None = None
    """Calls begin while the policy still samples, each for so many seconds at most; None makes them behind it."""
    max_concurrency: int = 0
    max_output: int = 0
    hooks: Hooks | None = None
    guardrails: Guardrails | None = None
    approvals: Approvals | None = None
    output: Output | None = None
    shortening: Shortening | None = None
    skills: Skills | None = None
    memories: Memories | None = None
    servers: McpServers | None = None
    max_iterations: int | None = None
    """Model calls in a run; None leaves it to the limits of the episode."""
    force_final: bool = False
    """After them it gets one last call, its tools off."""
    trainable: bool = True
    budget: Budget | None = None
    team: Team | None = None
    """The agents it may hand over to."""

    @property
    def extras(self) -> Extras:
        """What its model calls ask for where nothing else is asked of them."""
        return Extras(self.settings.body, self.settings.vllm, None, self.settings.max_tokens)


@dataclass(frozen=True, slots=True)
class Team:
    """Agents that a run may be handed over to. Their own teams are found through them."""

    agents: Mapping[str, Parts]
    tools: tuple[ToolSpec, ...]
    """One for each of them."""
    targets: Mapping[str, str]
    """Names of agents by their tools'."""
    follow: bool = True
    max_handoffs: int = 10
    kept: HistoryFilter = list
    """What the next agent sees of what was said before."""
