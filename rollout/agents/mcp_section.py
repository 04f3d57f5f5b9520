"""What a configuration says of a server of the Model Context Protocol (MCP)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator
from pydantic_core import PydanticCustomError

from rollout.errors import UserError
from rollout.sections import WHOLE, Section

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class McpServerConfig(Section):
    """A server whose tools the policy gets: a program that is started, or an address."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    """What it is called here; its tools begin with it."""
    command: Annotated[str, Field(min_length=1)] | None = None
    """The program, which speaks over its standard input and output,"""
    args: tuple[str, ...] = ()
    """with its arguments,"""
    env: dict[EnvName, str] = Field(default_factory=dict[str, str])
    """environment variables with values that are no secrets,"""
    pass_env: tuple[EnvName, ...] = ()
    """and names of those that it gets as they are set here. Of the others it gets HOME, PATH and the like alone."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Or the address of a server that speaks streamable HTTP,"""
    headers: dict[str, str] = Field(default_factory=dict[str, str])
    """with headers that are no secrets,"""
    headers_env: dict[str, EnvName] = Field(default_factory=dict[str, str])
    """headers whose values are in environment variables,"""
    bearer_env: EnvName | None = None
    """or the variable that holds a bearer token."""
    timeout: PositiveFloat = 60.0
    """Seconds to start, connect and list the tools in."""
    required: bool = True
    """No episode is played without it; otherwise one goes on without its tools, which changes the environment."""
    lifetime: Literal["rollout", "worker"] = "rollout"
    """One for each episode, or one for all episodes of a process, for servers that keep no state."""
    tool_filter: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Which of its tools: names as the server has them, or patterns with *; all when not given."""
    prefix: bool = True
    """The policy calls tool T of server S `S__T`; else `T`."""
    max_restarts: Annotated[int, Field(ge=0)] = 1
    """Further tries to connect, in an episode; a server that keeps state is not connected to again once it was lost."""

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.command is None) == (self.url is None):
            found = "neither" if self.command is None else "both"
            raise PydanticCustomError("mcp", "expected either command or url, found {found}", {"found": found})
        wrong = ("headers", "headers_env", "bearer_env") if self.url is None else ("args", "env", "pass_env")
        for key in wrong:
            if getattr(self, key):
                other = "url" if self.url is None else "command"
                raise PydanticCustomError("mcp", "{key} belongs to a server with {other}", {"key": key, "other": other})
        return self

    def secrets(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Values of the environment variables it names, by variable.

        Raises UserError for one that is not set.
        """
        named = [*self.pass_env, *self.headers_env.values(), *((self.bearer_env,) if self.bearer_env else ())]
        for variable in named:
            if not environ.get(variable):
                raise UserError(f"mcp_servers.{self.name}: environment variable {variable} is not set")
        return {variable: environ[variable] for variable in named}


def check_names(servers: tuple[McpServerConfig, ...]) -> tuple[McpServerConfig, ...]:
    """The servers, for a validator of the section that has them: no two may have one name."""
    names = [server.name for server in servers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PydanticCustomError(WHOLE, "mcp_servers: two are called '{name}'", {"name": twice})
    return servers
