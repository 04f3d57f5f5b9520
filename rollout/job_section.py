"""A job: all sections of its configuration together."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rollout.agents.pricing import CostLimitsConfig, PricingConfig
from rollout.agents.rates import RateConfig
from rollout.agents.section import AgentConfig
from rollout.errors import UserError
from rollout.gateway.section import GatewayConfig
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
from rollout.serving.catalog import ProfileConfig, agent_with, model_with
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
    """or several by name, each with its own tasks. A job that has a gateway needs none to serve its model."""
    scheduler: SchedulerConfig = SchedulerConfig()
    dataset: DatasetConfig = DatasetConfig()
    logs: LogsConfig = LogsConfig()
    pricing: PricingConfig = PricingConfig()
    cost: CostLimitsConfig = CostLimitsConfig()
    rate_limits: dict[str, RateConfig] = Field(default_factory=dict[str, RateConfig])
    """How often models may be asked, by name, by all runners together; `default` is for models without a limit."""
    profile: ProfileConfig | None = None
    """The model as those see it who use it. The job's own episodes do as it says where their sections say nothing."""
    gateway: GatewayConfig | None = None
    """Where programs reach the model: `rollout serve`."""

    @model_validator(mode="after")
    def _names_its_environment_once(self) -> Self:
        if self.resources is None and self.resource is None and self.gateway is None:
            raise PydanticCustomError(WHOLE, "resource: missing; a job needs resource, or resources with several")
        if self.resources is not None and self.resource is not None:
            raise PydanticCustomError(WHOLE, "resources: expected either resource or resources, found both")
        if self.resources is not None and self.tasks != TasksConfig():
            instead = "tasks: each of resources has its own; give resources.{name}.tasks"
            raise PydanticCustomError(WHOLE, instead, {"name": min(self.resources)})
        return self

    @model_validator(mode="after")
    def _does_as_its_profile_says(self) -> Self:
        if self.profile is not None:
            object.__setattr__(self, "agent", agent_with(self.agent, self.profile))
            object.__setattr__(self, "model", model_with(self.model, self.profile))
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
        if agent.sub_agents or agent.external is not None:
            return limits
        return replace(limits, max_turns=min(limits.max_turns, most))

    @property
    def environments(self) -> dict[str, MixedResourceConfig]:
        """The environments by name, in the order of their names; the only one of a job has the empty name.

        Raises UserError for a job that has none: it is one to be served.
        """
        if self.resources is not None:
            return dict(sorted(self.resources.items()))
        if self.resource is None:
            raise UserError("resource: missing; without one a job has a model to serve and nothing to run")
        return {"": MixedResourceConfig(**dict(self.resource), tasks=self.tasks)}
