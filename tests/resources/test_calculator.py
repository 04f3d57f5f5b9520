from itertools import islice
from typing import Any

import pytest

from resources import arithmetic
from resources.calculator import Calculator
from rollout.sessions import SessionTable
from rollout.trajectory import StopReason, ToolCall, Transcript


def said(text: str) -> Transcript:
    return Transcript(({"role": "assistant", "content": text},), StopReason.DONE)


def test_the_tool_is_told_as_the_bundled_model_learned_it() -> None:
    calculator = Calculator()
    assert calculator.instructions == arithmetic.INSTRUCTIONS
    shown = [bound.spec.as_openai()["function"] for bound in calculator.bound_tools().values()]
    learned: list[Any] = [dict(entry["function"]) for entry in arithmetic.TOOLS]
    assert [(tool["name"], tool["description"]) for tool in shown] == [
        (tool["name"], tool["description"]) for tool in learned
    ]
    for ours, theirs in zip(shown, learned, strict=True):
        assert ours["parameters"]["required"] == theirs["parameters"]["required"]
        types = {name: schema["type"] for name, schema in ours["parameters"]["properties"].items()}
        assert types == {name: schema["type"] for name, schema in theirs["parameters"]["properties"].items()}


def test_tasks_are_the_problems_of_the_split() -> None:
    first = next(iter(Calculator(split="train").tasks(7)))
    problem = arithmetic.problem(7, 0, "train")
    assert first.id == "calculator-train-0"
    assert first.messages == ({"role": "user", "content": arithmetic.prompt(problem)},)
    assert first.data == {"expression": problem.expression, "answer": problem.answer}
    assert len(list(Calculator(count=3).tasks(0))) == 3


@pytest.mark.parametrize(
    ("expression", "content", "failed"),
    [("12+30", "42", False), ("-5 * 6", "-30", False), ("1+2+3", "error: one operation at a time", True)],
)
async def test_calculate_does_one_operation(expression: str, content: str, failed: bool) -> None:
    table = SessionTable(Calculator())
    session, _ = await table.seed(next(iter(Calculator().tasks(0))), 0, 60)
    result = await table.call(session, ToolCall("a", "calculate", f'{{"expression": "{expression}"}}'), 5)
    assert result.content.startswith(content)
    assert (result.error is not None) == failed


async def test_only_the_right_committed_answer_scores() -> None:
    calculator = Calculator()
    for task in islice(calculator.tasks(0), 20):
        answer = task.data["answer"]
        session = await calculator.seed_session(task, 0)
        assert (await calculator.verify(session, said(f"The answer is {answer}."))).reward == 1.0
        assert (await calculator.verify(session, said(f"The answer is {answer + 1}."))).reward == 0.0
        silent = await calculator.verify(session, said(str(answer)))
        assert (silent.reward, silent.metrics["answered"]) == (0.0, 0.0)
