"""The environment of the examples beside it: one sum, and a tool that adds two numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import NonNegativeInt

from rollout.resource import Resource, Solution, tool
from rollout.trajectory import Message, Score, Task, Transcript

LEFT, RIGHT = 17, 25


class Sums(Resource):
    """A sum to work out; right is an answer whose last number is the sum.

    Args:
        count: How many tasks, all alike.
    """

    name = "sums"
    instructions = "Work the sum out with add, then answer."
    restores = "replay"
    rescores = "transcript"

    def __init__(self, count: NonNegativeInt = 8) -> None:
        self.num_tasks = count

    def tasks(self, seed: int) -> Iterator[Task]:
        message: Message = {"role": "user", "content": f"What is {LEFT} + {RIGHT}?"}
        for index in range(self.num_tasks or 0):
            yield Task(f"sums-{index}", (message,), {"sum": LEFT + RIGHT}, index)

    async def seed_session(self, task: Task, seed: int) -> int:
        return int(task.data["sum"])

    @tool
    async def add(self, session: int, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: One of them.
            b: The other.
        """
        return a + b

    async def verify(self, session: int, transcript: Transcript) -> Score:
        """1.0 when the last number of the answer, free text or JSON, is the sum, else 0.0."""
        numbers = re.findall(r"-?\d+", transcript.answer)
        return Score(1.0 if numbers[-1:] == [str(session)] else 0.0)

    def gold(self, task: Task) -> Solution:
        return Solution((("add", {"a": LEFT, "b": RIGHT}),), f"The sum is {task.data['sum']}.")
