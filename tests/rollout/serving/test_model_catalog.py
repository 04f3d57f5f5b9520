"""One profile, told to clients, to Codex and to our own episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout.agents.section import AgentConfig
from rollout.errors import UserError
from rollout.sections import OpenAIConfig, ScriptedConfig, VllmConfig
from rollout.serving.catalog import (
    ModelProfile,
    ProfileConfig,
    agent_with,
    codex_catalog,
    model_with,
    write_codex_catalog,
)

SECTION: dict[str, Any] = {
    "context": 32_768,
    "max_output": 4096,
    "efforts": ["none", "low", "high"],
    "default_effort": "low",
    "parser": "vllm:hermes+qwen3",
    "parallel_calls": False,
    "instructions": "You write code.",
}
DEMANDED = {
    "slug",
    "display_name",
    "supported_reasoning_levels",
    "shell_type",
    "visibility",
    "supported_in_api",
    "priority",
    "base_instructions",
    "supports_reasoning_summaries",
    "support_verbosity",
    "truncation_policy",
    "supports_parallel_tool_calls",
    "experimental_supported_tools",
}
"""Keys without which Codex refuses a catalog: 0.169.0 as tried, and those that it demanded before (0.148)."""


def section(**changes: Any) -> ProfileConfig:
    return ProfileConfig.model_validate({**SECTION, **changes})


def profile(**changes: Any) -> ModelProfile:
    return section(**changes).value("org/coder", 1000)


def test_what_is_not_said_follows_from_the_model() -> None:
    plain = ProfileConfig().value("tiny", 8192)
    assert (plain.display_name, plain.context, plain.max_output) == ("tiny", 8192, 8192)
    assert (plain.truncation.mode, plain.truncation.limit, plain.truncation.characters) == ("tokens", 10_000, 40_000)
    assert profile(truncation={"mode": "bytes", "limit": 10_000}).truncation.characters == 10_000
    assert ProfileConfig(max_output=9000).value("tiny", 8192).max_output == 8192


def test_codex_gets_every_key_that_it_demands(tmp_path: Path) -> None:
    file = tmp_path / "catalog.json"
    write_codex_catalog(file, [profile(), profile(efforts=[], default_effort=None)])
    catalog = json.loads(file.read_bytes())
    assert catalog == codex_catalog([profile(), profile(efforts=[], default_effort=None)])
    first, second = catalog["models"]
    assert DEMANDED <= first.keys() == second.keys()
    assert not [key for key in DEMANDED if first[key] is None]
    assert first["truncation_policy"] == {"mode": "tokens", "limit": 10_000}
    assert [level["effort"] for level in first["supported_reasoning_levels"]] == ["none", "low", "high"]
    assert (first["default_reasoning_level"], first["supports_reasoning_summaries"]) == ("low", True)
    assert (second["default_reasoning_level"], second["supports_reasoning_summaries"]) == (None, False)
    assert [model["priority"] for model in catalog["models"]] == [0, 1]


def test_codex_is_not_left_without_instructions() -> None:
    with pytest.raises(UserError, match=r"^profile\.instructions: missing for org/coder"):
        codex_catalog([profile(instructions="")])


def test_our_own_episodes_do_as_the_profile_says_where_the_job_says_nothing() -> None:
    agent = agent_with(AgentConfig(), section())
    assert (agent.max_tool_output, agent.parallel_tools, agent.instructions) == (40_000, False, "You write code.")
    assert agent.api_kwargs == {"reasoning_effort": "low", "max_tokens": 4096}
    told = AgentConfig(
        max_tool_output=7, parallel_tools=True, instructions=None, api_kwargs={"reasoning": {}, "max_tokens": 5}
    )
    assert agent_with(told, section()) == told
    assert agent_with(AgentConfig(), ProfileConfig()).api_kwargs == {}


def test_engines_do_as_the_profile_says_where_the_job_says_nothing() -> None:
    vllm = model_with(VllmConfig(), section())
    assert isinstance(vllm, VllmConfig) and (vllm.parser, vllm.max_model_len) == (SECTION["parser"], 32_768)
    own = OpenAIConfig(engine="openai", base_url="http://x/v1", name="y", parser="hermes", max_model_len=9)
    assert model_with(own, section()) == own
    scripted = ScriptedConfig(engine="scripted", turns=("a",))
    assert model_with(scripted, section(parser=None)) == scripted


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"default_effort": "medium"},
            "default_effort is 'medium'; expected one of efforts, which has none, low, high",
        ),
        ({"efforts": []}, "which has nothing"),
        ({"max_output": 32_768}, "max_output is 32768; expected less than context, which is 32768"),
        ({"truncation": {"mode": "lines"}}, "'tokens' or 'bytes'"),
    ],
)
def test_profiles_that_cannot_be_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as raised:
        profile(**changes)
    assert line in str(raised.value)
