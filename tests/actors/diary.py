"""A resource for tests: a counter that writes down what becomes of its sessions, and breaks where it is told to."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter as Tally
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
    hangs: bool = False


class Diary(Counter):
    """Add 1 to a total a given number of times, then submit it.

    Args:
        path: The diary; every session adds a line when it opens and one when it closes.
        count: How many tasks.
        down: Tasks whose tool cannot work.
        deadly: Tasks whose session takes the host down.
        offloads: Scores in another process.
        gate: A file without which its tool waits.
        quick: Sessions of a task whose tool answers; that of all others hangs. For one host.
    """

    name = "diary"

    def __init__(
        self,
        path: str,
        count: int,
        down: tuple[int, ...] = (),
        deadly: tuple[int, ...] = (),
        offloads: bool = False,
        gate: str | None = None,
        quick: int | None = None,
    ) -> None:
        super().__init__(count)
        self._path = path
        self._down = down
        self._deadly = deadly
        self._offloads = offloads
        self._gate = gate
        self._quick = quick
        self._sessions: Tally[int] = Tally()

    def tasks(self, seed: int) -> Iterator[Task]:
        for task in super().tasks(seed):
            yield replace(task, data={**task.data, "index": task.index})

    async def seed_session(self, task: Task, seed: int) -> Count:
        index = int(task.data["index"])
        if index in self._deadly:
            os._exit(1)
        entry = Entry(int(task.data["target"]), key=uuid4().hex, index=index)
        self._sessions[index] += 1
        entry.hangs = self._quick is not None and self._sessions[index] > self._quick
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
        while self._gate is not None and not os.path.exists(self._gate):  # noqa: ASYNC110, ASYNC240 - files do not call
            await asyncio.sleep(0.05)
        if session.hangs:
            await asyncio.sleep(3600)
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
