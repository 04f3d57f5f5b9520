"""The arithmetic problems: deterministic, disjoint splits, one operation a call."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from resources.arithmetic import (
    LARGEST,
    SPLITS,
    evaluate,
    parse_answer,
    problem,
    prompt,
    split_of,
)


def test_a_problem_depends_on_its_arguments_only() -> None:
    forwards = [problem(7, index, "train") for index in range(50)]
    backwards = [problem(7, index, "train") for index in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [problem(8, index, "train") for index in range(50)]


def test_another_process_makes_the_same_problem() -> None:
    code = "from resources.arithmetic import problem; print(problem(3, 141, 'heldout'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert said.stdout.strip() == str(problem(3, 141, "heldout"))


@pytest.mark.parametrize("split", SPLITS)
def test_every_expression_of_a_split_digests_into_that_split(split: str) -> None:
    assert {split_of(problem(0, index, split).expression) for index in range(500)} == {split}


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train, heldout"):
        problem(0, 0, "test")


def test_steps_lead_to_the_value_python_gives() -> None:
    for index in range(500):
        task = problem(1, index, "heldout")
        assert [evaluate(expression) for expression, _ in task.steps] == [v for _, v in task.steps]
        assert task.steps[-1][1] == task.answer == eval(task.expression)


def test_problems_have_one_to_four_operations_and_bounded_results() -> None:
    tasks = [problem(2, index, "train") for index in range(500)]
    assert {len(task.steps) for task in tasks} == {1, 2, 3, 4}
    assert all(abs(value) <= LARGEST for task in tasks for _, value in task.steps)
    assert all(value >= 0 for task in tasks for _, value in task.steps[:-1])


def test_a_problem_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        problem(0, 0, "train").answer = 1  # type: ignore[misc]


def test_the_prompt_poses_the_expression() -> None:
    task = problem(0, 0, "train")
    assert prompt(task) == f"Compute {task.expression}."


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12+7", 19),
        (" 12 *  7 ", 84),
        ("3-10", -7),
        ("-3*-4", 12),
        ("7--5", 12),
        ("0*0", 0),
        ("999999999999999999*999999999999999999", 999999999999999998000000000000000001),
    ],
)
def test_one_operation_is_evaluated_exactly(expression: str, value: int) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "12", "-12", "1+2+3", "(1+2)", "4/2", "2**3", "1.5+1", "a+b", "1+", "9" * 19 + "+1"],
)
def test_anything_else_is_refused_in_one_short_line(expression: str) -> None:
    with pytest.raises(ValueError, match="one operation at a time") as refusal:
        evaluate(expression)
    assert "\n" not in str(refusal.value)


def test_a_refusal_stays_short_whatever_was_asked() -> None:
    with pytest.raises(ValueError, match="one operation") as refusal:
        evaluate("1+" * 10_000)
    assert len(str(refusal.value)) < 120


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 53.", 53),
        ("<think>Left: -4.</think>\nThe answer is -4.", -4),
        ("The answer is 1. No: The answer is 2.", 2),
        ("<think>The answer is 9.</think>\nI cannot tell.", None),
        ("53", None),
        ("The answer is " + "9" * 19, None),
        ("", None),
    ],
)
def test_only_a_stated_answer_counts(text: str, answer: int | None) -> None:
    assert parse_answer(text) == answer
