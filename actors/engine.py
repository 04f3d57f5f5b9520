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

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Samples one completion; cancelling it frees the engine at once."""
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


EngineFactory = Callable[[], "Engine"]


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as int32 bytes."""
    return array("i", ids).tobytes()


def unpack_ids(packed: bytes) -> array[int]:
    """int32 bytes as an array of token ids."""
    return array("i", packed)


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

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        began = time.monotonic()
        line = self._lines[min(request.turn, len(self._lines) - 1)]
        ids = line[: request.max_tokens]
        if self._latency:
            self._running += 1
            try:
                await asyncio.sleep(self._seconds(request))
            finally:
                self._running -= 1
        reason = FinishReason.STOP if len(ids) == len(line) else FinishReason.LENGTH
        return GenerateReply(
            ids=ids.tobytes(),
            logprobs=array("f", bytes(4 * len(ids))).tobytes(),
            finish_reason=reason,
            versions=self._spans(began, len(ids)),
            prompt_tokens=len(request.prompt_ids) // 4,
            cached_tokens=0,
        )

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
