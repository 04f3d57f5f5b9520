"""How a conf says which tool calls need whose approval."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rollout.agents.decisions import decision
from rollout.sections import Section

Approver = Literal["auto", "deny", "scripted", "function", "model", "human"]


class PolicyConfig(Section):
    """Who decides about some calls. The first policy of an agent that fits a call is the one that counts."""

    tools: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    """Names of tools, with * and ? for any characters."""
    when: str | None = None
    """A function (tool_name, arguments) that says whether the policy fits this call; it fits all when not given."""
    approver: Approver = "auto"
    """auto approves, deny does not; scripted replies from `script`; a function, a model or a person is asked."""
    message: str = "not permitted"
    """What the policy is told by `deny`."""
    script: tuple[str | dict[str, Any], ...] = ()
    """Replies of `scripted` in turn 0, 1, ...; the last one repeats."""
    function: str | None = None
    """The function of approver function: it is given the request and returns a decision."""
    instructions: str | None = None
    """What the model of approver model is told to look at."""

    @field_validator("script")
    @classmethod
    def _are_decisions(cls, script: tuple[Any, ...]) -> tuple[Any, ...]:
        for reply in script:
            decision(reply)
        return script

    @model_validator(mode="after")
    def _has_what_its_approver_needs(self) -> Self:
        if self.approver == "scripted" and not self.script:
            raise PydanticCustomError("policy", "approver scripted: expected a script")
        if self.approver == "function" and self.function is None:
            raise PydanticCustomError("policy", "approver function: expected a function")
        return self


class ApprovalConfig(Section):
    """Which tool calls need approval before they are made. A call that no policy fits is made."""

    timeout: PositiveFloat = 300.0
    """Seconds until a call counts as not approved."""
    on_timeout: Literal["deny", "abort"] = "deny"
    """Whether the policy is then told so, or the run ends."""
    policies: tuple[PolicyConfig, ...] = ()
    """In order."""
