"""A job: all sections of its configuration together."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rollout.agents.pricing import CostLimitsConfig, PricingConfig
from rollout.agents.rates import RateConfig
from rollout.agents.section import AgentConfig
from rollout.sections import (
    WHOLE,
    AnyModelConfig,
    DatasetConfig,
    LogsConfig,
    MixedResourceConfig,
    ResourceConfig,
    ResourceName,
    RunConfig,
    SchedulerConfig,
    Section,
    TasksConfig,
)
from rollout.trajectory import Limits


class JobConfig(Section):
    """One job."""

    run: RunConfig
    tasks: TasksConfig = TasksConfig()
    agent: AgentConfig = AgentConfig()
    model: AnyModelConfig
    resource: ResourceConfig | None = None
    """The environment,"""
    resources: Annotated[dict[ResourceName, MixedResourceConfig], Field(min_length=1)] | None = None
    """or several by name, each with its own tasks."""
    scheduler: SchedulerConfig = SchedulerConfig()
    dataset: DatasetConfig = DatasetConfig()
    logs: LogsConfig = LogsConfig()
    pricing: PricingConfig = PricingConfig()
    cost: CostLimitsConfig = CostLimitsConfig()
    rate_limits: dict[str, RateConfig] = Field(default_factory=dict[str, RateConfig])
    """How often models may be asked, by name, by all runners together; `default` is for models without a limit."""

    @model_validator(mode="after")
    def _names_its_environment_once(self) -> Self:
        if self.resources is None and self.resource is None:
            raise PydanticCustomError(WHOLE, "resource: missing; a job needs resource, or resources with several")
        if self.resources is not None and self.resource is not None:
            raise PydanticCustomError(WHOLE, "resources: expected either resource or resources, found both")
        if self.resources is not None and self.tasks != TasksConfig():
            instead = "tasks: each of resources has its own; give resources.{name}.tasks"
            raise PydanticCustomError(WHOLE, instead, {"name": min(self.resources)})
        return self

    @model_validator(mode="after")
    def _has_one_number_of_calls(self) -> Self:
        """Who gives run.limits.max_turns means it: an agent that says nothing makes as many model calls."""
        told, agent = self.run.limits, self.agent
        if "max_turns" in told.model_fields_set and "max_iterations" not in agent.model_fields_set:
            object.__setattr__(self, "agent", agent.model_copy(update={"max_iterations": told.max_turns}))
        return self

    @property
    def limits(self) -> Limits:
        """The bounds of an episode: those of the run, and the agent's own on its model calls."""
        limits, agent = self.run.limits.value(), self.agent
        most = agent.max_iterations + (agent.on_max_iterations == "force_final")
        return limits if agent.sub_agents else replace(limits, max_turns=min(limits.max_turns, most))

    @property
    def environments(self) -> dict[str, MixedResourceConfig]:
        """The environments by name, in the order of their names; the only one of a job has the empty name."""
        if self.resources is not None:
            return dict(sorted(self.resources.items()))
        assert self.resource is not None, "it was validated"
        return {"": MixedResourceConfig(**dict(self.resource), tasks=self.tasks)}
