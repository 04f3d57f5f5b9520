"""How a job says that its model is served to programs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from rollout.parsing import Keep
from rollout.sections import PathText, Section
from rollout.serving.hints import HintsConfig
from rollout.serving.prefixes import PrefixesConfig


class ResponsesConfig(Section):
    """Responses that requests may go on from."""

    path: PathText | None = None
    """SQLite file that keeps them beyond the end of the server; they are in memory and end with it when not given."""
    keep_hours: PositiveFloat = 24.0
    """A conversation that nobody went on with for so long is forgotten."""


class DispatchConfig(Section):
    """What streams of Chat Completions tell beside their chunks."""

    tool_calls: bool = False
    """Every call as soon as it is whole, in an event of its own."""
    reasoning: bool = False
    """Every block of reasoning as soon as it is over."""


class GatewayConfig(Section):
    """Where programs reach the model, and what they may ask."""

    host: str = "127.0.0.1"
    """Where to listen; elsewhere than on loopback needs key_env."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes one that is free."""
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable with the key that requests have to bring."""
    name: str = ""
    """What the model is called; model.path when not given."""
    any_name: bool = False
    """Requests get the model whatever name they ask for."""
    replicas: PositiveInt = 1
    """Processes that listen, all on the same port."""
    cpus_per_replica: Annotated[float, Field(ge=0)] = 0.1
    body_mib: PositiveFloat = 32.0
    """A larger request is refused."""
    seconds: PositiveFloat = 600.0
    """How long a request may take, and how long its body may take to come."""
    slow_seconds: PositiveFloat = 30.0
    """A client that does not read for so long is cut off, and its request ends."""
    ping_seconds: PositiveFloat = 10.0
    """A stream says something at least so often, lest the connection is taken for dead."""
    drain_seconds: Annotated[float, Field(ge=0)] = 10.0
    """How long requests may go on when the server is told to end."""
    reasoning_key: Annotated[str, Field(pattern="^reasoning(_content)?$")] = "reasoning_content"
    """Where streams of Chat Completions tell reasoning: `reasoning` for clients of newer vLLM."""
    earlier_reasoning: Keep = "keep"
    """Which reasoning of earlier turns a prompt shows, as far as the chat template does."""
    prefixes: PrefixesConfig = PrefixesConfig()
    hints: HintsConfig = HintsConfig()
    dispatch: DispatchConfig = DispatchConfig()
    responses: ResponsesConfig = ResponsesConfig()
