"""The rate limits of a run, for all its processes together: one actor keeps them, everybody asks it.

    SharedLimiter (in each runner) --acquire, held until it is the caller's turn--> RateLimits (one actor a run)

An actor that was restarted knows nobody who waits or calls: clients ask again, and its buckets begin empty, as what
had started before is not known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayActorError

from rollout.agents.limiter import LocalLimiter, Permit
from rollout.agents.rates import Rate, Rates, limit_of
from rollout.errors import Unavailable, describe

HELD = 10_000
"""Calls that may wait in the actor at once; Ray queues those beyond."""
PAUSE_SECONDS = 0.5
"""Before an actor that did not answer is asked again."""


class RateLimits:
    """The limits of a run. Plain asyncio: `new_rate_limits` makes it an actor."""

    def __init__(self, limits: Mapping[str, Rate], full: bool = True) -> None:
        self._limiter = LocalLimiter(Rates(limits, time.monotonic(), full=full))

    async def acquire(self, ticket: str, model: str, tokens: int, seconds: float) -> float:
        """Seconds waited, as soon as the call may start. Raises TimeoutError after `seconds`."""
        return (await self._limiter.started(Permit(ticket), model, tokens, seconds)).waited

    async def settle(self, ticket: str, tokens: int | None) -> None:
        """The call has ended, or its caller does not wait any more."""
        self._limiter.settle(Permit(ticket), tokens)


class _Restarting(RateLimits):
    def __init__(self, limits: Mapping[str, Rate]) -> None:
        super().__init__(limits, full=not ray.get_runtime_context().was_current_actor_reconstructed)


def new_rate_limits(run_id: str, limits: Mapping[str, Rate]) -> Any:
    """The actor of a run: the one that is there, or one that is starting. It ends with whoever made it."""
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": HELD}
    actor = ray.remote(_Restarting).options(name=f"rollout-rates-{run_id}", get_if_exists=True, **options)
    return actor.remote(dict(limits))


class SharedLimiter:
    """A Limiter over the actor of the run."""

    def __init__(self, actor: Any, names: Iterable[str]) -> None:
        """`names` of the limits: the actor is not asked about models without one."""
        self._actor = actor
        self._names = frozenset(names)

    async def acquire(self, model: str, tokens: int, seconds: float) -> Permit:
        """See Limiter. Asks again while the actor restarts; raises Unavailable when it does not come back in time."""
        if limit_of(self._names, model) is None:
            return Permit("")
        began = time.monotonic()
        while True:
            left = began + seconds - time.monotonic()
            try:
                ticket = await self._started(model, tokens, left)
            except TimeoutError:
                late = f"{model}: rate limit: its turn did not come within {seconds:.1f} s"
                raise TimeoutError(late) from None
            except RayActorError as error:
                if left <= PAUSE_SECONDS:
                    raise Unavailable(f"rate limits: {describe(error)}") from error
            else:
                return Permit(ticket, time.monotonic() - began)
            await asyncio.sleep(PAUSE_SECONDS)

    def settle(self, permit: Permit, tokens: int | None) -> None:
        """See Limiter. Nobody waits for the answer: an actor that does not get it takes the permit back in time."""
        if permit.ticket:
            self._actor.settle.remote(permit.ticket, tokens)

    async def _started(self, model: str, tokens: int, seconds: float) -> str:
        """The ticket of a call that may start."""
        ticket = uuid4().hex
        try:
            await asyncio.wait_for(self._actor.acquire.remote(ticket, model, tokens, seconds), seconds)
        except BaseException:  # cancelled or late: its place in the queue is the next one's
            self.settle(Permit(ticket), 0)
            raise
        return ticket
