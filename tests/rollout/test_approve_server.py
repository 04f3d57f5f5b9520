"""Answers over HTTP, on loopback: what is listed, what counts, and who may not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from rollout.agents.approval_queue import ApprovalQueue, Request, pending
from rollout.agents.decisions import Approved, Redirected
from rollout.approve_server import Doors, routes, serve
from rollout.errors import UserError
from rollout.trajectory import ToolCall


def asked(number: int) -> Request:
    return Request.of(ToolCall("c", "transfer", '{"sum": 7}'), f"run 1-{number}", 0, 0, "clerk", 10.0 + number)


@asynccontextmanager
async def served(place: Path, key: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    runner = web.AppRunner(routes(str(place), key, by="door"))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        await runner.cleanup()


async def test_a_person_lists_and_answers_over_http(tmp_path: Path) -> None:
    queue = ApprovalQueue(str(tmp_path), poll_seconds=0.005)
    first, second = [await queue.put(asked(number)) for number in range(2)]
    async with served(tmp_path) as client:
        listed = await (await client.get("/requests")).json()
        assert [one["id"] for one in listed["requests"]] == [first.id, second.id]
        assert listed["requests"][0]["arguments"] == '{"sum": 7}'
        where = f"/requests/{first.id.replace('%', '%25')}"
        assert (await client.post(where, json={"answer": "approve", "by": "ada"})).status == 200
        twice = await client.post(where, json={"answer": "approve"})
        assert (twice.status, "answered already" in (await twice.json())["error"]) == (409, True)
        assert (await client.post("/requests/nobody", json={"answer": "approve"})).status == 409
        told = {"answer": {"decision": "redirect", "text": "less"}}
        assert (await client.post(f"/requests/{second.id.replace('%', '%25')}", json=told)).status == 200
    assert await queue.wait(first.id, 5) == Approved()
    assert await queue.wait(second.id, 5) == Redirected("less")
    assert '"by": "ada"' in (tmp_path / f"{first.id}.answer.json").read_text()
    assert '"by": "door"' in (tmp_path / f"{second.id}.answer.json").read_text()


@pytest.mark.parametrize("said", ["[]", "{", '{"answer": ""}', '{"answer": {"decision": "perhaps"}}', "{}"])
async def test_what_says_nothing_is_refused_and_the_request_stays(tmp_path: Path, said: str) -> None:
    request = await ApprovalQueue(str(tmp_path)).put(asked(0))
    async with served(tmp_path) as client:
        json = {"Content-Type": "application/json"}
        refused = await client.post("/requests/x", data=said, headers=json)
        assert (refused.status, "expected" in (await refused.text()) or "perhaps" in await refused.text()) == (
            400,
            True,
        )
        plain = await client.post("/requests/x", data='{"answer": "approve"}')
        assert plain.status == 400, "what a form of another page can send is not taken"
    assert pending(str(tmp_path)) == (request,)


async def test_with_a_key_nothing_is_told_without_it_and_without_one_only_this_machine_is_served(
    tmp_path: Path,
) -> None:
    await ApprovalQueue(str(tmp_path)).put(asked(0))
    async with served(tmp_path, key="open sesame") as client:
        assert (await client.get("/requests")).status == 401
        assert (await client.get("/requests", headers={"Authorization": "Bearer wrong"})).status == 401
        right = await client.get("/requests", headers={"Authorization": "Bearer open sesame"})
        assert (right.status, len((await right.json())["requests"])) == (200, 1)
    async with served(tmp_path) as client:
        rebound = await client.get("/requests", headers={"Host": "evil.example"})
        assert rebound.status == 403


def test_others_are_not_let_in_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--host: 0\.0\.0\.0 can be reached by others; expected --key-env"):
        serve(str(tmp_path), Doors(0, "0.0.0.0"))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match=r"^--key-env: the environment variable NO_SUCH_KEY is not set"):
        serve(str(tmp_path), Doors(0, key_env="NO_SUCH_KEY"))
