"""Functions as tools: what they did wrong is told, what broke is raised, and both kinds of tools are ToolSets."""

from __future__ import annotations

import asyncio

import pytest

from rollout.agents.local_tools import LocalTools
from rollout.agents.mcp_tools import McpServers
from rollout.agents.toolset import ToolSet
from rollout.errors import ToolError
from rollout.trajectory import ToolCall, ToolResult

closed: list[str] = []


async def half(seconds: float, number: int) -> int:
    """Halve an even number.

    Args:
        number: The number.
    """
    if number % 2:
        raise ToolError(f"{number} is odd")
    return number // 2


async def broken(seconds: float) -> str:
    """Break."""
    raise OSError("no disk")


async def slow(seconds: float) -> str:
    """Take too long."""
    await asyncio.sleep(seconds + 60)
    return ""


async def close() -> None:
    closed.append("x")


async def use(tools: ToolSet, name: str, arguments: str = "{}", seconds: float = 5) -> ToolResult:
    return await tools.call(ToolCall("c", name, arguments), seconds)


async def test_functions_are_told_and_called_and_closed() -> None:
    tools: ToolSet = LocalTools.of(half, broken, slow, closes=close)
    assert [spec.name for spec in tools.specs] == ["half", "broken", "slow"]
    assert tools.specs[0].description == "Halve an even number."
    properties = tools.specs[0].parameters["properties"]
    assert properties == {"number": {"description": "The number.", "type": "integer"}}
    assert (await use(tools, "half", '{"number": 4}')).content == "2"
    for arguments, told in (('{"number": 3}', "3 is odd"), ("{}", "Field required"), ('{"x": 1}', "half: ")):
        answer = await use(tools, "half", arguments)
        assert answer.error is not None and told in answer.content
    assert "did you mean 'half'?" in (await use(tools, "halve")).content
    await tools.close()
    assert closed == ["x"]


async def test_what_breaks_is_raised() -> None:
    tools = LocalTools.of(broken, slow)
    with pytest.raises(OSError, match="no disk"):
        await use(tools, "broken")
    with pytest.raises(TimeoutError):
        await use(tools, "slow", seconds=0.01)
    await tools.close()


async def test_no_servers_are_a_tool_set_without_tools() -> None:
    tools: ToolSet = await McpServers(()).open()
    assert tools.specs == ()
    assert (await use(tools, "x")).error is not None
    await tools.close()
