"""One request, whichever API it came through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rollout.turn import Json, Message, Sampling, ToolSpec


@dataclass(frozen=True, slots=True)
class Named:
    """The one tool that must be called."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | Named


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are to be drawn. None leaves what the model is served with."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def over(self, served: Sampling, stop: tuple[str, ...]) -> Sampling:
        """The served sampling with what was asked for in its place."""
        return Sampling(
            served.temperature if self.temperature is None else self.temperature,
            served.top_p if self.top_p is None else self.top_p,
            served.top_k if self.top_k is None else max(0, self.top_k),
            stop or served.stop,
            served.seed if self.seed is None else self.seed,
        )

    @property
    def vllm(self) -> dict[str, Json]:
        """The rest, as arguments of vLLM's SamplingParams."""
        names = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What is asked of the model's reasoning. None leaves the model's own way."""

    enabled: bool | None = None
    effort: str | None = None
    budget: int | None = None
    """Reasoning tokens at most."""


@dataclass(frozen=True, slots=True)
class Form:
    """The answer is to be JSON: of this schema, or any object where `schema` is None."""

    schema: Mapping[str, Json] | None = None
    name: str = "answer"
    strict: bool = True

    @property
    def grammar(self) -> dict[str, Json]:
        """Arguments of vLLM's StructuredOutputsParams."""
        return {"json_object": True} if self.schema is None else {"json": self.schema}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that makes sense in itself. Whether the model is served and the prompt fits is the gateway's to say."""

    model: str
    messages: tuple[Message, ...]
    """In our form: text only, the system message first."""
    max_tokens: int | None = None
    """Sampled tokens at most, reasoning included; None leaves what room there is."""
    tools: tuple[ToolSpec, ...] = ()
    left_out: tuple[str, ...] = ()
    """Types of tools that a vendor would run itself: nobody can call them here, so the model is not told of them."""
    tool_choice: ToolChoice = "auto"
    parallel_calls: bool = True
    """Whether a reply may have more than one call."""
    drawing: Drawing = Drawing()
    stop: tuple[str, ...] = ()
    reasoning: Reasoning = Reasoning()
    form: Form | None = None
    grammar: Mapping[str, Json] | None = None
    """Arguments of vLLM's StructuredOutputsParams as they were given."""
    template: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Variables for the chat template as they were given: they go before `reasoning`."""
    stream: bool = False
    include_usage: bool = False
    """A stream of Chat Completions ends with the usage."""
    previous: str | None = None
    """The stored response that `messages` go on from."""
    store: bool = False
    sealed_reasoning: bool = False
    """Reasoning of a response comes back in a field that the client sends again."""
    eager: frozenset[str] = frozenset()
    """Tools whose arguments a client of Messages wants while they are drawn, whole JSON or not."""
    hints: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Keys that say nothing about the answer (`nvext`, `priority`, `cache_salt`, `metadata`, ...), as given."""
    echo: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """What a response repeats of its request, as given."""

    @property
    def offered(self) -> tuple[ToolSpec, ...]:
        """The tools the model is told of: none where it may call none."""
        return () if self.tool_choice == "none" else self.tools

    @property
    def template_variables(self) -> dict[str, Json]:
        """Variables for the chat template: what was asked of the reasoning, under what was given as such."""
        variables: dict[str, Any] = {}
        if self.reasoning.enabled is not None:
            variables["enable_thinking"] = self.reasoning.enabled
        if self.reasoning.effort is not None:
            variables["reasoning_effort"] = self.reasoning.effort
        return {**variables, **self.template}
