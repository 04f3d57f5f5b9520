"""The rate limits of a run, for all its processes together: one actor keeps them, everybody asks it.

    SharedLimiter (in each runner) --trips of a Courier--> RateLimits (one actor a run)

An actor that was restarted knows nobody who waits or calls: clients ask again, and its buckets begin empty, as what
had started before is not known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, NamedTuple
from uuid import uuid4

import ray

from actors.courier import Courier, Mailbox
from rollout.agents.limiter import LocalLimiter, Permit
from rollout.agents.rates import Rate, Rates, limit_of
from rollout.deadlines import deadline
from rollout.errors import Unavailable, describe

LINGER_SECONDS = 0.02
"""What a question waits for company, and its answer: little next to a model call, and each trip costs as much as
several turns."""
PAUSE_SECONDS = 0.5
"""Before an actor that did not answer is asked again."""


class Asked(NamedTuple):  # pickled in a third of a dataclass's time, twice for every model call
    """A call that wants to start. The answer is how many seconds it waited."""

    ticket: str
    model: str
    tokens: int
    seconds: float


class Settled(NamedTuple):
    """A call that has ended, or whose caller does not wait any more."""

    ticket: str
    tokens: int | None


class RateLimits:
    """The limits of a run. Plain asyncio: `new_rate_limits` makes it an actor."""

    def __init__(self, limits: Mapping[str, Rate], full: bool = True) -> None:
        self._limiter = LocalLimiter(Rates(limits, time.monotonic(), full=full))
        self._mailbox = Mailbox(self._take, least_linger=LINGER_SECONDS)

    async def exchange(self, client: str, letters: bytes, hold: float) -> bytes:
        """A trip of a client: see Mailbox."""
        return await self._mailbox.exchange(client, letters, hold)

    async def _take(self, letter: Asked | Settled) -> float:
        if isinstance(letter, Settled):
            self._limiter.settle(Permit(letter.ticket), letter.tokens)
            return 0.0
        return (await self._limiter.started(Permit(letter.ticket), letter.model, letter.tokens, letter.seconds)).waited


class _Restarting(RateLimits):
    def __init__(self, limits: Mapping[str, Rate]) -> None:
        super().__init__(limits, full=not ray.get_runtime_context().was_current_actor_reconstructed)


def new_rate_limits(run_id: str, limits: Mapping[str, Rate]) -> Any:
    """The actor of a run: the one that is there, or one that is starting. It ends with whoever made it."""
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 1000}
    actor = ray.remote(_Restarting).options(name=f"rollout-rates-{run_id}", get_if_exists=True, **options)
    return actor.remote(dict(limits))


class SharedLimiter:
    """A Limiter over the actor of the run. Belongs to the event loop it is used on."""

    def __init__(self, actor: Any, names: Iterable[str]) -> None:
        """`names` of the limits: the actor is not asked about models without one."""
        self._courier = Courier(actor.exchange.remote, "rate limits", least_linger=LINGER_SECONDS)
        self._names = frozenset(names)
        self._me, self._asked = uuid4().hex, count()

    async def acquire(self, model: str, tokens: int, seconds: float) -> Permit:
        """See Limiter. Asks again while the actor restarts; raises Unavailable when it does not come back in time."""
        if limit_of(self._names, model) is None:
            return Permit("")
        began = time.monotonic()
        while True:
            asked = Asked(f"{self._me}.{next(self._asked)}", model, tokens, began + seconds - time.monotonic())
            try:
                async with deadline(asked.seconds):
                    await self._courier.ask(asked, lambda _, ticket=asked.ticket: Settled(ticket, 0))
                return Permit(asked.ticket, time.monotonic() - began)
            except TimeoutError:
                late = f"{model}: rate limit: its turn did not come within {seconds:.1f} s"
                raise TimeoutError(late) from None
            except Unavailable as error:
                if asked.seconds <= PAUSE_SECONDS:
                    raise Unavailable(f"rate limits: {describe(error)}") from error
            await asyncio.sleep(PAUSE_SECONDS)

    def settle(self, permit: Permit, tokens: int | None) -> None:
        """See Limiter. Nobody waits for the answer: an actor that does not get it takes the permit back in time."""
        if permit.ticket:
            self._courier.tell(Settled(permit.ticket, tokens))
