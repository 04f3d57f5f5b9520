"""Many small calls to an actor, carried in few remote calls.

A remote call costs about the same whatever is in it, so the unit of transport is a trip, not a call. A Courier puts
everything that is asked within a few milliseconds into one trip; the Mailbox on the other side starts each letter at
once and the trip comes back as soon as something is finished, with whatever is finished. Nobody waits for the
slowest, and while anything is out exactly one trip is held at the mailbox.

    courier.ask(payload) -> outbox --trip--> Mailbox.exchange -> handler(payload) as a task
                          <- future <--trip--  results of any earlier letter of this client

Delivery is at most once. When a trip fails, or comes back from another mailbox than the one that holds a letter (an
actor was restarted, a replica replaced), the letters it may have carried are reported as Lost; whoever asked decides
whether to ask again.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from rollout.errors import ResourceDown, RolloutError, describe

LINGER_SECONDS = 0.002
"""How long an outbox or a finished result waits for company."""
HOLD_SECONDS = 5.0
"""How long a trip with nothing to bring back is held."""
SILENT_SECONDS = 30.0
"""A trip that is not back so long after its hold is lost; a client not seen for so long is forgotten."""

Exchange = Callable[[str, bytes, float], Awaitable[bytes]]
"""(client, letters, hold seconds) -> answer: `Mailbox.exchange` behind some transport."""


class Lost(ResourceDown):
    """The answer will not come: the actor died, was replaced or does not answer."""


@dataclass(slots=True)
class _Client:
    finished: list[tuple[int, bool, Any]] = field(default_factory=list[tuple[int, bool, Any]])
    running: dict[int, asyncio.Task[None]] = field(default_factory=dict[int, asyncio.Task[None]])
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    trips: int = 0
    seen: float = 0.0


class Mailbox:
    """The receiving side. One for each actor; `handler` answers one letter and may take as long as it likes."""

    def __init__(self, handler: Callable[[Any], Awaitable[Any]]) -> None:
        self._handler = handler
        self._clients: dict[str, _Client] = {}
        self._epoch = uuid4().hex

    @property
    def running(self) -> int:
        """Letters being answered now."""
        return sum(len(client.running) for client in self._clients.values())

    async def exchange(self, name: str, letters: bytes, hold: float) -> bytes:
        """Takes letters in and brings back what is finished; waits at most `hold` seconds for the first."""
        client = self._clients.setdefault(name, _Client())
        client.trips += 1
        client.seen = time.monotonic()
        trip = client.trips
        client.wake.set()  # an earlier trip of this client need not be held any longer
        new, cancelled = pickle.loads(letters)
        for number, payload in new:
            client.running[number] = asyncio.create_task(self._answer(client, number, payload))
        for number in cancelled:
            if (task := client.running.get(number)) is not None:
                task.cancel()
        self._forget_silent()
        await self._hold(client, trip, hold)
        finished, client.finished = client.finished, []
        return pickle.dumps((self._epoch, finished), protocol=5)

    async def _hold(self, client: _Client, trip: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not client.finished and client.trips == trip and (left := deadline - time.monotonic()) > 0:
            client.wake.clear()
            try:
                async with asyncio.timeout(left):
                    await client.wake.wait()
            except TimeoutError:
                return
        if client.finished and client.running:
            await asyncio.sleep(LINGER_SECONDS)

    async def _answer(self, client: _Client, number: int, payload: Any) -> None:
        try:
            result = (number, True, await self._handler(payload))
        except asyncio.CancelledError:
            result = (number, False, Lost("cancelled"))
        except (RolloutError, TimeoutError) as error:
            result = (number, False, error)
        except Exception as error:  # travels back to the one who asked, as text: foreign errors may not pickle
            result = (number, False, ResourceDown(describe(error)))
        finally:
            client.running.pop(number, None)
        client.finished.append(result)
        client.wake.set()

    def _forget_silent(self) -> None:
        """A client that never comes back (its process died) does not keep its work running."""
        now = time.monotonic()
        for name, client in list(self._clients.items()):
            if now - client.seen > HOLD_SECONDS + 2 * SILENT_SECONDS:
                for task in client.running.values():
                    task.cancel()
                del self._clients[name]


class Courier:
    """The asking side: one for each pair of a process and a mailbox."""

    def __init__(self, exchange: Exchange, where: str) -> None:
        self._exchange = exchange
        self._where = where
        self._name = uuid4().hex
        self._numbers = itertools.count()
        self._outbox: list[tuple[int, Any]] = []
        self._cancelled: list[int] = []
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._held_by: dict[int, str] = {}
        self._trips: set[asyncio.Task[None]] = set()
        self._lingering = False
        self._out = 0
        """Trips on their way. Not the number of tasks: those end a little later than their trips."""

    async def ask(self, payload: Any) -> Any:
        """The handler's answer to `payload`.

        Raises Lost when it will not come, ResourceDown for a foreign error over there, and the handler's own
        RolloutError or TimeoutError. Cancelling it cancels the handler too.
        """
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._outbox.append((number, payload))
        self._depart()
        try:
            return await future
        except asyncio.CancelledError:
            self._cancelled.append(number)
            self._depart()
            raise
        finally:
            self._waiting.pop(number, None)
            self._held_by.pop(number, None)

    def _depart(self) -> None:
        if not self._lingering:
            self._lingering = True
            self._start(self._linger())

    def _start(self, trip: Any) -> None:
        task = asyncio.create_task(trip)
        self._trips.add(task)
        task.add_done_callback(self._trips.discard)

    async def _linger(self) -> None:
        await asyncio.sleep(LINGER_SECONDS)
        self._lingering = False
        await self._travel()

    async def _travel(self) -> None:
        letters, self._outbox = self._outbox, []
        cancelled, self._cancelled = self._cancelled, []
        letters = [letter for letter in letters if letter[0] in self._waiting]
        carried = {number for number, _ in letters}
        self._out += 1
        try:
            blob = pickle.dumps((letters, cancelled), protocol=5)
            async with asyncio.timeout(HOLD_SECONDS + SILENT_SECONDS):
                answer = await self._exchange(self._name, blob, HOLD_SECONDS)
        except Exception as error:  # whatever the transport raises, its letters are lost and must be said so
            self._lose(carried | set(self._held_by), error)
            return
        finally:
            self._out -= 1
        epoch, finished = pickle.loads(answer)
        for number in carried & self._waiting.keys():
            self._held_by[number] = epoch
        for number, ok, value in finished:
            self._settle(number, ok, value)
        self._lose({number for number, holder in self._held_by.items() if holder != epoch}, None)
        if self._held_by and not self._lingering and not self._out:
            self._start(self._travel())

    def _settle(self, number: int, ok: bool, value: Any) -> None:
        self._held_by.pop(number, None)
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if ok:
            future.set_result(value)
        else:
            future.set_exception(value)

    def _lose(self, numbers: set[int], error: Exception | None) -> None:
        reason = describe(error) if error is not None else "it was replaced"
        for number in numbers:
            self._settle(number, False, Lost(f"{self._where}: {reason}"))
