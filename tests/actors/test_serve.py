"""`rollout serve` on a cluster: clients of three APIs, two gateways on one port, and the end in order."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anthropic
import httpx
import openai
import psutil
import pytest
from ray_jobs import Head, end, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

CONF = """
run: {{dir: {folder}/run}}
model:
  engine: scripted
  cpus_per_replica: 0.5
  latency_seconds: {latency}
  max_in_flight: {places}
  turns: ["{line}", "Again.", "And again."]
gateway: {{port: 0, replicas: 2, name: org/small, drain_seconds: 2, key_env: ENDPOINT_KEY}}
"""
WORDS = "one two three four five six seven eight nine ten " * 5
LONG = 15.0
"""Seconds that the model takes over its words."""
PLACE = re.compile(r"org/small is served at (http://127\.0\.0\.1:\d+)\n")


class Server:
    """A running `rollout serve`."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, key: str) -> None:
        self.process, self.out, self.key = process, out, key
        self.url = until(self._place, f"it is served: {out}")

    def _place(self) -> str | None:
        assert self.process.poll() is None, self.said()
        found = PLACE.search(self.said())
        return found[1] if found else None

    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def client(self) -> httpx.Client:
        """One that connects anew for each request."""
        headers = {"authorization": f"Bearer {self.key}", "connection": "close"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)


@contextmanager
def server(head: Head, folder: Path, line: str, latency: float = 0.0, places: int = 64) -> Iterator[Server]:
    (folder / "serve.yaml").write_text(CONF.format(folder=folder, line=line, latency=latency, places=places))
    out = folder / "out.log"
    command = [sys.executable, "-m", "rollout", "serve", str(folder / "serve.yaml"), "--address", head.address]
    with out.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=head.env, start_new_session=True)
    try:
        yield Server(process, out, head.env["ENDPOINT_KEY"])
    finally:
        end(process)


def test_a_model_is_served(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with server(head, tmp_path, "Hello.") as one:
        ask: list[dict[str, str]] = [{"role": "user", "content": "Good day."}]
        with openai.OpenAI(base_url=f"{one.url}/v1", api_key=one.key, max_retries=0) as gpt:
            said = gpt.chat.completions.create(model="org/small", messages=ask)  # type: ignore[arg-type]
            assert said.choices[0].message.content == "Hello."
            stream = gpt.responses.create(model="org/small", input="Good day.", stream=True)
            assert [event for event in stream][-1].type == "response.completed"
            assert gpt.models.retrieve("org/small").id == "org/small"
        with anthropic.Anthropic(base_url=one.url, api_key=one.key, max_retries=0) as claude:
            asked = {"model": "org/small", "max_tokens": 50, "messages": ask}
            told = claude.messages.create(**asked)  # type: ignore[call-overload]
            counted = claude.messages.count_tokens(model="org/small", messages=ask)  # type: ignore[arg-type]
            assert told.content[0].text == "Hello." and told.usage.input_tokens == counted.input_tokens
        with one.client() as client:
            assert client.get("/v1/models", headers={"authorization": "Bearer none"}).status_code == 401
            _both_go_on_from_each_other(client)
        replicas = head.workers("ray::ServeReplica:rollout-serve")
        assert len(replicas) == 3
        assert not [process for process in psutil.process_iter() if one.key in " ".join(_arguments(process))]
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(60) == 0, one.said()
        assert "requests" in one.said().splitlines()[-1] and "Traceback" not in one.said()
        until(lambda: not head.workers("ray::ServeReplica:rollout-serve"), "its replicas have ended")
        until(lambda: not head.workers("ray::ResponsesKeeper"), "its keeper has ended")


def _both_go_on_from_each_other(client: httpx.Client) -> None:
    """The kernel chooses who gets a connection: it is asked until both have had one."""
    previous, both = None, False
    for _ in range(100):
        told = client.post(
            "/v1/responses", json={"model": "org/small", "input": "On.", "previous_response_id": previous}
        )
        assert told.status_code == 200, told.text
        previous = told.json()["id"]
        counts = {client.get("/stats").json()["requests"] for _ in range(4)}
        if both := len(counts) > 1 and 0 not in counts:
            break
    assert both
    for _ in range(8):
        assert client.get(f"/v1/responses/{previous}").json()["id"] == previous


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def test_a_client_that_hangs_up_frees_the_engine(head: Head, tmp_path: Path) -> None:
    """The model has one place and takes long: the next one hears something before the one before would have ended."""
    with server(head, tmp_path, WORDS, latency=LONG, places=1) as one, one.client() as client:
        until_then = 0.0
        for stream in (True, False, True, True):
            began = time.monotonic()
            body = {"model": "org/small", "messages": [{"role": "user", "content": "Go."}], "stream": stream}
            try:
                with client.stream("POST", "/v1/chat/completions", json=body, timeout=LONG if stream else 1) as told:
                    assert told.status_code == 200
                    assert any('"delta":{"content":"' in text for text in told.iter_lines())
                    assert time.monotonic() < until_then or not until_then
            except httpx.ReadTimeout:
                assert not stream  # nothing comes before all of it: it hangs up
            until_then = began + LONG
        one.process.send_signal(signal.SIGINT)
        assert one.process.wait(60) == 0, one.said()
        assert "served 4 requests, 0 refused, 4 gone, 0 slow" in one.said()
