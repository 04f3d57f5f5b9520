"""What is known of each model that is served, in one place: for `/v1/models`, for Codex and for our own episodes.

Programs look a model up by its name. Codex takes tools, reasoning and how much of a tool's output it keeps from a
catalog, and falls back to something poor for a name that it does not know; so it is given a catalog of ours
(`model_catalog_json` in its configuration, a file in the form of its `ModelsResponse`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from rollout.agents.section import AgentConfig
from rollout.errors import UserError
from rollout.sections import AnyModelConfig, OpenAIConfig, Section, VllmConfig

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

_CHARACTERS = 4
"""Characters for a token, as Codex reckons."""
_WORDS: Mapping[Effort, str] = {
    "none": "No reasoning",
    "minimal": "Hardly any reasoning",
    "low": "Quick answers",
    "medium": "For everyday tasks",
    "high": "For hard tasks",
    "xhigh": "For the hardest tasks",
}


class TruncationConfig(Section):
    """How much of a tool's output a model reads."""

    mode: Literal["tokens", "bytes"] = "tokens"
    limit: PositiveInt = 10_000

    def value(self) -> Truncation:
        """As it is applied."""
        return Truncation(self.mode, self.limit)


class ProfileConfig(Section):
    """A model as those see it who use it."""

    display_name: str = ""
    """What people read; the model's name when not given."""
    description: str = ""
    context: PositiveInt | None = None
    """Tokens the model reaches; model.max_model_len when not given."""
    max_output: PositiveInt | None = None
    """Tokens it samples in a turn at most; whatever the context has room for when not given."""
    truncation: TruncationConfig = TruncationConfig()
    """How much of a tool's output it reads."""
    efforts: tuple[Effort, ...] = ()
    """How much it can be told to reason; nothing when it cannot be told."""
    default_effort: Effort | None = None
    """How much it reasons when it is not told."""
    parser: str | None = None
    """How reasoning and tool calls are read from its text, as in model.parser."""
    parallel_calls: bool = True
    """It makes several tool calls in a turn."""
    instructions: str = ""
    """What programs tell it first that have no instructions of their own for a model of a catalog."""

    @model_validator(mode="after")
    def _can_do_what_it_does(self) -> Self:
        if self.default_effort is not None and self.default_effort not in self.efforts:
            known = ", ".join(self.efforts) or "nothing"
            line = "default_effort is '{effort}'; expected one of efforts, which has {known}"
            raise PydanticCustomError("effort", line, {"effort": self.default_effort, "known": known})
        if self.context is not None and self.max_output is not None and self.max_output >= self.context:
            line = "max_output is {output}; expected less than context, which is {context}"
            raise PydanticCustomError("output", line, {"output": self.max_output, "context": self.context})
        return self

    def value(self, name: str, context: int) -> ModelProfile:
        """The profile of the model `name`, which reaches `context` tokens where the section says nothing."""
        reaches = self.context or context
        return ModelProfile(
            name=name,
            display_name=self.display_name or name,
            description=self.description,
            context=reaches,
            max_output=min(self.max_output or reaches, reaches),
            truncation=self.truncation.value(),
            efforts=self.efforts,
            default_effort=self.default_effort,
            parser=self.parser,
            parallel_calls=self.parallel_calls,
            instructions=self.instructions,
        )


@dataclass(frozen=True, slots=True)
class Truncation:
    """How much of a tool's output a model reads."""

    mode: Literal["tokens", "bytes"]
    limit: int

    @property
    def characters(self) -> int:
        """About as many characters: a byte is one, a token four."""
        return self.limit * (_CHARACTERS if self.mode == "tokens" else 1)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """One served model. Sizes are in tokens."""

    name: str
    display_name: str
    description: str
    context: int
    max_output: int
    truncation: Truncation
    efforts: tuple[Effort, ...]
    default_effort: Effort | None
    parser: str | None
    parallel_calls: bool
    instructions: str


def codex_catalog(profiles: Sequence[ModelProfile]) -> dict[str, Any]:
    """The catalog that Codex reads from the file that its `model_catalog_json` names.

    The form is that of `ModelsResponse` in codex-rs/protocol/src/openai_models.rs: every key that some version demands
    is there. Codex tells a model of a catalog the instructions that stand in it and never its own; so a profile without
    any is refused with a UserError.
    """
    if (bare := next((profile.name for profile in profiles if not profile.instructions), None)) is not None:
        raise UserError(
            f"profile.instructions: missing for {bare}; Codex has no others for it (see `codex debug models`)"
        )
    return {"models": [_codex_model(profile, number) for number, profile in enumerate(profiles)]}


def write_codex_catalog(path: Path, profiles: Sequence[ModelProfile]) -> None:
    """Writes the catalog as JSON. Raises UserError as `codex_catalog` does, OSError as a file does."""
    path.write_text(json.dumps(codex_catalog(profiles), indent=1, ensure_ascii=False) + "\n", "utf-8")


def agent_with(agent: AgentConfig, profile: ProfileConfig) -> AgentConfig:
    """The agent of our own episodes with what the profile says, wherever the job itself says nothing."""
    said = agent.model_fields_set
    kwargs = dict(agent.api_kwargs)
    if profile.default_effort is not None and not {"reasoning_effort", "reasoning"} & kwargs.keys():
        kwargs["reasoning_effort"] = profile.default_effort
    if profile.max_output is not None:
        kwargs.setdefault("max_tokens", profile.max_output)
    changes: dict[str, Any] = {
        "max_tool_output": profile.truncation.value().characters,
        "parallel_tools": profile.parallel_calls,
        "instructions": profile.instructions or None,
    }
    told = {key: value for key, value in changes.items() if key not in said}
    return agent.model_copy(update={**told, "api_kwargs": kwargs})


def model_with(model: AnyModelConfig, profile: ProfileConfig) -> AnyModelConfig:
    """The engine of our own episodes with what the profile says, wherever the job itself says nothing."""
    said = model.model_fields_set
    changes: dict[str, Any] = {}
    if profile.parser is not None and "parser" not in said:
        changes["parser"] = profile.parser
    if profile.context is not None and isinstance(model, VllmConfig | OpenAIConfig) and "max_model_len" not in said:
        changes["max_model_len"] = profile.context
    return model.model_copy(update=changes)


def _codex_model(profile: ModelProfile, number: int) -> dict[str, Any]:
    efforts = [{"effort": effort, "description": _WORDS[effort]} for effort in profile.efforts]
    return {
        "slug": profile.name,
        "display_name": profile.display_name,
        "description": profile.description or None,
        "default_reasoning_level": profile.default_effort,
        "supported_reasoning_levels": efforts,
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": number,
        "upgrade": None,
        "base_instructions": profile.instructions,
        "supports_reasoning_summaries": bool(efforts),
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": None,
        "truncation_policy": {"mode": profile.truncation.mode, "limit": profile.truncation.limit},
        "supports_parallel_tool_calls": profile.parallel_calls,
        "context_window": profile.context,
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
    }
