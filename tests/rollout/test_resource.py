from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from rollout.errors import ToolError
from rollout.resource import Resource, Solution, Step, StepResource, as_result, as_score, tool
from rollout.sessions import SessionTable
from rollout.trajectory import Message, Score, StopReason, Task, ToolCall, ToolResult, Transcript


class Point(BaseModel):
    x: int
    y: int = 0


class Kit(Resource):
    name = "kit"

    @tool
    async def cut(self, session: Any, times: Annotated[int, Field(ge=1)], title: str = "paper") -> str:
        """Cut something.

        It is gone afterwards,
        for good.

        Args:
            times: How often; more than once
                makes confetti.
            title: What to cut.
        """
        return f"{title} x {times}"

    @tool
    async def place(self, session: Any, point: Point, mode: Literal["soft", "hard"] | None = None) -> dict[str, Any]:
        """Put something down.

        Args:
            point: Where.
            mode: How.
        """
        return {"point": point.model_dump(), "mode": mode}

    async def not_a_tool(self, session: Any) -> None:
        """Nobody calls this."""


class BetterKit(Kit):
    async def cut(self, session: Any, times: int, title: str = "steel") -> str:
        """Cut something hard.

        Args:
            times: How often.
            title: What to cut.
        """
        return f"{title} / {times}"


def test_a_tools_schema_comes_from_signature_and_docstring() -> None:
    spec = Kit().bound_tools()["cut"].spec
    assert spec.as_openai() == {
        "type": "function",
        "function": {
            "name": "cut",
            "description": "Cut something. It is gone afterwards, for good.",
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "required": ["times"],
                "properties": {
                    "times": {
                        "type": "integer",
                        "minimum": 1,
                        "description": "How often; more than once makes confetti.",
                    },
                    "title": {"type": "string", "default": "paper", "description": "What to cut."},
                },
            },
        },
    }


def test_tools_keep_their_order_and_only_marked_methods_are_tools() -> None:
    assert list(Kit().bound_tools()) == ["cut", "place"]


async def test_a_subclass_can_replace_a_tool() -> None:
    bound = BetterKit().bound_tools()["cut"]
    assert bound.spec.description == "Cut something hard."
    assert await bound.function(None, times=2) == "steel / 2"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("cut", "", "cut: times: Field required"),
        ("cut", '{"times": 0}', "cut: times: Input should be greater than or equal to 1"),
        ("cut", '{"times": "twice"}', "cut: times: Input should be a valid integer"),
        ("cut", '{"times": 1, "colour": "red"}', "cut: colour: Extra inputs are not permitted"),
        ("cut", '{"times": 1', "cut: Invalid JSON"),
        ("cut", "[1]", "cut: Input should be an object"),
        ("place", '{"point": {"y": 1}}', "place: point.x: Field required"),
        ("place", '{"point": {"x": 1}, "mode": "odd"}', "place: mode: Input should be 'soft' or 'hard'"),
    ],
)
def test_arguments_that_do_not_fit_are_told(name: str, text: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        Kit().bound_tools()[name].parse(text)


def test_arguments_arrive_as_annotated() -> None:
    parsed = Kit().bound_tools()["place"].parse('{"point": {"x": 3}}')
    assert parsed == {"point": Point(x=3), "mode": None}


@pytest.mark.parametrize(
    ("value", "content"),
    [("as it is", "as it is"), (3, "3"), ({"a": [1, "é"]}, '{"a":[1,"é"]}'), (None, "null"), (True, "true")],
)
def test_what_a_tool_returns_becomes_text(value: object, content: str) -> None:
    assert as_result(value) == ToolResult(content)


def test_results_and_scores_pass_through() -> None:
    assert as_result(ToolResult("x", done=True)) == ToolResult("x", done=True)
    assert as_score(Score(0.5, {"a": 0.5})) == Score(0.5, {"a": 0.5})
    assert as_score(1) == Score(1.0)


def test_what_a_resource_leaves_out_is_said() -> None:
    task = Task("t", ())
    with pytest.raises(NotImplementedError, match="kit has no tasks of its own"):
        Kit().tasks(0)
    with pytest.raises(NotImplementedError, match="kit gives no gold solution"):
        Kit().gold(task)
    assert Kit().wrong(task) == Solution(())


class Steps(StepResource):
    """Counts down from three; `down` is the only action."""

    name = "steps"

    def tasks(self, seed: int) -> Iterator[Task]:
        message: Message = {"role": "user", "content": "Go down."}
        yield Task("steps-0", (message,))

    async def reset(self, task: Task, seed: int) -> tuple[list[int], str]:
        return [3], "at 3"

    async def act(self, session: list[int], action: str) -> Step:
        if action != "down":
            raise ToolError("there is only down")
        session[0] -= 1
        return Step(f"at {session[0]}", 0.5, terminated=session[0] == 0)

    async def leave(self, session: list[int]) -> None:
        session.clear()


async def test_reset_and_step_become_a_conversation_with_step_rewards() -> None:
    table = SessionTable(Steps())
    session, opening = await table.seed(next(Steps().tasks(0)), 0, 60)
    assert [message["content"] for message in opening] == ["Go down.", "at 3"]
    down = ToolCall("a", "step", '{"action": "down"}')
    results = [
        await table.call(session, call, 5) for call in (down, ToolCall("b", "step", '{"action": "up"}'), down, down)
    ]
    assert [result.content for result in results] == ["at 2", "error: there is only down", "at 1", "at 0"]
    assert [result.reward for result in results] == [0.5, None, 0.5, 0.5]
    assert [result.done for result in results] == [False, False, False, True]
    score = await table.verify(session, Transcript(opening, StopReason.ENVIRONMENT, (0.5, 0.5, 0.5)), 5)
    assert score == Score(1.5)
    await table.close(session)
