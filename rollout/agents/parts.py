"""An agent as it is loaded: all of it that the episodes of a job share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rollout.agents.approval import Approvals
from rollout.agents.children import ChildrenConfig
from rollout.agents.context import ContextRule
from rollout.agents.functions import FunctionTools
from rollout.agents.guardrails import Guardrails
from rollout.agents.handoffs import HistoryFilter
from rollout.agents.hooks import Hooks
from rollout.agents.instructions import Instructions
from rollout.agents.memory_tools import Memories
from rollout.agents.model_settings import ModelSettings
from rollout.agents.pricing import Prices, Usage
from rollout.agents.skills import Skills
from rollout.agents.structured import Output
from rollout.agents.tool_rules import ToolRule
from rollout.trajectory import Agent, Extras, Json, ToolSpec, Turn

if TYPE_CHECKING:
    from rollout.agents.mcp_tools import McpServers


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
    variables: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Of the chat template, where prompts are rendered here: the same for all agents of an episode."""
    budget: Budget | None = None
    team: Team | None = None
    """The agents it may hand over to."""
    crew: Crew | None = None
    """The agents it may begin runs of,"""
    pipeline: Pipeline | None = None
    """which it does in a fixed order where it makes no model calls itself."""

    @property
    def extras(self) -> Extras:
        """What its model calls ask for where nothing else is asked of them."""
        return Extras(self.settings.body, self.settings.vllm, None, self.settings.max_tokens)

    @property
    def goes_on(self) -> bool:
        """Whether an episode may go on behind the turns that an earlier attempt has left.

        All between the model's answers is done again then, so it must change nothing outside of the episode and come
        to the same. Hooks, guardrails and filters are a person's own code, memories are written, servers have a state;
        a recorded answer of a tool ends no run. Runs of other agents are not on the episode's own record.
        """
        if self.crew is not None:
            return False
        own = self.guardrails is not None or self.memories is not None or self.servers is not None
        if own or (self.hooks is not None and set(self.hooks.functions) != {"should_interrupt"}):
            return False
        if any(rule.return_direct for rule in self.rules.values()):
            return False
        return self.team is None or self.team.goes_on

    @property
    def patience(self) -> float:
        """Seconds that a person may take to answer for a turn; 0 where nobody is asked."""
        own = self.approvals.timeout if self.approvals is not None and self.approvals.by_people else 0.0
        return max([own, *(one.patience for one in self.team.agents.values())]) if self.team is not None else own


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
    own_filter: bool = False
    """That is a function of a person's."""

    @property
    def goes_on(self) -> bool:
        """Whether all of them may go on behind recorded turns."""
        return not self.own_filter and all(one.goes_on for one in self.agents.values())


@dataclass(frozen=True, slots=True)
class Crew:
    """Agents that a run may begin as children. Their own crews are found through them."""

    agents: Mapping[str, Parts]
    purposes: Mapping[str, str]
    """What each is for."""
    rules: ChildrenConfig


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Agents of the crew, one after the other."""

    agents: tuple[str, ...]
    rounds: int = 1
    stop_when: Callable[..., Any] | None = None
    """(agent that has just run, its answer) -> whether that is the end."""
    max_handoffs: int = 10
    """How often a stage may hand over to another agent of the crew."""
