"""Who may ask what, and what becomes of the engine when a client goes, stalls or sends too much."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import httpx
import pytest
from gateway_server import ASK, NAME, Counted, Running, running, scripted

from rollout.errors import ContextExceeded, ResourceDown, Unavailable, UserError
from rollout.gateway.doors import key_of, sealed
from rollout.gateway.section import GatewayConfig
from rollout.turn import Prompt

WORDS = "one two three four five six seven eight nine ten"
ROUTES = ("/v1/chat/completions", "/v1/responses", "/v1/messages")


def body(path: str, **more: Any) -> dict[str, Any]:
    if path == "/v1/responses":
        return {"model": NAME, "input": "Good day to you.", **more}
    return {"model": NAME, "messages": ASK, "max_tokens": 500, **more}


@pytest.fixture
async def client() -> Any:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as one:
        yield one


def held(lines: int = 1) -> Counted:
    """Says its words and takes a minute over it."""
    return scripted([WORDS * lines], latency=60.0)


@pytest.mark.parametrize("path", ROUTES)
async def test_a_key_is_needed_where_there_is_one(client: httpx.AsyncClient, path: str) -> None:
    async with running(scripted(["Hello."]), key="sesame") as one:
        for headers in ({}, {"authorization": "Bearer sesam"}, {"x-api-key": ""}, {"authorization": "sesame"}):
            told = await client.post(one.url + path, json=body(path), headers=headers)
            assert told.status_code == 401 and told.json()["error"]["type"] == "authentication_error"
        for headers in ({"authorization": "Bearer sesame"}, {"x-api-key": "sesame"}):
            assert (await client.post(one.url + path, json=body(path), headers=headers)).status_code == 200
        assert (await client.get(f"{one.url}/v1/models")).status_code == 401
        assert (await client.get(f"{one.url}/stats")).status_code == 401
        assert (await client.get(f"{one.url}/health")).json() == {"status": "ok"}
        assert len(one.policy.prompts) == 2


async def test_without_a_key_other_pages_are_kept_out(client: httpx.AsyncClient) -> None:
    async with running(scripted(["Hello."])) as one:
        url = f"{one.url}/v1/chat/completions"
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"host": "[:"}):
            assert (await client.post(url, json=body(url), headers=headers)).status_code == 403
        assert (await client.post(url, json=body(url), headers={"origin": "http://localhost:3"})).status_code == 200


def test_others_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_of("127.0.0.1", None) is key_of("localhost", None) is key_of("::1", None) is None
    with pytest.raises(
        UserError, match=r"gateway\.host: 0\.0\.0\.0 can be reached by others; expected gateway\.key_env"
    ):
        key_of("0.0.0.0", None)
    monkeypatch.setenv("SOME_KEY", "")
    with pytest.raises(UserError, match=r"gateway\.key_env: the environment variable SOME_KEY is not set"):
        key_of("127.0.0.1", "SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "sesame")
    assert key_of("0.0.0.0", "SOME_KEY") == sealed("sesame") != sealed("sesam")


@pytest.mark.parametrize("path", ROUTES)
async def test_a_body_that_is_too_large_is_not_read(client: httpx.AsyncClient, path: str) -> None:
    async def drops() -> Any:
        for _ in range(100):
            yield b"x" * 1024

    async with running(scripted(["Hello."]), GatewayConfig(body_mib=1 / 64)) as one:
        contents: list[Any] = [b"x" * 17_000, drops()]
        for content in contents:
            told = await client.post(one.url + path, content=content)
            assert told.status_code == 413 and "16384 bytes" in told.json()["error"]["message"]
            assert told.json()["error"]["type"] in ("request_too_large", "invalid_request_error")
        packed = await client.post(one.url + path, content=b"..", headers={"content-encoding": "gzip"})
        assert packed.status_code == 400 and "content-encoding" in packed.json()["error"]["message"]


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async with running(scripted(["Hello."]), GatewayConfig(seconds=0.2)) as one:
        reader, writer = await connected(one)
        writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n\r\n{")
        told = await asyncio.wait_for(reader.read(), 10)
        assert told.startswith(b"HTTP/1.1 504") and b'"timeout_error"' in told
        writer.close()


async def connected(one: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = one.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


def raw(path: str, content: dict[str, Any]) -> bytes:
    told = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(told)}\r\n\r\n"
    return head.encode() + told


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ROUTES)
async def test_a_client_that_hangs_up_frees_the_engine(path: str, stream: bool) -> None:
    async with running(held()) as one:
        _, writer = await connected(one)
        writer.write(raw(path, body(path, stream=stream)))
        await until(lambda: one.policy.running == 1)
        writer.close()
        await asyncio.wait_for(one.policy.ended.wait(), 10)
        await until(lambda: one.gateway.counts.gone == 1)
        assert (one.policy.running, one.gateway.counts.running) == (0, 0)


async def test_a_client_that_does_not_read_is_cut_off_and_frees_the_engine() -> None:
    """It is sent more than what the sockets between the two hold."""
    policy = scripted([WORDS * 400], latency=60.0, piece=1)
    policy.inner = Flood(policy.inner)  # type: ignore[assignment]
    async with running(policy, GatewayConfig(slow_seconds=0.2), holds=4096) as one:
        host, _, port = one.url.removeprefix("http://").partition(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((host, int(port)))
            slow.sendall(raw("/v1/chat/completions", body("", stream=True)))
            await until(lambda: one.policy.running == 1)
            await asyncio.wait_for(one.policy.ended.wait(), 60)
        await until(lambda: one.gateway.counts.slow == 1)
        assert one.gateway.counts.running == 0


class Flood:
    """Says the same without an end."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def complete(self, prompt: Prompt) -> Any:
        return await self.inner.complete(prompt)

    async def stream(self, prompt: Prompt, heard: Any) -> Any:
        from rollout.streaming import Delta

        ids = self.inner._template.encode(WORDS * 20)
        while True:
            heard(Delta(ids))
            await asyncio.sleep(0)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("error", "status", "type_of"),
    [
        (Unavailable("gone"), (503, 529), ("server_error", "overloaded_error")),
        (ResourceDown("no replica"), (503, 529), ("server_error", "overloaded_error")),
        (ContextExceeded("9 tokens"), (400, 400), ("invalid_request_error", "invalid_request_error")),
        (ZeroDivisionError("a secret prompt"), (500, 500), ("server_error", "api_error")),
    ],
)
async def test_what_fails_is_told_in_each_apis_shape(
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    path: str,
    error: Exception,
    status: tuple[int, int],
    type_of: tuple[str, str],
) -> None:
    policy = scripted([""])
    policy.raises = error
    anthropic = path == "/v1/messages"
    async with running(policy) as one:
        for stream in (False, True):  # nothing was said before it: a stream has the status, too
            told = await client.post(one.url + path, json=body(path, stream=stream))
            assert (told.status_code, told.json()["error"]["type"]) == (status[anthropic], type_of[anthropic])
            assert ("retry-after" in told.headers) == (status[0] == 503)
            assert "secret" not in told.text
    assert "secret" not in caplog.text and ("ZeroDivisionError" in caplog.text) == (status[0] == 500)


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("/v1/chat/completions", '"code":"overloaded"'),
        ("/v1/responses", '"type":"response.failed"'),
        ("/v1/messages", '"overloaded_error"'),
    ],
)
async def test_a_stream_that_breaks_says_so(client: httpx.AsyncClient, path: str, end: str) -> None:
    policy = scripted([WORDS], piece=1000)
    policy.raises = Unavailable("gone")
    async with running(policy) as one:
        told = await client.post(one.url + path, json=body(path, stream=True))
        assert told.status_code == 200 and "nine" in told.text
        assert end in told.text[told.text.index("nine") :] and "[DONE]" not in told.text.replace("data: [DONE]\n\n", "")
        assert one.gateway.counts.refused == 1


async def test_a_request_has_a_deadline(client: httpx.AsyncClient) -> None:
    async with running(held(), GatewayConfig(seconds=0.2)) as one:
        told = await client.post(f"{one.url}/v1/chat/completions", json=body(""))
        assert told.status_code == 504 and told.json()["error"]["code"] == "timeout"
        assert one.policy.running == 0


async def test_nothing_of_a_prompt_is_logged(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="rollout")
    caplog.set_level(logging.DEBUG, logger="uvicorn")
    async with running(scripted(["A whisper."])) as one:
        secret: Any = [{"role": "user", "content": "a very secret prompt"}]
        told = await client.post(f"{one.url}/v1/chat/completions", json={"model": NAME, "messages": secret})
        assert told.status_code == 200
        wrong = await client.post(f"{one.url}/v1/chat/completions", json={"model": NAME, "messages": "secret prompt"})
        assert wrong.status_code == 400
    assert "secret prompt" not in caplog.text and "whisper" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "line"),
    [
        ("GET", "/v1/chat/completions", "/v1/chat/completions takes no GET"),
        ("POST", "/v1/models/x", "/v1/models/x takes no POST"),
        ("GET", "/v1/other", "there is no /v1/other"),
        ("GET", "/e/abc/v1/models", "this token opens no episode"),
    ],
)
async def test_what_is_not_there(client: httpx.AsyncClient, method: str, path: str, line: str) -> None:
    async with running(scripted(["x"])) as one:
        told = await client.request(method, one.url + path)
        assert told.status_code == 404 and told.json()["error"]["message"] == line
        other = await client.request(method, one.url + path, headers={"anthropic-version": "2023-06-01"})
        assert other.status_code == 404 and other.json()["type"] == "error"
