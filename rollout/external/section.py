"""What a conf says of a program that is an agent: `agent.external`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from pydantic_core import PydanticCustomError

from rollout.errors import UserError
from rollout.sections import PathText, Section

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, Field(min_length=1)]


class ExternalConfig(Section):
    """A program that makes the model calls of an episode: a command, one in a container image, or one elsewhere.

    Texts may have {instruction}, {instructions}, {model}, {workspace}, {home}, {task_id} and {data.KEY} in them; those
    of `env` and `files` also {base_url}, {anthropic_url}, {mcp_url} and {key}, which are never in an argument.
    """

    command: tuple[Text, ...] = ()
    """The program and its arguments; of an image, what it runs instead of its own."""
    image: Text | None = None
    """The container image it runs in,"""
    engine: Literal["docker", "podman"] = "docker"
    """what runs that,"""
    network: Text = "host"
    """the network it is in, from which it has to reach the gateway,"""
    engine_args: tuple[Text, ...] = ()
    """and further arguments of `docker run`."""
    remote: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Or the address of a server that runs it: it is sent the task and answers when the program is done,"""
    bearer_env: EnvName | None = None
    """with the environment variable that holds its bearer token."""
    stdin: bool = False
    """The program reads the instruction from its standard input."""
    env: dict[EnvName, str] = Field(default_factory=dict[str, str])
    """Environment variables with values that are no secrets,"""
    pass_env: tuple[EnvName, ...] = ()
    """and names of those that it gets as they are set here. Of the others it gets PATH and the like alone."""
    api: Annotated[tuple[Literal["openai", "anthropic"], ...], Field(min_length=1)] = ("openai", "anthropic")
    """Whose variables it finds base URL and key in: OPENAI_BASE_URL, OPENAI_API_BASE and OPENAI_API_KEY, or
    ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY."""
    files: dict[Annotated[str, Field(pattern=r"^[^/]")], str] = Field(default_factory=dict[str, str])
    """Files in its home folder, by their paths there: settings that it has no variable for."""
    workspace: PathText | None = None
    """The folder whose copy it works in; an empty one when not given."""
    folder: PathText | None = None
    """Where each episode gets a folder with its workspace and home; the system's place for such when not given."""
    keep: bool = False
    """The folders stay."""
    seconds: PositiveFloat | None = None
    """What it may take; all the time of the episode when not given."""
    kill_seconds: NonNegativeFloat = 5.0
    """How long it may still go on when it is told to end."""
    answer: Literal["last", "printed"] = "last"
    """What its answer is: what the policy said last, or all that the program printed."""
    output_chars: Annotated[int, Field(ge=0)] = 4000
    """Of what it printed last, so much is kept in the row, of its standard output and of its standard error."""
    host: Text = "127.0.0.1"
    """Where the gateway listens; programs elsewhere need one that they reach,"""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """its port, any that is free when 0,"""
    url: Annotated[str, Field(pattern=r"^https?://[^/]+$")] | None = None
    """and how programs reach it where that is not http://HOST:PORT; {port} is its port."""

    @model_validator(mode="after")
    def _is_one_of_three(self) -> Self:
        if self.remote is None and not self.command and self.image is None:
            raise PydanticCustomError("external", "expected command, image or remote, found none")
        if self.remote is not None and (self.command or self.image is not None):
            raise PydanticCustomError("external", "remote runs a program of its own; expected no command and no image")
        if self.bearer_env is not None and self.remote is None:
            raise PydanticCustomError("external", "bearer_env belongs to remote")
        if self.host in ("0.0.0.0", "::") and self.url is None:
            raise PydanticCustomError("external", "host is no address to reach; expected url beside it")
        if any(".." in path.split("/") for path in self.files):
            raise PydanticCustomError("external", "files: expected paths within the home folder")
        return self

    def secrets(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Values of the environment variables it names, by variable. Raises UserError for one that is not set."""
        named = [*self.pass_env, *((self.bearer_env,) if self.bearer_env else ())]
        for variable in named:
            if not environ.get(variable):
                raise UserError(f"agent.external: environment variable {variable} is not set")
        return {variable: environ[variable] for variable in named}
