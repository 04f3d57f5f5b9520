"""Plain functions as tools: their schemas, what they answer, and what is said of those that cannot be tools."""

import contextvars
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from rollout.agents.functions import FunctionTools
from rollout.agents.tool_rules import ToolRule
from rollout.agents.tool_section import ToolConfig, rules
from rollout.errors import ResourceDown, UserError
from rollout.trajectory import ToolCall

TOOLS = '''
import asyncio, contextvars, threading
from rollout.errors import ResourceDown, ToolError
from rollout.trajectory import ToolResult

WHO = contextvars.ContextVar("who")
GATE = threading.Event()

def search(query: str, count: int = 2) -> list[str]:
    """Search the library.

    Args:
        query: What to look for.
    """
    if query == "wrong":
        raise ToolError("ask for something")
    if query == "bug":
        raise KeyError("shelf")
    if query == "down":
        raise ResourceDown("closed today")
    return [query] * count

async def finish() -> ToolResult:
    """End it."""
    return ToolResult("bye", done=True)

def who() -> str:
    return f"{WHO.get()} {threading.current_thread() is threading.main_thread()}"

def hang() -> str:
    GATE.wait()
    return ""

def rest(*all): ...
def odd(x: "Nowhere"): ...
'''


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(TOOLS)
    return str(path)


async def answer(tools: FunctionTools, name: str, arguments: str = "{}", seconds: float = 5.0) -> str:
    return (await tools.call(ToolCall("c", name, arguments), seconds)).content


async def test_signature_and_docstring_become_the_schema_and_the_function_answers(file: str) -> None:
    tools = FunctionTools.of([f"{file}:search", f"{file}:finish"])
    search, finish = tools.specs
    assert (search.name, search.description, finish.name) == ("search", "Search the library.", "finish")
    assert search.parameters["properties"]["query"] == {"type": "string", "description": "What to look for."}
    assert search.parameters["required"] == ["query"]
    assert await answer(tools, "search", '{"query": "x"}') == '["x","x"]'
    assert (await tools.call(ToolCall("c", "finish", ""), 5)).done


async def test_what_goes_wrong_is_the_result_and_only_a_crash_is_one(file: str) -> None:
    tools = FunctionTools.of([f"{file}:search"])
    for arguments, content, crashed in [
        ('{"query": "wrong"}', "error: ask for something", False),
        ('{"query": "bug"}', "error: KeyError: 'shelf'", True),
        ('{"query": 1}', "error: search: query: Input should be a valid string", False),
        ('{"text": "x"}', "error: search: query: Field required", False),
    ]:
        result = await tools.call(ToolCall("c", "search", arguments), 5)
        assert (result.content, result.crashed) == (content, crashed)
    assert await answer(tools, "serch") == "error: there is no tool 'serch'; did you mean 'search'?"
    with pytest.raises(ResourceDown):
        await answer(tools, "search", '{"query": "down"}')


async def test_plain_functions_run_off_the_loop_with_the_callers_context(file: str) -> None:
    tools = FunctionTools.of([f"{file}:who"])
    variable: contextvars.ContextVar[str] = tools.tools["who"].function.__globals__["WHO"]
    variable.set("me")
    assert await answer(tools, "who") == "me False"


async def test_one_that_hangs_is_given_up(file: str) -> None:
    tools = FunctionTools.of([f"{file}:hang"])
    gate: threading.Event = tools.tools["hang"].function.__globals__["GATE"]
    try:
        result = await tools.call(ToolCall("c", "hang", "{}"), 0.02)
    finally:
        gate.set()
    assert (result.error, result.crashed) == ("hang did not answer within 0.02 s", True)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("rest",), "rest: 'all' cannot be given by name"),
        (("odd",), "odd: no schema can be made of its arguments: NameError"),
        (("search", "search"), "two functions are named 'search'"),
        (("sarch",), "has no 'sarch'; did you mean 'search'?"),
    ],
)
def test_what_cannot_be_a_tool_is_one_line(file: str, names: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError) as caught:
        FunctionTools.of([f"{file}:{name}" for name in names])
    assert str(caught.value).startswith("agent.tools: ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_conf_names_a_function_or_a_tool_and_its_rules() -> None:
    told = [ToolConfig(ref="m:search", retries=1), ToolConfig(name="bash", sequential=True, on_error="infra_error")]
    assert rules(told) == {
        "search": ToolRule(retries=1),
        "bash": ToolRule(sequential=True, on_error="infra_error"),
    }
    with pytest.raises(ValidationError, match="expected either ref or name"):
        ToolConfig()
    with pytest.raises(UserError, match="'bash' is named twice"):
        rules([*told, ToolConfig(name="bash")])
