"""The section `agent` as a whole: its defaults, its schema in docs/, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rollout.agents.loading import is_plain, located
from rollout.agents.section import AgentConfig
from rollout.config import JobConfig
from scripts.agent_schema import FILE, schema  # noqa: TID251 - the file that it writes is tested

JOB = {
    "run": {"dir": "x"},
    "model": {"engine": "openai", "base_url": "http://x/v1", "name": "m"},
    "resource": {"name": "r"},
}


def test_the_schema_in_the_documentation_is_that_of_the_code() -> None:
    assert FILE.read_text() == schema(), "python -m scripts.agent_schema writes it"


def test_an_agent_that_says_nothing_has_the_defaults_of_nimble_agents() -> None:
    agent = AgentConfig()
    assert (agent.max_iterations, agent.on_max_iterations, agent.max_tool_output) == (10, "stop", 0)
    assert (agent.approval.timeout, agent.handoffs.max_handoffs, agent.max_parse_retries) == (300.0, 10, 2)
    assert (agent.context.compact_threshold, agent.context.keep_last) == (0.8, 20)
    assert (agent.tools, agent.memory, agent.retry, agent.output_schema) == (None, None, None, None)
    assert agent.trainable
    assert is_plain(agent)


@pytest.mark.parametrize(
    "section",
    [
        {"max_tool_output": 10},
        {"tools": [{"name": "add", "retries": 1}]},
        {"instructions": {"template": "x"}},
        {"on_max_iterations": "force_final"},
        {"memory": {}},
    ],
)
def test_an_agent_that_says_more_is_not_plain(section: dict[str, object]) -> None:
    assert not is_plain(AgentConfig.model_validate(section))


def test_one_number_of_model_calls_is_meant_for_the_agent_too() -> None:
    of = lambda **more: JobConfig.model_validate({**JOB, **more}).limits.max_turns  # noqa: E731
    assert of() == 10
    assert of(run={"dir": "x", "limits": {"max_turns": 30}}) == 30
    assert of(run={"dir": "x", "limits": {"max_turns": 30}}, agent={"max_iterations": 5}) == 5
    assert of(agent={"max_iterations": 5, "on_max_iterations": "force_final"}) == 6
    again = JobConfig.model_validate({**JOB, "run": {"dir": "x", "limits": {"max_turns": 30}}}).model_dump()
    assert JobConfig.model_validate(again).limits.max_turns == 30, "as it is kept with the run"


def test_files_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("")
    Path("skill").mkdir()
    agent = AgentConfig.model_validate(
        {
            "hooks": {"on_stop": "own.py:f", "on_error": "elsewhere:f"},
            "guardrails": [{"name": "own.py", "check": "own.py:g"}],
            "skill_dirs": ["skill"],
            "instructions": "own.py",
            "memory": {"service": "sqlite", "path": "runs/not_yet.sqlite"},
        }
    )
    found = located(agent)
    assert found.hooks.on_stop == f"{tmp_path}/own.py:f"
    assert found.hooks.on_error == "elsewhere:f"
    assert (found.guardrails[0].name, found.guardrails[0].check) == ("own.py", f"{tmp_path}/own.py:g")
    assert found.skill_dirs == (f"{tmp_path}/skill",)
    assert found.instructions == "own.py", "words are words"
    assert found.memory is not None
    assert found.memory.path == f"{tmp_path}/runs/not_yet.sqlite", "it need not be there yet"


def test_two_agents_have_two_names() -> None:
    with pytest.raises(ValidationError, match="sub_agents"):
        AgentConfig.model_validate({"name": "a", "sub_agents": {"a": {}}})
