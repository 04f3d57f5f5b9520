"""What a model replica needs of an engine, and the engine that needs no model.

Token ids and logprobs travel as packed bytes: a list of Python ints costs more to move than to sample.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rollout.load import Load
from rollout.trajectory import Extras, FinishReason, Sampling, VersionSpan
from rollout.turn import NO_EXTRAS


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One completion to sample. `prompt_ids` is packed int32."""

    request_id: str
    session_id: str
    turn: int
    prompt_ids: bytes
    max_tokens: int
    sampling: Sampling
    extras: Extras = NO_EXTRAS
    priority: int = 0
    """Lower goes first; see `model.priority_seconds`."""
    salt: str | None = None
    """Prompts share a prefix cache only with those of the same salt."""


@dataclass(frozen=True, slots=True)
class GenerateReply:
    """What was sampled. `ids` is packed int32, `logprobs` packed float32 of the same length."""

    ids: bytes
    logprobs: bytes
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]
    prompt_tokens: int
    cached_tokens: int
    queue_seconds: float = 0.0
    replica: str = ""
    """Which replica sampled it; its mailbox fills it in."""


class Engine(Protocol):
    """Tokens in, tokens out."""

    async def generate(self, request: GenerateRequest, told: Told | None = None) -> GenerateReply:
        """Samples one completion; cancelling it frees the engine at once. All of its ids are `told` as they come."""
        ...

    async def update(self, version: int, folder: str | None) -> None:
        """Takes the weights in `folder`, None for the job's own, and calls what it samples with them `version`.

        What it is sampling goes on behind the tokens it has. Raises RolloutError when the weights cannot be used;
        then those of before go on serving.
        """
        ...

    async def check_health(self) -> None:
        """Raises when the engine can serve no more."""
        ...

    def load(self) -> Load:
        """How busy it is now. Cheap: it is asked at every trip of a courier."""
        ...

    async def stop(self) -> None:
        """Frees the engine. Nothing is generated afterwards."""
        ...


Told = Callable[[Sequence[int]], None]
"""Takes the ids that came since the last time."""
EngineFactory = Callable[[], "Engine"]


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as int32 bytes."""
    return array("i", ids).tobytes()


def unpack_ids(packed: bytes) -> array[int]:
    """int32 bytes as an array of token ids."""
    return array("i", packed)


Part = tuple[int, bytes]
"""Place of the first of some sampled ids in their completion, and the ids, packed."""


class Parts:
    """Numbers what an engine tells, for whoever may hear it in another order."""

    def __init__(self, take: Callable[[Part], None]) -> None:
        self._take = take
        self._count = 0

    def __call__(self, ids: Sequence[int]) -> None:
        self._take((self._count, pack_ids(ids)))
        self._count += len(ids)


class Listening:
    """Hands ids on in the order in which they were sampled, each once."""

    def __init__(self, heard: Callable[[array[int]], None]) -> None:
        self.count = 0
        """Ids that were handed on."""
        self._heard = heard
        self._early: dict[int, bytes] = {}
        """Parts before which others are missing, by their place."""

    def take(self, part: Part) -> None:
        """A part came."""
        place, packed = part
        if place < self.count:
            return
        self._early[place] = packed
        while (packed := self._early.pop(self.count, None)) is not None:
            self._hand_on(unpack_ids(packed))

    def end(self, ids: array[int]) -> None:
        """All ids of the completion: whatever did not come by itself."""
        self._hand_on(ids[self.count :])

    def _hand_on(self, ids: array[int]) -> None:
        if ids:
            self.count += len(ids)
            self._heard(ids)


class ScriptedEngine:
    """Says the line of its turn, token by token, after a simulated latency. Equal requests give equal replies."""

    def __init__(
        self, lines: Sequence[Sequence[int]], latency_seconds: float, latency_spread: float, seed: int
    ) -> None:
        self._lines = [array("i", line) for line in lines]
        self._latency = latency_seconds
        self._spread = latency_spread
        self._seed = seed
        self._running = 0
        self._versions: list[tuple[float, str]] = [(0.0, "scripted")]
        """What it is called, and since when; of before only what completions under way have seen."""

    async def generate(self, request: GenerateRequest, told: Told | None = None) -> GenerateReply:
        began = time.monotonic()
        line = self._lines[min(request.turn, len(self._lines) - 1)]
        ids = line[: request.max_tokens]
        if self._latency:
            self._running += 1
            try:
                await self._say(ids, self._seconds(request), told)
            finally:
                self._running -= 1
        elif told is not None:
            told(ids)
        reason = FinishReason.STOP if len(ids) == len(line) else FinishReason.LENGTH
        return GenerateReply(
            ids=ids.tobytes(),
            logprobs=array("f", bytes(4 * len(ids))).tobytes(),
            finish_reason=reason,
            versions=self._spans(began, len(ids)),
            prompt_tokens=len(request.prompt_ids) // 4,
            cached_tokens=0,
        )

    async def _say(self, ids: array[int], seconds: float, told: Told | None) -> None:
        """Takes its time; who listens is told token by token."""
        if told is None or not ids:
            await asyncio.sleep(seconds)
            return
        clock = asyncio.get_running_loop().time
        began = clock()
        for place in range(len(ids)):
            await asyncio.sleep(began + seconds * (place + 1) / len(ids) - clock())
            told(ids[place : place + 1])

    async def update(self, version: int, folder: str | None) -> None:
        """It says the same under every version."""
        if not self._running:
            self._versions.clear()
        self._versions.append((time.monotonic(), str(version)))

    def _spans(self, began: float, count: int) -> tuple[VersionSpan, ...]:
        """As if the tokens had come evenly since `began`."""
        seconds = max(time.monotonic() - began, 1e-9)
        spans: list[VersionSpan] = []
        end = count
        for since, version in reversed(self._versions):
            start = min(end, round(count * max(0.0, since - began) / seconds))
            if start < end or not count:
                spans.append(VersionSpan(version, start, end))
            if (end := start) == 0:
                break
        return tuple(reversed(spans))

    def _seconds(self, request: GenerateRequest) -> float:
        """Log-normal around the mean, the same for the same prompt and session in every run."""
        if not self._spread:
            return self._latency
        key = zlib.crc32(request.prompt_ids, zlib.crc32(request.session_id.encode(), self._seed))
        normal = random.Random(key).gauss(0.0, self._spread)
        return self._latency * math.exp(normal - self._spread**2 / 2)

    async def check_health(self) -> None:
        """Always well."""

    def load(self) -> Load:
        """It has no KV cache and lets nobody wait."""
        return Load(running=self._running, waiting=0, kv_usage=0.0, preemptions=0)

    async def stop(self) -> None:
        """Holds nothing."""
