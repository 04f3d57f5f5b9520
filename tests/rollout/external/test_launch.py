"""Programs in containers and on servers elsewhere, and what a conf may not say of any."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from hosted import CLIENT, PATIENT, play
from pydantic import ValidationError

from rollout.external.section import ExternalConfig
from rollout.trajectory import FailureKind, StopReason

DOCKER = """#!/usr/bin/env python3
import json, os, subprocess, sys
log = {log!r}
with open(log, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "run":
    names = [part for at, part in enumerate(sys.argv) if sys.argv[at - 1] == "--env"]
    folders = [part for at, part in enumerate(sys.argv) if sys.argv[at - 1] == "--volume"]
    env = {{"PATH": os.environ["PATH"], "FOLDERS": " ".join(folders)}}
    for name in names:
        name, equals, value = name.partition("=")
        env[name] = value if equals else os.environ[name]
    image = sys.argv.index("agent:1")
    sys.exit(subprocess.run(sys.argv[image + 1:], env=env, cwd=folders[0].partition(":")[0]).returncode)
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for docker that runs the command here; its log has the arguments of each call, a line."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(DOCKER.format(log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


def calls(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


async def test_a_container_gets_its_folders_and_its_secrets_by_name_alone(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    code = (
        CLIENT + "ask(user('Go.'))\nprint(os.environ['HOME'], os.environ['MY_TOKEN'], os.environ['FOLDERS'], sys.argv)"
    )
    command = ["python3", "-c", code, "{workspace}"]
    played = await play(command, image="agent:1", pass_env=["MY_TOKEN"], engine_args=["--memory", "1g"])
    assert played.trajectory.stop_reason is StopReason.DONE and played.findings == []
    [argv] = calls(docker)
    assert "s3cret" not in json.dumps(argv)
    assert argv[:4] == ["run", "--rm", "--init", "--interactive"]
    assert argv[argv.index("--network") + 1] == "host" and argv[argv.index("--workdir") + 1] == "/rollout/workspace"
    at = argv.index("agent:1")
    assert argv[at - 2 : at] == ["--memory", "1g"] and argv[-1] == "/rollout/workspace"
    names = [part for at, part in enumerate(argv) if argv[at - 1] == "--env"]
    assert {"HOME=/rollout/home", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "MY_TOKEN"} <= set(names)
    printed = next(one.detail["printed"] for one in played.trajectory.events if one.kind == "program")
    assert printed.startswith("/rollout/home [hidden] ") and ":/rollout/home" in printed


async def test_a_container_that_has_to_be_killed_is_killed_by_its_name(docker: Path) -> None:
    command = ["python3", "-c", CLIENT + "ask(user('Go.'))\nimport time; time.sleep(600)"]
    for seconds in PATIENT:
        played = await play(command, image="agent:1", seconds=seconds, kill_seconds=0)
        if played.trajectory.turns:
            break
    assert played.trajectory.stop_reason is StopReason.TIMEOUT
    run, kill = calls(docker)[-2:]
    assert kill == ["kill", run[run.index("--name") + 1]]


@asynccontextmanager
async def elsewhere(answer: Any) -> AsyncGenerator[str]:
    """A server that runs programs: it asks the model once and answers."""

    async def handle(request: web.Request) -> web.Response:
        told = await request.json()
        headers = {"Authorization": f"Bearer {told['key']}"}
        body = {"model": told["model"], "messages": [{"role": "user", "content": told["instruction"]}]}
        if answer is not None:
            async with ClientSession(headers=headers) as client:
                response = await client.post(f"{told['base_url']}/chat/completions", json=body)
                assert response.status == 200
        given = answer if answer is not None else {"error": "no such program"}
        assert request.headers["Authorization"] == "Bearer s3cret-value"
        return web.json_response(given, status=200 if isinstance(given, dict) else 502)

    app = web.Application()
    app.router.add_post("/run", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/run"
    finally:
        await runner.cleanup()


async def test_a_program_elsewhere_is_sent_the_task_and_answers_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVER_TOKEN", "s3cret-value")
    async with elsewhere({"answer": "42"}) as url:
        played = await play(None, remote=url, bearer_env="SERVER_TOKEN", answer="printed")
    assert (played.trajectory.stop_reason, played.trajectory.answer) == (StopReason.DONE, "42")
    assert played.trajectory.messages[0]["content"] == "Add 1 twice, then submit."
    assert played.findings == []
    async with elsewhere(None) as url:
        failure = (await play(None, remote=url, bearer_env="SERVER_TOKEN")).trajectory.failure
    assert failure is not None and failure.kind is FailureKind.AGENT and "no such program" in failure.message
    async with elsewhere([]) as url:
        failure = (await play(None, remote=url, bearer_env="SERVER_TOKEN")).trajectory.failure
    assert failure is not None and "it answered 502" in failure.message


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({}, "expected command, image or remote, found none"),
        ({"command": ["x"], "remote": "http://x"}, "expected no command and no image"),
        ({"command": ["x"], "bearer_env": "X"}, "bearer_env belongs to remote"),
        ({"command": ["x"], "files": {"../x": ""}}, "within the home folder"),
        ({"command": ["x"], "files": {"/x": ""}}, "files"),
        ({"command": ["x"], "host": "0.0.0.0"}, "expected url beside it"),
    ],
)
def test_what_no_program_can_be_is_said(section: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ExternalConfig.model_validate(section)
