"""A client's side of the rate limits: who wants to call a model asks first, and says afterwards what it took."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from rollout.agents.rates import Rates
from rollout.deadlines import deadline
from rollout.trajectory import Completion, Prompt

_BYTES_A_TOKEN = 4
"""What a token of text holds, where only the endpoint has a tokenizer."""


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to make one call, and how many seconds it was waited for."""

    ticket: str
    waited: float = 0.0


class Limiter(Protocol):
    """What a call of a model waits for."""

    async def acquire(self, model: str, tokens: int, seconds: float) -> Permit:
        """Waits until `model` may be called with up to `tokens` tokens, prompt included.

        `seconds` is what waiting and call may take together: a permit that is not settled by then is taken back.
        Raises TimeoutError when its turn does not come within `seconds`, Unavailable when nobody can say. Cancelling
        it leaves the queue.
        """
        ...

    def settle(self, permit: Permit, tokens: int | None) -> None:
        """The call has ended, for whatever reason; None says that nobody knows what it took."""
        ...


class LocalLimiter:
    """The limits of one process. Belongs to the event loop it is used on."""

    def __init__(self, rates: Rates, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the one `rates` was made with."""
        self._rates = rates
        self._clock = clock
        self._starts: dict[str, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf
        """When the timer looks, by the clock."""

    async def acquire(self, model: str, tokens: int, seconds: float) -> Permit:
        """See Limiter."""
        return await self.started(Permit(uuid4().hex), model, tokens, seconds)

    async def started(self, permit: Permit, model: str, tokens: int, seconds: float) -> Permit:
        """The same with a ticket of the caller's choice, who can then leave the queue from elsewhere by settling it."""
        began, ticket = self._clock(), permit.ticket
        start = self._starts[ticket] = asyncio.get_running_loop().create_future()
        self._rates.ask(ticket, model, tokens, began, seconds)
        self._look()
        try:
            if not start.done():
                async with deadline(seconds):
                    await start
        except (TimeoutError, asyncio.CancelledError) as error:
            self.settle(permit, 0)
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"{model}: rate limit: its turn did not come within {seconds:.1f} s") from None
            raise
        finally:
            del self._starts[ticket]
        return Permit(ticket, self._clock() - began)

    def settle(self, permit: Permit, tokens: int | None) -> None:
        """See Limiter."""
        self._rates.settle(permit.ticket, tokens, self._clock())
        self._look()

    def _look(self) -> None:
        """Starts whoever is due, and comes back when the next one is."""
        now = self._clock()
        for ticket in self._rates.due(now):
            if (start := self._starts.get(ticket)) is not None and not start.done():
                start.set_result(None)
        at = self._rates.next_at(now)
        if at >= self._next:  # it looks before that
            return
        if self._timer is not None:
            self._timer.cancel()
        self._next = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._look_again)

    def _look_again(self) -> None:
        self._timer, self._next = None, math.inf
        self._look()


def most_tokens(prompt: Prompt) -> int:
    """Tokens a call may take: its prompt, estimated from the text where there are no ids, and all it may sample."""
    return _prompt_tokens(prompt) + prompt.max_tokens


def tokens_taken(prompt: Prompt, completion: Completion) -> int | None:
    """Tokens a call took as the endpoint counts them; None when it does not tell what it sampled."""
    if completion.sampled_tokens is None and completion.ids is None:
        return None
    read = completion.prompt_tokens
    return (_prompt_tokens(prompt) if read is None else read) + completion.num_sampled


def _prompt_tokens(prompt: Prompt) -> int:
    if len(prompt.ids) > 0:
        return len(prompt.ids)
    size = sum(len(message["content"].encode()) for message in prompt.messages)
    return math.ceil(size / _BYTES_A_TOKEN)
