"""The smallest environment with state: the scripted engine and the benchmark play it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import NonNegativeInt
from rollout.errors import ToolError
from rollout.resource import Resource, Solution, tool
from rollout.trajectory import Message, Score, Task, ToolResult, Transcript

_WORDS = ("no times", "once", "twice", "three times", "four times", "five times", "six times")


@dataclass(slots=True)
class Count:
    """A session: what has been added so far, and whether that was submitted."""

    target: int
    total: int = 0
    submitted: bool = False


class Counter(Resource):
    """Add 1 to a total a given number of times, then submit it.

    Args:
        count: How many tasks, all alike; None never ends.
        target: The total that scores 1.0.
    """

    name = "counter"
    restores = "replay"
    rescores = "replay"  # the total is judged

    def __init__(self, count: NonNegativeInt | None = None, target: NonNegativeInt = 4) -> None:
        self.num_tasks = count
        self._target = target

    def tasks(self, seed: int) -> Iterator[Task]:
        times = _WORDS[self._target] if self._target < len(_WORDS) else f"{self._target} times"
        message: Message = {"role": "user", "content": f"Add 1 {times}, then submit."}
        for index in itertools.count() if self.num_tasks is None else range(self.num_tasks):
            yield Task(f"counter-{index}", (message,), {"target": self._target}, index)

    async def seed_session(self, task: Task, seed: int) -> Count:
        return Count(int(task.data["target"]))

    @tool
    async def add(self, session: Count, amount: int) -> int:
        """Add to the total and return it.

        Args:
            amount: What to add.
        """
        if session.submitted:
            raise ToolError("the total was submitted")
        session.total += amount
        return session.total

    @tool
    async def submit(self, session: Count) -> ToolResult:
        """Hand the total in, which ends the episode."""
        session.submitted = True
        return ToolResult(str(session.total), done=True)

    async def verify(self, session: Count, transcript: Transcript) -> Score:
        """1.0 when the total that was submitted is the target, else 0.0."""
        reward = 1.0 if session.submitted and session.total == session.target else 0.0
        return Score(reward, {"correct": reward}, {"submitted": float(session.submitted)})

    def gold(self, task: Task) -> Solution:
        return Solution((*(("add", {"amount": 1}) for _ in range(task.data["target"])), ("submit", {})))

    def wrong(self, task: Task) -> Solution:
        return Solution((("add", {"amount": task.data["target"] + 1}), ("submit", {})))
