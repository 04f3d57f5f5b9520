"""Many small calls to an actor, carried in few remote calls.

A remote call costs about the same whatever is in it, so the unit of transport is a trip, not a call. A Courier puts
everything that is asked within a few milliseconds into one trip; the Mailbox on the other side starts each letter at
once and the trip comes back as soon as something is finished, with whatever is finished. Nobody waits for the
slowest, and while anything is out exactly one trip is held at the mailbox.

    courier.ask(payload) -> outbox --trip--> Mailbox.exchange -> handler(payload) as a task
                          <- future <--trip--  results of any earlier letter of this client

A letter that was `Streamed` is answered in parts as well: what its handler tells on the way comes home every
STREAM_SECONDS, or with any answer. Parts are a courtesy: trips may overtake each other, so they may come in another
order, and those behind the answer are dropped.

Delivery is at most once. When a trip fails, or comes back from another mailbox than the one that holds a letter (an
actor was restarted, a replica replaced), the letters it may have carried are reported as Lost; whoever asked decides
whether to ask again. Payloads and answers are pickled one by one, so that one that cannot be costs only itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

from rollout.errors import ResourceDown, RolloutError, Unavailable, describe

LEAST_LINGER, MOST_LINGER = 0.002, 0.02
"""Seconds an outbox or a finished result waits for company, at least and at most."""
LINGER_EACH = 2e-5
"""Seconds of that for each letter under way: who has a thousand out does not feel 20 ms, and the fuller the trips
the fewer there are."""
HOLD_SECONDS = 5.0
"""How long a trip with nothing to bring back is held."""
SILENT_SECONDS = 30.0
"""A trip that is not back so long after its hold is lost; a client not seen for twice as long is forgotten."""

NOTE_SECONDS = 0.02
"""How long a letter whose answer nobody wants waits for others to travel with."""
STREAM_SECONDS = 0.05
"""How long parts of answers are gathered: a trip through Serve costs 2 ms of CPU, however little it carries."""

log = logging.getLogger(__name__)

Exchange = Callable[[str, bytes, float], Awaitable[bytes]]
"""(client, letters, hold seconds) -> answer: `Mailbox.exchange` behind some transport."""


def linger(letters: int, least: float = LEAST_LINGER) -> float:
    """Seconds to wait for company with so many letters under way."""
    return min(MOST_LINGER, max(least, LINGER_EACH * letters))


HAND_OUT = 64
"""Answers of one trip that are handed out before those who got them may go on: what they ask next travels while the
rest is handed out, so that of a thousand answers at once no process waits for all."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """A letter whose answer is to come in parts as well: the handler is called with it and with what takes a part."""

    payload: Any


class Lost(Unavailable):
    """The answer will not come: the actor died, was replaced or does not answer."""


Told = tuple[int, bool | None, bytes]
"""Number of a letter, whether what was pickled is its answer, an error (False) or a part of its answer (None)."""


@dataclass(slots=True)
class _Client:
    """What a mailbox knows of one courier. A client that was forgotten and comes back is a new epoch: its courier
    learns from that that nothing of before is coming."""

    epoch: str = field(default_factory=lambda: uuid4().hex)
    finished: list[Told] = field(default_factory=list[Told])
    """What is to be brought home."""
    answered: bool = False
    """Among it is an answer, not only parts."""
    parts_since: float = 0.0
    """When parts were brought home last."""
    running: dict[int, asyncio.Task[None]] = field(default_factory=dict[int, asyncio.Task[None]])
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    trips: int = 0
    seen: float = 0.0


class Mailbox:
    """The receiving side. One for each actor; `handler` answers one letter and may take as long as it likes."""

    def __init__(
        self,
        handler: Callable[..., Awaitable[Any]],
        forget_seconds: float = HOLD_SECONDS + 2 * SILENT_SECONDS,
        status: Callable[[], Any] | None = None,
        least_linger: float = LEAST_LINGER,
    ) -> None:
        """`handler` is called with a letter, and for one that is `Streamed` also with what takes parts of its answer.
        `status` tells how the actor is; every trip takes that home, once a trip and not once a letter. One that
        raises tells nothing."""
        self._handler = handler
        self._status = status
        self._least_linger = least_linger
        self._forget_seconds = forget_seconds
        self._clients: dict[str, _Client] = {}
        self._notes: set[asyncio.Task[None]] = set()
        """Letters whose answers nobody wants, being read."""
        self._untold = False
        """True once `status` has raised: it is logged once, not every few milliseconds."""

    @property
    def running(self) -> int:
        """Letters being answered now."""
        return sum(len(client.running) for client in self._clients.values())

    async def exchange(self, name: str, letters: bytes, hold: float) -> bytes:
        """Takes letters in and brings back what is finished; waits at most `hold` seconds for the first."""
        self._forget_silent()
        client = self._clients.setdefault(name, _Client())
        client.trips += 1
        client.seen = time.monotonic()
        client.wake.set()  # an earlier trip of this client need not be held any longer
        new, cancelled, notes = pickle.loads(letters)
        for payload in notes:
            note = asyncio.create_task(self._read(payload))
            self._notes.add(note)
            note.add_done_callback(self._notes.discard)
        for number, payload in new:
            task = asyncio.create_task(self._answer(client, number, payload))
            client.running[number] = task
            task.add_done_callback(partial(_leave, client, number))
        for number in cancelled:
            if (running := client.running.get(number)) is not None:
                running.cancel()
        await self._hold(client, client.trips, hold)
        told = self._tell()
        finished, client.finished, client.answered = client.finished, [], False
        return pickle.dumps((client.epoch, finished, told), protocol=5)

    def _tell(self) -> Any:
        try:
            return self._status() if self._status else None
        except Exception:  # the trip has the answers of others on board
            if not self._untold:
                log.exception("it cannot say how it is")
            self._untold = True
            return None

    async def _hold(self, client: _Client, trip: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not client.finished and client.trips == trip and (left := deadline - time.monotonic()) > 0:
            client.wake.clear()
            try:
                async with asyncio.timeout(left):
                    await client.wake.wait()
            except TimeoutError:
                return
        if client.finished and not client.answered:
            await self._gather_parts(client, trip)
        if client.finished and client.running:
            await asyncio.sleep(linger(len(client.running), self._least_linger))

    async def _gather_parts(self, client: _Client, trip: int) -> None:
        """Waits while there are only parts to bring home and the last ones have just left."""
        leaves = client.parts_since + STREAM_SECONDS
        while not client.answered and client.trips == trip and (left := leaves - time.monotonic()) > 0:
            client.wake.clear()
            try:
                async with asyncio.timeout(left):
                    await client.wake.wait()
            except TimeoutError:
                break
        client.parts_since = time.monotonic()

    async def _read(self, payload: bytes) -> None:
        try:
            await self._handler(pickle.loads(payload))
        except Exception:  # whoever sent it does not wait for anything
            log.exception("a letter that wanted no answer")

    async def _answer(self, client: _Client, number: int, payload: bytes) -> None:
        try:
            letter = pickle.loads(payload)
            if isinstance(letter, Streamed):
                answer = await self._handler(letter.payload, partial(self._part, client, number))
            else:
                answer = await self._handler(letter)
            result = (number, True, pickle.dumps(answer, protocol=5))
        except asyncio.CancelledError:
            result = (number, False, pickle.dumps(Lost("cancelled")))
        except (RolloutError, TimeoutError) as error:
            result = (number, False, _pickled(error))
        except (Exception, SystemExit) as error:  # travels as text: foreign errors may not pickle
            result = (number, False, pickle.dumps(ResourceDown(describe(error))))
        client.running.pop(number, None)
        client.finished.append(result)
        client.answered = True
        client.wake.set()

    def _part(self, client: _Client, number: int, part: Any) -> None:
        client.finished.append((number, None, pickle.dumps(part, protocol=5)))
        client.wake.set()

    def _forget_silent(self) -> None:
        """A client that never comes back (its process died) does not keep its work running."""
        now = time.monotonic()
        for name, client in list(self._clients.items()):
            if now - client.seen > self._forget_seconds:
                for task in client.running.values():
                    task.cancel()
                del self._clients[name]


def _leave(client: _Client, number: int, _: asyncio.Task[None]) -> None:
    """For a letter that was cancelled before it could start."""
    client.running.pop(number, None)


def _pickled(error: Exception) -> bytes:
    """The error itself, or what it says when it cannot travel."""
    try:
        blob = pickle.dumps(error)
        pickle.loads(blob)
    except Exception:  # whatever its own constructor raises
        return pickle.dumps(ResourceDown(describe(error)))
    return blob


@dataclass(slots=True)
class _Letter:
    answer: asyncio.Future[Any] | None
    """None when nobody wants to know."""
    undo: Callable[[Any], Any] | None = None
    heard: Callable[[Any], None] | None = None
    """Takes the parts of its answer."""
    sent: bool = False
    holder: str | None = None
    """Epoch of the mailbox that has it; None until a trip has said so."""


class Courier:
    """The asking side: one for each pair of a process and a mailbox."""

    def __init__(
        self,
        exchange: Exchange,
        where: str,
        hold_seconds: float = HOLD_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
        least_linger: float = LEAST_LINGER,
    ) -> None:
        self._exchange = exchange
        self._where = where
        self._hold_seconds = hold_seconds
        self._silent_seconds = silent_seconds
        self._least_linger = least_linger
        self._name = uuid4().hex
        self._numbers = itertools.count()
        self._outbox: list[tuple[int, bytes]] = []
        self._cancelled: list[int] = []
        self._notes: list[bytes] = []
        """Letters whose answers nobody wants."""
        self._notes_due: asyncio.TimerHandle | None = None
        self._letters: dict[int, _Letter] = {}
        """Those whose answer is still to come."""
        self._out: set[int] = set()
        """Trips that are not back yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._lingering = False
        self._epoch: str | None = None
        """Of the mailbox that answered last."""
        self._told: Any = None

    async def ask(
        self, payload: Any, undo: Callable[[Any], Any] | None = None, heard: Callable[[Any], None] | None = None
    ) -> Any:
        """The handler's answer to `payload`; what it tells on the way is `heard`.

        Raises Lost when it will not come, ResourceDown for a foreign error over there, and the handler's own
        RolloutError or TimeoutError. Cancelling it cancels the handler too; where that comes too late,
        `undo(answer)` is sent as a letter of its own.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        number = self._post(payload if heard is None else Streamed(payload), _Letter(answer, undo, heard))
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.cancelled():
                self._abandon(number)
            elif undo is not None and answer.exception() is None:  # it came in the same moment
                self._post(undo(answer.result()), _Letter(None))
            raise

    def tell(self, payload: Any) -> None:
        """Sends a letter whose answer nobody wants: it may be lost. It travels with others where there are any soon."""
        self._notes.append(pickle.dumps(payload, protocol=5))
        if self._notes_due is None:
            self._notes_due = asyncio.get_running_loop().call_later(NOTE_SECONDS, self._send_notes)

    def _send_notes(self) -> None:
        self._notes_due = None
        if self._notes:
            self._depart()

    @property
    def where(self) -> str:
        """What the other side is called."""
        return self._where

    def take_status(self) -> Any:
        """What the other side told of itself last, once; None when it told nothing since this was asked."""
        told, self._told = self._told, None
        return told

    def _post(self, payload: Any, letter: _Letter) -> int:
        number, blob = next(self._numbers), pickle.dumps(payload, protocol=5)
        self._letters[number] = letter
        self._outbox.append((number, blob))
        self._depart()
        return number

    def _abandon(self, number: int) -> None:
        letter = self._letters.get(number)
        if letter is None:  # settled after it was cancelled and before the one who asked could run
            return
        if letter.sent:
            self._cancelled.append(number)
            self._depart()
        if not letter.sent or letter.undo is None:
            del self._letters[number]

    def _depart(self) -> None:
        if not self._lingering:
            self._lingering = True
            self._start(self._linger())

    def _start(self, trip: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(trip)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _linger(self) -> None:
        await asyncio.sleep(linger(len(self._letters), self._least_linger))
        self._lingering = False
        self._outbox = [entry for entry in self._outbox if entry[0] in self._letters]
        unsent = self._outbox or self._cancelled or self._notes
        if unsent or (self._holding and not self._out):  # else all was withdrawn
            await self._travel()

    @property
    def _holding(self) -> bool:
        """True when a mailbox has letters of ours: then a trip must be there to bring the answers."""
        return any(letter.holder is not None for letter in self._letters.values())

    async def _travel(self) -> None:
        letters, self._outbox = [entry for entry in self._outbox if entry[0] in self._letters], []
        cancelled, self._cancelled = self._cancelled, []
        notes, self._notes = self._notes, []
        for number, _ in letters:
            self._letters[number].sent = True
        trip = next(self._numbers)
        self._out.add(trip)
        try:
            blob = pickle.dumps((letters, cancelled, notes), protocol=5)
            async with asyncio.timeout(self._hold_seconds + self._silent_seconds):
                answer = await self._exchange(self._name, blob, self._hold_seconds)
            epoch, finished, self._told = pickle.loads(answer)
        except (Exception, asyncio.CancelledError) as error:  # whatever the transport raises, its letters are lost
            self._lose_trip({number for number, _ in letters}, error)
            return
        finally:
            self._out.discard(trip)
        for number, _ in letters:
            if (letter := self._letters.get(number)) is not None:
                letter.holder = epoch
        taken = [(number, self._taken(number, ok), ok, answer) for number, ok, answer in finished]
        if epoch != self._epoch:
            self._epoch = epoch
            replaced = [number for number, letter in self._letters.items() if letter.holder not in (None, epoch)]
            for number in replaced:
                self._lose(number, "it was replaced")
        if self._holding and not self._lingering and max(self._out, default=-1) < trip:  # no younger trip is held
            self._start(self._travel())
        for count, (number, letter, ok, answer) in enumerate(taken, start=1):
            if letter is not None and ok is None:
                self._hand_on(number, letter, answer)
            elif letter is not None:
                self._settle(letter, ok, answer)
            if count % HAND_OUT == 0:
                await asyncio.sleep(0)

    def _taken(self, number: int, ok: bool | None) -> _Letter | None:
        """The letter that something came for; after its answer nothing comes any more."""
        return self._letters.get(number) if ok is None else self._letters.pop(number, None)

    def _hand_on(self, number: int, letter: _Letter, part: bytes) -> None:
        if letter.heard is None or letter.answer is None or letter.answer.done():
            return
        try:
            letter.heard(pickle.loads(part))
        except Exception as error:  # who listens badly must not cost the others their trip
            letter.answer.set_exception(error)
            self._letters.pop(number, None)
            self._cancelled.append(number)
            self._depart()

    def _lose_trip(self, carried: set[int], error: BaseException) -> None:
        """A trip that fails may have had answers on board to any letter the mailbox held."""
        lost = [number for number, letter in self._letters.items() if number in carried or letter.holder is not None]
        self._cancelled += lost  # where the mailbox lives on, it need not work for nobody
        for number in lost:
            self._lose(number, describe(error))

    def _lose(self, number: int, why: str) -> None:
        letter = self._letters.pop(number)
        if letter.answer is not None and not letter.answer.done():
            letter.answer.set_exception(Lost(f"{self._where}: {why}"))

    def _settle(self, letter: _Letter, ok: bool, answer: bytes) -> None:
        if letter.answer is None:
            return
        try:
            value = pickle.loads(answer)
        except Exception as error:  # a class this process does not know
            ok, value = False, ResourceDown(f"{self._where}: {describe(error)}")
        if letter.answer.cancelled():
            if ok and letter.undo is not None:
                self._post(letter.undo(value), _Letter(None))
        elif letter.answer.done():  # whoever listened to it broke
            return
        elif ok:
            letter.answer.set_result(value)
        else:
            letter.answer.set_exception(value)
