"""Tools of MCP servers, with real servers: processes that speak stdio, and HTTP on the loopback interface."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout.agents.mcp_hold import innermost
from rollout.agents.mcp_section import McpServerConfig, check_names
from rollout.agents.mcp_tools import McpServers, McpTools
from rollout.errors import BoundaryError, ResourceDown, UserError, boundary
from rollout.trajectory import FailureKind, ToolCall, ToolResult

OFFICIAL, PLAIN = (str(Path(__file__).with_name(name)) for name in ("tools_server.py", "plain_server.py"))
ALL = ["add", "fail", "wait", "die", "tell", "picture"]


def plain(tmp_path: Path, **config: Any) -> McpServerConfig:
    env = {"STARTS": str(tmp_path / "starts"), "BROKEN": str(tmp_path / "broken"), **config.pop("env", {})}
    program = {"command": sys.executable, "args": ("-S", "-E", PLAIN)}
    return McpServerConfig.model_validate({"name": "s", **program, "env": env, "max_restarts": 0, **config})


def pids(tmp_path: Path) -> list[int]:
    return [int(line) for line in (tmp_path / "starts").read_text().split()]


def started(tmp_path: Path, count: int) -> None:
    while len(pids(tmp_path)) < count:
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@asynccontextmanager
async def served(*configs: McpServerConfig) -> AsyncIterator[McpTools]:
    servers = McpServers(configs)
    tools = await servers.open()
    try:
        yield tools
    finally:
        await tools.close()
        await servers.close()


async def call(tools: McpTools, name: str, seconds: float = 20, **arguments: Any) -> ToolResult:
    return await tools.call(ToolCall("c", name, json.dumps(arguments)), seconds)


@contextmanager
def http_server(**env: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, OFFICIAL, str(port)], env={**os.environ, **env})
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp", process
    finally:
        process.kill()
        process.wait()


async def test_a_server_of_the_official_package() -> None:
    async with served(McpServerConfig(name="s", command=sys.executable, args=(OFFICIAL,))) as tools:
        assert [spec.name for spec in tools.specs] == [f"s__{name}" for name in ALL]
        assert tools.specs[0].description == "Add two numbers."
        assert set(tools.specs[0].parameters["properties"]) == {"a", "b"}
        (facts,) = tools.facts
        assert (facts.name, facts.server, facts.version, facts.missing) == ("s", "tools", "1.2.3", None)
        assert facts.protocol and len(facts.digest) == 64
        answer = await call(tools, "s__add", a=1, b=2)
        assert (answer.content, answer.error) == ("3", None)
        wrong = await asyncio.gather(
            call(tools, "s__fail"),
            call(tools, "s__add", a="x", b=1),
            call(tools, "s__wait", seconds=0.3),
            call(tools, "s__ad", a=1),
            tools.call(ToolCall("c", "s__add", "[1, 2]"), 9),
            tools.call(ToolCall("c", "s__add", '{"a": NaN}'), 9),
            tools.call(ToolCall("c", "s__add", "{"), 9),
        )
        for answer, told in zip(
            wrong,
            ("no such book", "valid integer", "wait did not answer within 0.3 s", "did you mean 's__add'?",
             "expected a JSON object of arguments; found list", "NaN is no JSON", "expected a JSON object"),
            strict=True,
        ):  # fmt: skip
            assert answer.error is not None and told in answer.content
        assert (await call(tools, "s__picture")).content == "[image, image/png, 3 bytes]"
        assert (await call(tools, "s__add", a=1, b=2)).content == "3"


async def test_a_lost_server_is_an_infrastructure_failure_and_not_connected_to_again(tmp_path: Path) -> None:
    async with served(plain(tmp_path, max_restarts=3)) as tools:
        assert (await call(tools, "s__count_up")).content == "1"
        with pytest.raises(BoundaryError) as caught:
            async with boundary(FailureKind.TOOL, "s__die", 20):
                await call(tools, "s__die")
        assert caught.value.failure.kind == FailureKind.TOOL
        assert "MCP server s: " in caught.value.failure.message
        with pytest.raises(ResourceDown, match="the connection was lost"):
            await call(tools, "s__count_up")
    assert len(pids(tmp_path)) == 1


async def test_episodes_have_servers_of_their_own_unless_they_share_them(tmp_path: Path) -> None:
    for lifetime, counts in (("rollout", ["1", "1"]), ("worker", ["1", "2"])):
        (tmp_path / lifetime).mkdir()
        servers = McpServers((plain(tmp_path / lifetime, lifetime=lifetime),))
        one, two = await asyncio.gather(servers.open(), servers.open())
        assert [(await call(tools, "s__count_up")).content for tools in (one, two)] == counts
        await asyncio.gather(one.close(), two.close())
        running = [alive(pid) for pid in pids(tmp_path / lifetime)]
        assert running == ([False, False] if lifetime == "rollout" else [True])
        await servers.close()
        assert not any(alive(pid) for pid in pids(tmp_path / lifetime))


async def test_a_shared_server_that_was_lost_is_started_again_for_the_others(tmp_path: Path) -> None:
    servers = McpServers((plain(tmp_path, lifetime="worker", max_restarts=1),))
    one, two = await servers.open(), await servers.open()
    with pytest.raises(ResourceDown):
        await call(one, "s__die")
    assert (await call(two, "s__count_up")).content == "1"
    assert len(pids(tmp_path)) == 2
    with pytest.raises(ResourceDown):
        await call(two, "s__die")
    with pytest.raises(ResourceDown, match="the connection was lost"):  # it has had its one restart
        await call(two, "s__count_up")
    three = await servers.open()
    assert (await call(three, "s__count_up")).content == "1"
    await asyncio.gather(one.close(), two.close(), three.close())
    await servers.close()
    assert len(pids(tmp_path)) == 3 and not any(alive(pid) for pid in pids(tmp_path))


async def test_a_server_that_comes_back_with_other_tools_is_not_the_one_that_was_promised(tmp_path: Path) -> None:
    env = {"MORE_TOOLS_AFTER": str(tmp_path / "more")}
    servers = McpServers((plain(tmp_path, lifetime="worker", max_restarts=1, env=env),))
    one, two = await servers.open(), await servers.open()
    (tmp_path / "more").touch()
    with pytest.raises(ResourceDown):
        await call(one, "s__die")
    with pytest.raises(ResourceDown, match="came back with other tools"):
        await call(two, "s__count_up")
    await servers.close()


async def test_vector_15_a_required_server_that_is_down_is_an_infrastructure_failure(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    servers = McpServers((plain(tmp_path, max_restarts=1),))
    with pytest.raises(ResourceDown, match=r"MCP server s: .*; it said: cannot start"):
        await servers.open()
    assert len(pids(tmp_path)) == 2
    nowhere = McpServerConfig(name="n", command="/nowhere/server", max_restarts=0)
    with pytest.raises(ResourceDown, match="MCP server n: FileNotFoundError"):
        await McpServers((nowhere,)).open()
    refused = McpServerConfig(name="r", url="http://127.0.0.1:9/mcp", max_restarts=0)
    with pytest.raises(ResourceDown, match="MCP server r: ConnectError"):
        await McpServers((refused,)).open()
    silent = plain(tmp_path, name="q", env={"SILENT": "1", "BROKEN": ""}, timeout=0.5)
    with pytest.raises(ResourceDown, match=r"MCP server q: no connection within 0\.5 s"):
        await McpServers((silent,)).open()


async def test_a_server_that_is_not_required_is_missing_by_name(tmp_path: Path) -> None:
    nowhere = McpServerConfig(name="n", command="/nowhere/server", max_restarts=0, required=False)
    async with served(nowhere, plain(tmp_path)) as tools:
        assert [facts.name for facts in tools.facts] == ["n", "s"]
        assert tools.facts[0].missing is not None and "FileNotFoundError" in tools.facts[0].missing
        assert len(tools.specs) == 4


async def test_nothing_stays_open_when_another_server_is_down_or_the_opening_is_cancelled(tmp_path: Path) -> None:
    silent = plain(tmp_path, name="q", env={"SILENT": "1"}, timeout=2)
    with pytest.raises(ResourceDown, match="MCP server q"):
        await McpServers((plain(tmp_path), silent)).open()
    opening = asyncio.create_task(McpServers((plain(tmp_path), silent)).open())
    await asyncio.to_thread(started, tmp_path, 4)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not any(alive(pid) for pid in pids(tmp_path))


async def test_tools_are_chosen_by_name_and_pattern(tmp_path: Path) -> None:
    async with served(plain(tmp_path, tool_filter=("die", "t*"))) as tools:
        assert [spec.name for spec in tools.specs] == ["s__die", "s__tell"]
    with pytest.raises(UserError, match=r"^mcp_servers\.s\.tool_filter: no tool is called 'tel'; did you mean 'tell'"):
        await McpServers((plain(tmp_path, tool_filter=("tel",)),)).open()
    same = (plain(tmp_path, prefix=False), plain(tmp_path, name="t", prefix=False))
    with pytest.raises(UserError, match="a tool 'count_up' is one of s already; set prefix"):
        await McpServers(same).open()
    assert not any(alive(pid) for pid in pids(tmp_path))


async def test_a_server_gets_the_secrets_that_are_named_and_nobody_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIVEN", "abc-secret")
    monkeypatch.setenv("KEPT", "other")
    config = plain(tmp_path, pass_env=("GIVEN",))
    assert "abc-secret" not in repr(config)
    async with served(config) as tools:
        assert (await call(tools, "s__tell", variable="GIVEN")).content == "it is ***"
        assert (await call(tools, "s__tell", variable="KEPT")).content == "it is None"
    (tmp_path / "broken").touch()
    with pytest.raises(ResourceDown, match=r"the token \*\*\* is wrong"):
        await McpServers((config,)).open()
    monkeypatch.delenv("GIVEN")
    with pytest.raises(UserError, match=r"^mcp_servers\.s: environment variable GIVEN is not set$"):
        await McpServers((config,)).open()


async def test_streamable_http_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_TOKEN", "tok-123")
    with http_server(TOKEN="tok-123") as (url, process):
        config = McpServerConfig(name="w", url=url, bearer_env="SERVER_TOKEN", lifetime="worker", max_restarts=0)
        async with served(config) as tools:
            assert [spec.name for spec in tools.specs] == [f"w__{name}" for name in ALL]
            answers = await asyncio.gather(*(call(tools, "w__add", a=n, b=1) for n in range(5)))
            assert [answer.content for answer in answers] == ["1", "2", "3", "4", "5"]
            assert "did not answer" in (await call(tools, "w__wait", seconds=0.3)).content
            assert (await call(tools, "w__fail")).error is not None
            assert (await call(tools, "w__tell", variable="TOKEN")).content == "it is ***"
            monkeypatch.setenv("SERVER_TOKEN", "wrong-456")
            wrong = McpServerConfig(name="v", url=url, headers_env={"Authorization": "SERVER_TOKEN"}, max_restarts=0)
            with pytest.raises(ResourceDown) as caught:
                await McpServers((wrong,)).open()
            assert "wrong-456" not in str(caught.value)
            with pytest.raises(ResourceDown, match="MCP server w: "):
                await call(tools, "w__die")
            process.wait()
            with pytest.raises(ResourceDown):
                await call(tools, "w__add", a=1, b=1)


@pytest.mark.skipif(shutil.which("mcp-server-everything") is None, reason="npm's server-everything is not installed")
async def test_a_server_that_others_have_written() -> None:
    config = McpServerConfig(name="all", command="mcp-server-everything", args=("stdio",))
    async with served(config) as tools:
        assert (await call(tools, "all__echo", message="hello")).content == "Echo: hello"
        assert "The sum of 2 and 3 is 5" in (await call(tools, "all__get-sum", a=2, b=3)).content
        assert (await call(tools, "all__get-sum", a="x")).error is not None
        assert "[image, image/png, " in (await call(tools, "all__get-tiny-image")).content
        assert tools.facts[0].server == "mcp-servers/everything" and tools.facts[0].version


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "expected either command or url, found neither"),
        ({"command": "a", "url": "http://a"}, "expected either command or url, found both"),
        ({"url": "http://a", "args": ["x"]}, "args belongs to a server with command"),
        ({"command": "a", "headers": {"x": "y"}}, "headers belongs to a server with url"),
        ({"url": "file:///a"}, "should match pattern"),
        ({"command": "a", "lifetime": "cluster"}, "'rollout' or 'worker'"),
        ({"command": "a", "bearer": "x"}, "not permitted"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        McpServerConfig.model_validate({"name": "s", **config})


def test_two_servers_of_one_name_are_refused() -> None:
    one = McpServerConfig(name="s", command="a")
    assert check_names((one,)) == (one,)
    with pytest.raises(Exception, match="mcp_servers: two are called 's'"):
        check_names((one, one))


def test_the_innermost_error_of_groups() -> None:
    inner = ValueError("x")
    assert innermost(ExceptionGroup("a", [ExceptionGroup("b", [inner])])) is inner
    assert innermost(inner) is inner
