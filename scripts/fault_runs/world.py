"""What a fault run plays: a counter that writes its sessions down and may be late, and an engine that may talk garbage.

Both break in ways that real ones do, at moments that follow from the run's seed.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import zlib
from array import array
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from actors.engine import EngineFactory, GenerateReply, GenerateRequest
from resources.counter import Count, Counter
from rollout.load import Load
from rollout.offload import offload
from rollout.resource import tool
from rollout.trajectory import FinishReason, Score, Task, Transcript

GARBAGE = ("raises", "prompt", "logprobs", "nan", "range", "negative", "empty", "torn", "abort", "long", "dies")
"""The ways in which `Garbage` goes wrong."""


@dataclass(slots=True)
class Entry(Count):
    """A session and what it is called in the diary."""

    key: str = ""


class Diary(Counter):
    """Counts, and writes a line for every session that opens and closes, with the process that holds it.

    Args:
        path: The diary.
        count: How many tasks.
        target: The total that scores 1.0.
        late: Seconds for which a host now and then does nothing at all, as one does whose disk hangs.
    """

    name = "diary"

    def __init__(self, path: str, count: int, target: int, late: float = 0.0) -> None:
        super().__init__(count, target)
        self._path = path
        self._late = late
        self._late_at = random.Random(os.getpid()).randrange(20, 60) if late else 0
        self._calls = 0

    async def seed_session(self, task: Task, seed: int) -> Count:
        entry = Entry(int(task.data["target"]), key=uuid4().hex)
        self._write("open", entry)
        return entry

    @tool
    async def add(self, session: Entry, amount: int) -> int:
        """Add to the total and return it.

        Args:
            amount: What to add.
        """
        self._calls += 1
        if self._calls == self._late_at:
            time.sleep(self._late)  # noqa: ASYNC251 - blocks the whole host on purpose
        session.total += amount
        return session.total

    async def verify(self, session: Count, transcript: Transcript) -> Score:
        """Another process has its say first: that is where verifiers that cost CPU run."""
        await offload(abs, session.total, seconds=10)
        return await super().verify(session, transcript)

    async def close(self, session: Count) -> None:
        assert isinstance(session, Entry)
        self._write("close", session)

    def _write(self, verb: str, entry: Entry) -> None:
        """One write of a short line to a file opened for appending: lines of several hosts do not mix."""
        with open(self._path, "a", buffering=1) as file:
            file.write(f"{verb} {entry.key} {os.getpid()}\n")


@dataclass(frozen=True, slots=True)
class GarbageFactory:
    """Makes an engine that talks garbage in a share of its replies."""

    inner: EngineFactory
    share: float

    def __call__(self) -> Any:
        return Garbage(self.inner(), self.share)


class Garbage:
    """An engine whose replies are now and then not what they should be. What goes wrong follows from the request."""

    def __init__(self, inner: Any, share: float) -> None:
        self._inner = inner
        self._share = share

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        reply = await self._inner.generate(request)
        draw = random.Random(zlib.crc32(request.request_id.encode()))
        if not request.session_id or draw.random() >= self._share:  # the warm-up has no session
            return reply
        return await _spoilt(reply, draw.choice(GARBAGE), request)

    def load(self) -> Load:
        return self._inner.load()

    async def check_health(self) -> None:
        await self._inner.check_health()

    async def stop(self) -> None:
        await self._inner.stop()


async def _spoilt(reply: GenerateReply, how: str, request: GenerateRequest) -> GenerateReply:
    ids = array("i", reply.ids)
    match how:
        case "raises":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "prompt":
            return replace(reply, prompt_tokens=reply.prompt_tokens + 1)
        case "logprobs":
            return replace(reply, logprobs=reply.logprobs[:-4])
        case "nan":
            return replace(reply, logprobs=array("f", [float("nan")] * len(ids)).tobytes())
        case "range":
            return replace(reply, ids=array("i", [*ids[:-1], 2**31 - 1]).tobytes())
        case "negative":
            return replace(reply, ids=array("i", [-1, *ids[1:]]).tobytes())
        case "empty":
            return replace(reply, ids=b"", logprobs=b"", versions=())
        case "torn":
            return replace(reply, ids=reply.ids[:-1])
        case "abort":
            return replace(reply, finish_reason=FinishReason.ABORT)
        case "long":
            more = array("i", [ids[0]] * (request.max_tokens + 1))
            return replace(reply, ids=more.tobytes(), logprobs=bytes(4 * len(more)))
        case _:
            await asyncio.sleep(0.05)
            os._exit(1)
