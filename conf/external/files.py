"""The environment of the examples beside it: a folder to work in, judged by the file that is left in it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import NonNegativeInt

from rollout.resource import Resource
from rollout.trajectory import Message, Score, Task, Transcript

LEFT, RIGHT = 17, 25
FILE = "answer.txt"


class Files(Resource):
    """A sum to work out; right is a file that holds it.

    Args:
        count: How many tasks, all alike.
    """

    name = "files"

    def __init__(self, count: NonNegativeInt = 8) -> None:
        self.num_tasks = count

    def tasks(self, seed: int) -> Iterator[Task]:
        message: Message = {"role": "user", "content": f"Write the sum of {LEFT} and {RIGHT} into the file {FILE}."}
        for index in range(self.num_tasks or 0):
            yield Task(f"files-{index}", (message,), {"sum": LEFT + RIGHT}, index)

    async def seed_session(self, task: Task, seed: int) -> int:
        return int(task.data["sum"])

    async def verify(self, session: int, transcript: Transcript) -> Score:
        """1.0 when the file that the program left has the sum and no other number, else 0.0."""
        if transcript.workspace is None:
            return Score(0.0)
        text = await asyncio.to_thread(_text, Path(transcript.workspace, FILE))
        return Score(float(re.findall(r"-?\d+", text) == [str(session)]), {}, {"written": float(bool(text))})


def _text(file: Path) -> str:
    return file.read_text("utf-8", "replace") if file.is_file() else ""
