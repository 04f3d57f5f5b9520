from itertools import islice
from typing import Any

import pytest

from resources import arithmetic
from resources.calculator import Calculator
from rollout.sessions import SessionTable
from rollout.trajectory import StopReason, Task, ToolCall, Transcript


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


def test_hard_problems_are_the_same_ones_without_the_others() -> None:
    every = {task.id: task.messages for task in Calculator(count=40).tasks(0)}
    hard = list(Calculator(count=12, least_operations=3).tasks(0))
    assert [task.index for task in hard] == list(range(12))
    assert all(every[task.id] == task.messages for task in hard if task.id in every)
    assert all(sum(task.data["expression"].count(sign) for sign in "+-*") >= 3 for task in hard)


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


@pytest.mark.parametrize(
    ("calls", "rewards"),
    [
        (["3*4", "2+12", "14-6"], [0.0, 0.0, 0.0]),
        (["3 * 4", "2+12"], [0.0, 0.0]),
        (["3*4", "2+21", "14-6", "2+12", "14-6"], [0.0, -1.0, None, 0.0, 0.0]),
        (["2+3", "5*4"], [-1.0, None]),
        (["3*4", "3*4"], [0.0, -1.0]),
        (["12+", "3*4"], [None, 0.0]),
    ],
)
async def test_a_call_that_the_expression_asks_for_costs_nothing_and_the_first_other_one_does(
    calls: list[str], rewards: list[float | None]
) -> None:
    table = SessionTable(Calculator())
    task = Task("t", (), {"expression": "2+3*4-6", "answer": 8})
    session, _ = await table.seed(task, 0, 60)
    told = [ToolCall(str(n), "calculate", f'{{"expression": "{call}"}}') for n, call in enumerate(calls)]
    assert [(await table.call(session, call, 5)).reward for call in told] == rewards


@pytest.mark.parametrize("ends", [False, True])
async def test_an_episode_goes_on_behind_a_wrong_call_unless_told_otherwise(ends: bool) -> None:
    table = SessionTable(Calculator(ends_astray=ends))
    task = Task("one", (), {"expression": "2+3*4-6", "answer": 8})
    session, _ = await table.seed(task, 0, 60)
    right = await table.call(session, ToolCall("a", "calculate", '{"expression": "3*4"}'), 5)
    wrong = await table.call(session, ToolCall("b", "calculate", '{"expression": "2+21"}'), 5)
    assert (right.done, wrong.done, wrong.reward) == (False, ends, -1.0)
