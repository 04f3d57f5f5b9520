"""Arithmetic with a calculator that does one operation at a time: what the bundled model plays."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from typing import Literal

from pydantic import NonNegativeInt
from rollout.errors import ToolError
from rollout.resource import Resource, Solution, tool
from rollout.trajectory import Message, Score, Task, Transcript

from resources import arithmetic

_SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


class Calculator(Resource):
    """Expressions of a few operations, each operation worked out by a tool call.

    Args:
        split: Which problems; the bundled model was trained on `train`.
        count: How many tasks; None never ends.
    """

    name = "calculator"
    instructions = arithmetic.INSTRUCTIONS
    restores = "replay"
    rescores = "transcript"

    def __init__(self, split: Literal["train", "heldout"] = "heldout", count: NonNegativeInt | None = None) -> None:
        self._split = split
        self.num_tasks = count

    def tasks(self, seed: int) -> Iterator[Task]:
        for index in itertools.count() if self.num_tasks is None else range(self.num_tasks):
            problem = arithmetic.problem(seed, index, self._split)
            data = {"expression": problem.expression, "answer": problem.answer}
            message: Message = {"role": "user", "content": arithmetic.prompt(problem)}
            yield Task(f"calculator-{self._split}-{index}", (message,), data, index)

    async def seed_session(self, task: Task, seed: int) -> int:
        """The session is the right answer: nothing else is kept."""
        return int(task.data["answer"])

    @tool
    async def calculate(self, session: int, expression: str) -> str:
        """the result of one operation

        Args:
            expression: Two whole numbers with +, - or * between them, such as 12+7.
        """
        try:
            return str(arithmetic.evaluate(expression))
        except ValueError as error:
            raise ToolError(str(error)) from None

    async def verify(self, session: int, transcript: Transcript) -> Score:
        """1.0 for the right number in a final answer of the form `The answer is 12.`, else 0.0."""
        given = arithmetic.parse_answer(transcript.answer)
        reward = 1.0 if given == session else 0.0
        calls = sum(message["role"] == "tool" for message in transcript.messages)
        return Score(reward, {"correct": reward}, {"answered": float(given is not None), "calls": float(calls)})

    def gold(self, task: Task) -> Solution:
        calls: list[str] = []
        answer = _work_out(ast.parse(task.data["expression"], mode="eval").body, calls)
        return Solution(tuple(("calculate", {"expression": call}) for call in calls), f"The answer is {answer}.")

    def wrong(self, task: Task) -> Solution:
        calls = self.gold(task).calls[:-1]
        return Solution(calls, f"The answer is {task.data['answer'] + 1}.")


def _work_out(node: ast.expr, calls: list[str]) -> int:
    """The value of an expression; appends the operations that lead to it."""
    if isinstance(node, ast.BinOp):
        left, right = _work_out(node.left, calls), _work_out(node.right, calls)
        calls.append(f"{left}{_SYMBOLS[type(node.op)]}{right}")
        return arithmetic.evaluate(calls[-1])
    return int(ast.literal_eval(node))
