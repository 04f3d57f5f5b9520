"""A resource for tests: a counter that writes down what becomes of its sessions, and breaks where it is told to."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import uuid4

from resources.counter import Count, Counter
from rollout.errors import ResourceDown
from rollout.offload import offload
from rollout.resource import tool
from rollout.trajectory import Score, Task, Transcript

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Entry(Count):
    """A session and what it is called in the diary."""

    key: str = ""
    index: int = 0


class Diary(Counter):
    """Add 1 to a total a given number of times, then submit it.

    Args:
        path: The diary; every session adds a line when it opens and one when it closes.
        count: How many tasks.
        down: Tasks whose tool cannot work.
        deadly: Tasks whose session takes the host down.
        offloads: Scores in another process.
    """

    name = "diary"

    def __init__(
        self,
        path: str,
        count: int,
        down: tuple[int, ...] = (),
        deadly: tuple[int, ...] = (),
        offloads: bool = False,
    ) -> None:
        super().__init__(count)
        self._path = path
        self._down = down
        self._deadly = deadly
        self._offloads = offloads

    def tasks(self, seed: int) -> Iterator[Task]:
        for task in super().tasks(seed):
            yield replace(task, data={**task.data, "index": task.index})

    async def seed_session(self, task: Task, seed: int) -> Count:
        index = int(task.data["index"])
        if index in self._deadly:
            os._exit(1)
        entry = Entry(int(task.data["target"]), key=uuid4().hex, index=index)
        self._write(f"open {entry.key} {index}")
        return entry

    @tool
    async def add(self, session: Entry, amount: int) -> int:
        """Add to the total and return it.

        Args:
            amount: What to add.
        """
        if session.index in self._down:
            raise ResourceDown("no disk")
        session.total += amount
        log.info("the total is %d", session.total)
        return session.total

    async def verify(self, session: Count, transcript: Transcript) -> Score:
        """1.0 when the total that was submitted is the target, else 0.0."""
        if self._offloads:
            await offload(abs, session.total, seconds=10)
        return await super().verify(session, transcript)

    async def close(self, session: Count) -> None:
        assert isinstance(session, Entry)
        self._write(f"close {session.key} {session.index}")

    def _write(self, line: str) -> None:
        """One write of a short line to a file opened for appending: lines of several hosts do not mix."""
        with open(self._path, "a", buffering=1) as file:
            file.write(line + "\n")
