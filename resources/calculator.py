"""Arithmetic with a calculator that does one operation at a time: what the bundled model plays."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt
from rollout.errors import ToolError
from rollout.resource import Resource, Solution, tool
from rollout.trajectory import Message, Score, Task, ToolResult, Transcript

from resources import arithmetic


@dataclass(slots=True)
class Work:
    """A session: the right answer, and how far the calls have come on the way to it."""

    answer: int
    left: ast.expr
    """What is still to be worked out."""
    astray: bool = False
    """A call worked out what is no part of it."""


class Calculator(Resource):
    """Expressions of a few operations, each operation worked out by a tool call.

    The reward is that of the answer alone. Beside it every call has a step reward: 0 for an operation that the
    expression asks for, -1 for the first one that it does not. What follows such a call says nothing about the policy
    and has none.

    Args:
        split: Which problems; the bundled model was trained on `train`.
        count: How many tasks; None never ends.
        least_operations: Only problems of at least so many operations; there are up to four.
        ends_astray: The first call that the expression does not ask for ends the episode: what follows it teaches
            nothing, and playing it takes a third of the time.
    """

    name = "calculator"
    instructions = arithmetic.INSTRUCTIONS
    restores = "replay"
    rescores = "transcript"

    def __init__(
        self,
        split: Literal["train", "heldout"] = "heldout",
        count: NonNegativeInt | None = None,
        least_operations: Annotated[int, Field(ge=1, le=arithmetic.MOST_OPERATIONS)] = 1,
        ends_astray: bool = False,
    ) -> None:
        self._split = split
        self._least_operations = least_operations
        self._ends_astray = ends_astray
        self.num_tasks = count

    def tasks(self, seed: int) -> Iterator[Task]:
        problems = ((number, arithmetic.problem(seed, number, self._split)) for number in itertools.count())
        hard = ((number, problem) for number, problem in problems if len(problem.steps) >= self._least_operations)
        for index, (number, problem) in enumerate(itertools.islice(hard, self.num_tasks)):
            data = {"expression": problem.expression, "answer": problem.answer}
            message: Message = {"role": "user", "content": arithmetic.prompt(problem)}
            yield Task(f"calculator-{self._split}-{number}", (message,), data, index)

    async def seed_session(self, task: Task, seed: int) -> Work:
        return Work(int(task.data["answer"]), _parsed(task))

    @tool
    async def calculate(self, session: Work, expression: str) -> ToolResult:
        """the result of one operation

        Args:
            expression: Two whole numbers with +, - or * between them, such as 12+7.
        """
        try:
            result = arithmetic.evaluate(expression)
        except ValueError as error:
            raise ToolError(str(error)) from None
        reward = _step_reward(session, expression)
        return ToolResult(str(result), reward=reward, done=self._ends_astray and session.astray)

    async def verify(self, session: Work, transcript: Transcript) -> Score:
        """1.0 for the right number in a final answer of the form `The answer is 12.`, else 0.0."""
        given = arithmetic.parse_answer(transcript.answer)
        reward = 1.0 if given == session.answer else 0.0
        calls = sum(message["role"] == "tool" for message in transcript.messages)
        return Score(reward, {"correct": reward}, {"answered": float(given is not None), "calls": float(calls)})

    def gold(self, task: Task) -> Solution:
        calls: list[str] = []
        left = _parsed(task)
        while isinstance(left, ast.BinOp):
            operation = next(arithmetic.ready(left))
            calls.append(arithmetic.written(operation))
            left = arithmetic.worked_out(left, [operation])
        answer = arithmetic.written(left)
        return Solution(tuple(("calculate", {"expression": call}) for call in calls), f"The answer is {answer}.")

    def wrong(self, task: Task) -> Solution:
        calls = self.gold(task).calls[:-1]
        return Solution(calls, f"The answer is {task.data['answer'] + 1}.")


def _parsed(task: Task) -> ast.expr:
    return ast.parse(task.data["expression"], mode="eval").body


def _step_reward(work: Work, expression: str) -> float | None:
    """What a call is worth; moves the work on where it is part of it."""
    asked = "".join(expression.split())
    operation = next((one for one in arithmetic.ready(work.left) if arithmetic.written(one) == asked), None)
    if operation is not None:
        work.left = arithmetic.worked_out(work.left, [operation])
        return 0.0
    if work.astray:
        return None
    work.astray = True
    return -1.0
