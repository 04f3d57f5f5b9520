"""How a conf says which functions are tools, and how tools are used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator
from pydantic_core import PydanticCustomError

from rollout.agents.tool_rules import ToolRule
from rollout.errors import UserError
from rollout.sections import Section


class ToolConfig(Section):
    """One tool: a function that becomes one, or rules for one that there is."""

    ref: str | None = None
    """A function, `module:function` or `file.py:function`,"""
    name: str | None = None
    """or the name of a tool of the resource, of an MCP server or of another part of the agent."""
    return_direct: bool = False
    """Its answer, if it is no error, is the agent's answer and ends the run."""
    sequential: bool = False
    """It runs alone: behind the calls before it, before those behind it."""
    timeout: PositiveFloat | None = None
    """Seconds a call may take; run.limits.tool_seconds when not given."""
    max_output: Annotated[int, Field(ge=0)] | None = None
    """Characters of a result that the policy reads; 0 is all; the agent's max_tool_output when not given."""
    on_error: Literal["feed_back", "infra_error"] = "feed_back"
    """Whether a tool that crashed or gave no answer in time is told to the policy, or fails the episode."""
    retries: Annotated[int, Field(ge=0)] | None = None
    """Errors in a row that the policy may answer with another try; any number when not given."""

    @model_validator(mode="after")
    def _is_one_tool(self) -> Self:
        if (self.ref is None) == (self.name is None):
            raise PydanticCustomError("tool", "expected either ref or name")
        return self

    @property
    def called(self) -> str:
        """The tool's name as the policy knows it."""
        return self.name if self.name is not None else (self.ref or "").rpartition(":")[2]

    def value(self) -> ToolRule:
        """As the tool box takes it."""
        return ToolRule(**self.model_dump(exclude={"ref", "name"}))


def rules(tools: Iterable[ToolConfig], key: str = "agent.tools") -> dict[str, ToolRule]:
    """The rules by tool. Raises UserError for a tool that is named twice."""
    found: dict[str, ToolRule] = {}
    for tool in tools:
        if tool.called in found:
            raise UserError(f"{key}: '{tool.called}' is named twice; expected one entry for each tool")
        found[tool.called] = tool.value()
    return found
