"""A job that is served: its sections, the shipped example and Codex's catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from refused import NOBODY, Refused

from rollout.config import find_conf, load, validate
from rollout.errors import UserError

JOB: dict[str, Any] = {"run": {"dir": "runs/x"}, "model": {"path": "bundled"}}


def test_the_shipped_example_is_a_job() -> None:
    config = load(find_conf("serve"))
    assert config.gateway is not None and config.profile is not None
    assert (config.gateway.host, config.gateway.key_env, config.gateway.port) == ("127.0.0.1", None, 8000)
    assert [rule if isinstance(rule, str) else rule.name for rule in config.gateway.prefixes.rules] == [
        "billing_header",
        "times",
    ]
    # Its own episodes do as its profile says.
    assert config.agent.api_kwargs == {"max_tokens": 512} and config.agent.instructions == config.profile.instructions


def test_a_job_needs_an_environment_or_a_gateway() -> None:
    assert validate({**JOB, "gateway": {}}, "job").gateway is not None
    with pytest.raises(UserError, match="a job needs resource"):
        validate(JOB, "job")
    with pytest.raises(UserError, match="resource: missing; without one a job has a model to serve"):
        _ = validate({**JOB, "gateway": {}}, "job").environments


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"gateway": {"prefixes": {"rules": ["billing"]}}},
            "there is no rule 'billing'; did you mean 'billing_header'?",
        ),
        ({"gateway": {"prot": 1}}, "gateway.prot: unknown key; did you mean 'port'?"),
        ({"gateway": {"port": 70_000}}, "gateway.port"),
        ({"gateway": {"key_env": "my key"}}, "gateway.key_env"),
        ({"gateway": {"reasoning_key": "thoughts"}}, "gateway.reasoning_key"),
        ({"gateway": {}, "profile": {"max_output": 9, "context": 5}}, "max_output is 9; expected less than context"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as raised:
        validate({**JOB, **changes}, "job")
    assert line in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["gateway.host=0.0.0.0"], "gateway.host: 0.0.0.0 can be reached by others"),
        (["gateway.host=192.0.2.1", "gateway.key_env=KEY"], "gateway.host: 192.0.2.1:8000: "),
        (["gateway.key_env=NO_SUCH_KEY"], "gateway.key_env: the environment variable NO_SUCH_KEY is not set"),
        (["profile.context=99999"], "model.max_model_len: 99999 is more than"),
        (["model.parser=hermez"], "model.parser: expected a format of our own"),
        (["gateway.responses.path=none/there.sqlite"], "gateway.responses.path: none/there.sqlite"),
    ],
)
def test_what_keeps_a_server_from_starting_is_one_line(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.setenv("KEY", "sesame")
    assert line in refused("serve", "serve", *arguments, "--address", NOBODY)


def test_a_job_that_is_only_served_cannot_be_run(refused: Refused) -> None:
    assert "resource: missing; without one a job has a model to serve" in refused("run", "serve", "--address", NOBODY)


def test_codex_is_told_of_the_model(refused: Refused, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from rollout.cli import main

    file = tmp_path / "models.json"
    done = CliRunner().invoke(main, ["serve", "serve", "gateway.name=org/tiny", "--codex-catalog", str(file)])
    assert done.exit_code == 0, done.output
    [entry] = json.loads(file.read_bytes())["models"]
    assert (entry["slug"], entry["truncation_policy"]) == ("org/tiny", {"mode": "tokens", "limit": 10_000})
    line = refused("serve", "serve", "profile.instructions=''", "--codex-catalog", str(file))
    assert line.startswith("profile.instructions: missing for bundled")
