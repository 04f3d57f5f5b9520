"""Further attempts at a model call that failed for a reason that may pass.

    RetryingPolicy -> [permit of the limiter -> one attempt -> settle] -> pause -> ...

An attempt that failed has sampled nothing that anybody has seen, so trying again changes no distribution. A completion
that came back is kept, whatever ended it. The pause grows as in NimbleAgents' RetryConfig; which errors are worth it is
decided by type and status, never by text.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Annotated, cast

import aiohttp
import httpx
from pydantic import Field, PositiveFloat

from rollout.agents.limiter import Limiter, Permit, most_tokens, tokens_taken
from rollout.deadlines import deadline
from rollout.errors import RolloutError, Unavailable, describe
from rollout.openai_wire import retry_after
from rollout.protocols import Placing, Policy
from rollout.sections import Section
from rollout.streaming import Delta, Heard, sampled
from rollout.trajectory import Attempt, Completion, Prompt

JITTER = 0.25
"""Share of a pause that chance may take off it."""
_NETWORK = (
    Unavailable,
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    httpx.TimeoutException,
    httpx.NetworkError,
    httpx.RemoteProtocolError,
    httpx.ProxyError,
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
)

log = logging.getLogger(__name__)


class RetryConfig(Section):
    """What happens when a model call fails."""

    max_retries: Annotated[int, Field(ge=0)] = 3
    """Attempts after the first."""
    initial_delay: Annotated[float, Field(ge=0)] = 0.5
    """Seconds before the second attempt,"""
    multiplier: Annotated[float, Field(ge=1)] = 2.0
    """times this before each further one,"""
    max_delay: Annotated[float, Field(ge=0)] = 60.0
    """and never more than this."""
    jitter: bool = True
    """Takes up to a quarter off each pause at random, so that many callers do not come back at once."""
    retry_on_status: tuple[Annotated[int, Field(ge=100, le=599)], ...] = (408, 429, 500, 502, 503, 504, 529)
    """HTTP answers that may be others next time; no other is asked for again."""
    retry_on_network: bool = True
    """Tries again after connections that failed and answers that did not come."""
    respect_retry_after: bool = True
    """Waits as long as the server asks when that is longer; when the call has not so much time left, it fails."""
    attempt_timeout: PositiveFloat | None = None
    """Seconds an attempt may take; what is left of the call when not given."""


def backoff(config: RetryConfig, retry: int, random: Random) -> float:
    """Seconds before retry `retry` (1 is the first): min(initial_delay * multiplier^(retry - 1), max_delay), times a
    uniform factor in [0.75, 1] with jitter."""
    try:
        grown = config.initial_delay * config.multiplier ** (retry - 1)
    except OverflowError:
        grown = math.inf if config.initial_delay else 0.0
    delay = min(grown, config.max_delay)
    return delay * random.uniform(1.0 - JITTER, 1.0) if config.jitter else delay


def worth_retrying(error: BaseException, config: RetryConfig) -> bool:
    """Whether another attempt may end otherwise: a listed status, or no answer at all."""
    if (status := status_of(error)) is not None:
        return status in config.retry_on_status
    return config.retry_on_network and any(isinstance(one, _NETWORK) for one in _causes(error))


def status_of(error: BaseException) -> int | None:
    """The HTTP status an error or its cause carries: as `status`, `status_code`, or that of its `response`."""
    for one in _causes(error):
        for holder in (one, getattr(one, "response", None)):
            for name in ("status", "status_code"):
                if isinstance(status := getattr(holder, name, None), int):
                    return status
    return None


def asked_pause(error: BaseException) -> float | None:
    """Seconds the server asks to be left alone: `after` of an error of ours, or a Retry-After header, which holds
    seconds or a date; None when it does not ask."""
    for one in _causes(error):
        if isinstance(after := getattr(one, "after", None), int | float):
            return float(after)
        for holder in (one, getattr(one, "response", None)):
            if isinstance(headers := getattr(holder, "headers", None), Mapping):
                return retry_after(cast(Mapping[str, str], headers).get("retry-after"))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from. One of ours speaks for itself, unless it says that asking again may help:
    whoever has handed tokens on before it broke raises ResourceDown, and is not asked again."""
    found: BaseException | None = error
    while found is not None:
        yield found
        if isinstance(found, RolloutError) and not isinstance(found, Unavailable):
            return
        found = found.__cause__


@dataclass(slots=True)
class _Ears:
    """Hears, and knows whether it has heard anything."""

    heard: Heard
    opened: bool = False

    def __call__(self, delta: Delta) -> None:
        self.opened = True
        self.heard(delta)


@dataclass(slots=True)
class RetryingPolicy:
    """A policy that is asked again, each time with a permit of its own.

    The policy inside must not try again by itself. All of it happens within prompt.seconds: a pause that would end
    later is not begun. Time spent in queues and pauses is the completion's queue_seconds.
    """

    policy: Policy
    model: str
    """As the limits and the messages name it."""
    config: RetryConfig = field(default_factory=RetryConfig)
    limiter: Limiter | None = None
    random: Random = field(default_factory=Random)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def complete(self, prompt: Prompt) -> Completion:
        """Samples one completion. Raises what the last attempt raised, and what the limiter raises."""
        return await self._sampled(prompt, None)

    async def stream(self, prompt: Prompt, heard: Heard) -> Completion:
        """See StreamingPolicy. An attempt of which something was heard is the last one."""
        return await self._sampled(prompt, heard)

    def closed(self, session_id: str) -> None:
        """See Placing."""
        if isinstance(self.policy, Placing):
            self.policy.closed(session_id)

    async def _sampled(self, prompt: Prompt, heard: Heard | None) -> Completion:
        ears = None if heard is None else _Ears(heard)
        ends = self.clock() + prompt.seconds
        queued = 0.0
        failed: tuple[Attempt, ...] = ()
        for number in count(1):
            permit = await self._permit(prompt, ends - self.clock())
            queued += permit.waited
            try:
                completion = await self._attempt(prompt, permit, ends - self.clock(), ears)
            except Exception as error:  # raised again, unless its type or status say that it may pass
                last = ears is not None and ears.opened
                delay = None if last else self._delay(error, number, ends - self.clock())
                failed = (*failed, Attempt(number, describe(error), status_of(error), delay))
                self._tell(failed[-1])
                if delay is None:
                    raise
                await self.sleep(delay)
                queued += delay
            else:
                if not queued and not failed:
                    return completion
                return replace(completion, queue_seconds=completion.queue_seconds + queued, attempts=failed)
        raise AssertionError("the last attempt returns or raises")

    async def _permit(self, prompt: Prompt, left: float) -> Permit:
        if self.limiter is None:
            return Permit("")
        return await self.limiter.acquire(self.model, most_tokens(prompt), left)

    async def _attempt(self, prompt: Prompt, permit: Permit, left: float, heard: Heard | None) -> Completion:
        seconds = max(0.0, left if self.config.attempt_timeout is None else min(left, self.config.attempt_timeout))
        bound, taken = deadline(seconds), None
        try:
            async with bound:
                completion = await sampled(self.policy, replace(prompt, seconds=seconds), heard)
            taken = tokens_taken(prompt, completion)
            return completion
        except TimeoutError as error:
            if bound.expired():
                raise TimeoutError(f"{self.model}: no answer within {seconds:.1f} s") from error
            raise
        finally:
            if self.limiter is not None:
                self.limiter.settle(permit, taken)

    def _delay(self, error: Exception, number: int, left: float) -> float | None:
        """Seconds until the next attempt; None when there is to be none."""
        if number > self.config.max_retries or not worth_retrying(error, self.config):
            return None
        delay = backoff(self.config, number, self.random)
        if self.config.respect_retry_after:
            delay = max(delay, asked_pause(error) or 0.0)
        return delay if delay < left else None

    def _tell(self, attempt: Attempt) -> None:
        then = "given up" if attempt.delay is None else f"again in {attempt.delay:.2f} s"
        log.info("%s: attempt %d: %s; %s", self.model, attempt.number, attempt.error, then)
