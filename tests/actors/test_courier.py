"""Couriers and mailboxes over a transport of plain awaits, which fails, hangs and is replaced where a test says so."""

import asyncio
import pickle
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.courier import Courier, Lost, Mailbox
from rollout.errors import ResourceDown, RolloutError, ToolError, Unavailable, UserError

PATIENCE = 20.0
"""Seconds something may take that must come."""


@dataclass
class Office:
    """A handler that does what a letter says: an awaitable function's name, or a value to give back."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[Any] = field(default_factory=list[Any])
    stopped: list[Any] = field(default_factory=list[Any])

    async def __call__(self, letter: Any) -> Any:
        self.begun.append(letter)
        try:
            return await self._answer(letter)
        except asyncio.CancelledError:
            self.stopped.append(letter)
            if letter == "stubborn":
                return "too late"
            raise

    async def _answer(self, letter: Any) -> Any:
        if letter in ("wait", "stubborn"):
            await self.gate.wait()
        if isinstance(letter, Exception | SystemExit):
            raise letter
        if letter == "cancelled over there":
            raise asyncio.CancelledError
        return Foreign if letter == "unpicklable" else letter


def nobody_knows() -> None: ...


Foreign = lambda: nobody_knows()  # noqa: E731 - a thing that cannot be pickled


class Odd(RolloutError):
    """An error of ours that does not come out of pickling as it went in."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Unloadable:
    """Something that pickles and cannot be unpickled on the other side."""

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return unload, ()


def unload() -> Any:
    raise ModuleNotFoundError("no module named elsewhere")


@dataclass
class Line:
    """A transport to a mailbox, which can be replaced; counts trips."""

    mailbox: Mailbox
    trips: int = 0
    out: int = 0
    fail: Callable[[int], Awaitable[None]] | None = None
    """Awaited with the number of the trip before it comes back."""

    async def exchange(self, name: str, letters: bytes, hold: float) -> bytes:
        self.trips += 1
        trip = self.trips
        self.out += 1
        try:
            answer = await self.mailbox.exchange(name, letters, hold)
            if self.fail is not None:
                await self.fail(trip)
            return answer
        finally:
            self.out -= 1


def line() -> tuple[Office, Line, Courier]:
    office = Office()
    wire = Line(Mailbox(office))
    return office, wire, Courier(wire.exchange, "host 1")


async def until(condition: Callable[[], bool]) -> None:
    """Lets the others run until the condition holds. Nothing is concluded from how long it took."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of tests
            await asyncio.sleep(0.001)


async def test_many_are_asked_in_few_trips_and_each_gets_its_own_answer() -> None:
    _, wire, courier = line()
    assert await asyncio.gather(*(courier.ask(number) for number in range(500))) == list(range(500))
    assert wire.trips < 10


async def test_nobody_waits_for_the_slowest() -> None:
    office, wire, courier = line()
    slow = asyncio.create_task(courier.ask("wait"))
    await until(lambda: office.begun == ["wait"])
    assert [await courier.ask(number) for number in range(20)] == list(range(20))
    assert not slow.done()
    office.gate.set()
    assert await slow == "wait"
    await until(lambda: wire.out == 0)


async def test_while_anything_is_out_one_trip_is_held_and_otherwise_none() -> None:
    office, wire, courier = line()
    slow = [asyncio.create_task(courier.ask("wait")) for _ in range(10)]
    await until(lambda: len(office.begun) == 10)
    for _ in range(5):
        await courier.ask("quick")
        await until(lambda: wire.out == 1)
    held = wire.trips
    for _ in range(30):
        await asyncio.sleep(0.001)
    assert (wire.trips, wire.out) == (held, 1), "it waits, it does not ask again and again"
    office.gate.set()
    await asyncio.gather(*slow)
    await until(lambda: wire.out == 0)
    idle = wire.trips
    for _ in range(30):
        await asyncio.sleep(0.001)
    assert wire.trips == idle


async def test_a_trip_that_brings_nothing_is_followed_by_another() -> None:
    office = Office()
    wire = Line(Mailbox(office))
    courier = Courier(wire.exchange, "host 1", hold_seconds=0.005)
    slow = asyncio.create_task(courier.ask("wait"))
    await until(lambda: wire.trips > 3)
    assert wire.out <= 1
    office.gate.set()
    assert await slow == "wait"


async def test_clients_do_not_get_each_others_answers() -> None:
    office = Office()
    wire = Line(Mailbox(office))
    couriers = [Courier(wire.exchange, f"host {number}") for number in range(20)]
    asked = [(number, courier.ask((number, place))) for number, courier in enumerate(couriers) for place in range(20)]
    answers = await asyncio.gather(*(asking for _, asking in asked))
    assert [answer[0] for answer in answers] == [number for number, _ in asked]


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (ToolError("say on"), ToolError, "say on"),
        (UserError("no"), UserError, "no"),
        (ResourceDown("gone"), ResourceDown, "gone"),
        (TimeoutError("late"), TimeoutError, "late"),
        (KeyError("x"), ResourceDown, "KeyError: 'x'"),
        (SystemExit(3), ResourceDown, "SystemExit: 3"),
    ],
)
async def test_what_a_handler_raises_reaches_the_one_who_asked(raised: Any, kind: type[Exception], said: str) -> None:
    _, _, courier = line()
    bad, good = await asyncio.gather(courier.ask(raised), courier.ask("fine"), return_exceptions=True)
    assert type(bad) is kind
    assert (str(bad), good) == (said, "fine")


async def test_what_cannot_travel_costs_only_itself() -> None:
    office, _, courier = line()

    async def odd(letter: Any) -> Any:
        if letter == "odd error":
            raise Odd("one", "two")
        return Unloadable() if letter == "odd answer" else await office(letter)

    courier = Courier(Line(Mailbox(odd)).exchange, "host 1")
    letters = ["odd error", "odd answer", "unpicklable", Unloadable(), "cancelled over there", "fine"]
    *bad, good = await asyncio.gather(*(courier.ask(letter) for letter in letters), return_exceptions=True)
    assert good == "fine"
    assert [isinstance(error, ResourceDown) for error in bad] == [True] * 5
    assert "one and two" in str(bad[0])
    assert "elsewhere" in str(bad[1]) and "elsewhere" in str(bad[3])
    with pytest.raises((pickle.PicklingError, AttributeError)):
        await courier.ask(Foreign)
    assert await courier.ask("still there") == "still there"


async def test_a_transport_that_fails_loses_what_it_may_have_carried() -> None:
    office, wire, courier = line()

    async def fail(trip: int) -> None:
        raise ConnectionError("actor died")

    slow = asyncio.create_task(courier.ask("wait"))
    await until(lambda: office.begun == ["wait"])
    wire.fail = fail
    with pytest.raises(Lost, match="host 1: ConnectionError: actor died"):
        await courier.ask("one")
    with pytest.raises(Lost):
        await slow
    assert issubclass(Lost, Unavailable)
    wire.fail = None
    assert await courier.ask("two") == "two"
    await until(lambda: "wait" in office.stopped)


async def test_a_transport_that_is_cancelled_over_there_loses_its_letters() -> None:
    async def exchange(name: str, letters: bytes, hold: float) -> bytes:
        raise asyncio.CancelledError

    with pytest.raises(Lost):
        await Courier(exchange, "host 1").ask("one")


async def test_an_answer_that_is_none_loses_its_letters() -> None:
    async def exchange(name: str, letters: bytes, hold: float) -> bytes:
        return b"what?"

    with pytest.raises(Lost, match="UnpicklingError"):
        await Courier(exchange, "host 1").ask("one")


async def test_invariant_5_a_transport_that_never_returns_loses_its_letters_and_holds_up_no_others() -> None:
    office = Office()
    wire = Line(Mailbox(office))

    async def hang_once(trip: int) -> None:
        if trip == 1:
            await asyncio.Event().wait()

    wire.fail = hang_once
    courier = Courier(wire.exchange, "host 1", hold_seconds=0.05, silent_seconds=0.1)
    first = asyncio.create_task(courier.ask("first"))
    await until(lambda: office.begun == ["first"])
    later = asyncio.create_task(courier.ask("wait"))
    await until(lambda: "wait" in office.begun)
    office.gate.set()
    assert await later == "wait", "a younger trip brings it, whatever became of the first"
    with pytest.raises(Lost):
        await first
    assert await courier.ask("on") == "on"


async def test_the_letters_of_a_mailbox_that_was_replaced_are_lost() -> None:
    old, wire, _ = line()
    courier = Courier(wire.exchange, "host 1", hold_seconds=0.05)
    waiting = asyncio.create_task(courier.ask("wait"))
    await until(lambda: old.begun == ["wait"])
    wire.mailbox = Mailbox(new := Office())
    asyncio.get_running_loop().call_later(0.02, new.gate.set)
    assert await courier.ask("wait") == "wait", "the new one has its letter and answers it"
    with pytest.raises(Lost, match="it was replaced"):
        await waiting
    old.gate.set()


async def test_asking_that_is_cancelled_stops_the_handler() -> None:
    office, wire, courier = line()
    waiting = asyncio.create_task(courier.ask("wait"))
    await until(lambda: office.begun == ["wait"])
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: office.stopped == ["wait"])
    await until(lambda: wire.mailbox.running == 0 and wire.out == 0)
    assert await courier.ask("next") == "next"


async def test_asking_that_is_cancelled_at_once_sends_nothing_and_strands_nobody() -> None:
    office, wire, _ = line()
    courier = Courier(wire.exchange, "host 1", hold_seconds=0.001)  # trips come back all the time
    held = asyncio.create_task(courier.ask("wait"))
    await until(lambda: office.begun == ["wait"])
    for _ in range(60):
        asking = asyncio.create_task(courier.ask("never"))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.001)
    office.gate.set()
    assert await asyncio.wait_for(held, PATIENCE) == "wait"
    assert "never" not in office.begun
    await until(lambda: wire.out == 0)


async def test_a_cancel_that_comes_too_late_undoes_what_was_done() -> None:
    office, wire, courier = line()
    asking = asyncio.create_task(courier.ask("stubborn", undo=lambda answer: ("undo", answer)))
    await until(lambda: office.begun == ["stubborn"])
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: ("undo", "too late") in office.begun)
    await until(lambda: wire.mailbox.running == 0 and wire.out == 0)


async def test_what_was_never_done_or_was_waited_for_is_not_undone() -> None:
    office, wire, courier = line()

    async def ask(letter: str) -> Any:
        return await courier.ask(letter, undo=lambda answer: ("undo", answer))

    assert await ask("fine") == "fine"
    asking = asyncio.create_task(ask("wait"))
    await until(lambda: "wait" in office.begun)
    asking.cancel()
    await until(lambda: "wait" in office.stopped)
    unsent = asyncio.create_task(ask("never"))
    await asyncio.sleep(0)
    unsent.cancel()
    await courier.ask("last")
    assert office.begun == ["fine", "wait", "last"]
    await until(lambda: wire.out == 0)


async def test_an_answer_that_comes_in_the_moment_of_cancelling_is_undone() -> None:
    office, wire, courier = line()

    async def ask(task: list[asyncio.Task[Any]]) -> Any:
        return await courier.ask("wait", undo=lambda answer: ("undo", answer))

    held = list[asyncio.Task[Any]]()
    held.append(asyncio.create_task(ask(held)))

    async def cancel_on_arrival(trip: int) -> None:
        if office.gate.is_set():
            asyncio.get_running_loop().call_soon(held[0].cancel)

    await until(lambda: office.begun == ["wait"])
    wire.fail = cancel_on_arrival
    office.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await held[0]
    wire.fail = None
    await until(lambda: ("undo", "wait") in office.begun)


async def test_a_client_that_falls_silent_is_forgotten_and_told_so_when_it_comes_back() -> None:
    office = Office()
    mailbox = Mailbox(office, forget_seconds=0.05)
    silent, other = Line(mailbox), Line(mailbox)
    away = asyncio.Event()

    async def be_away(trip: int) -> None:
        await away.wait()

    silent.fail = be_away
    courier = Courier(silent.exchange, "host 1", hold_seconds=0.0)
    waiting = asyncio.create_task(courier.ask("wait"))
    await until(lambda: office.begun == ["wait"])
    neighbour = Courier(other.exchange, "host 1", hold_seconds=0.0)

    async def knock() -> None:
        while not office.stopped:
            await neighbour.ask("knock")
            await asyncio.sleep(0.01)

    await knock()
    assert mailbox.running == 0
    away.set()
    with pytest.raises(Lost, match="replaced"):
        await waiting


async def test_trips_that_come_back_together_leave_somebody_at_the_mailbox() -> None:
    """Two trips returning in one turn of the event loop must not each leave the waiting to the other."""
    office, wire, courier = line()
    together = asyncio.Event()

    async def gather_up(trip: int) -> None:
        if trip <= 2:
            await together.wait()

    wire.fail = gather_up
    first = asyncio.create_task(courier.ask("wait"))
    await until(lambda: wire.trips == 1)
    second = asyncio.create_task(courier.ask("quick"))
    await until(lambda: wire.trips == 2)
    await asyncio.sleep(0.01)
    together.set()
    assert await second == "quick"
    office.gate.set()
    assert await asyncio.wait_for(first, PATIENCE) == "wait"


async def test_nothing_is_lost_or_mixed_up_in_a_storm() -> None:
    office = Office()
    wire = Line(Mailbox(office))
    draw = random.Random(7)

    async def stumble(trip: int) -> None:
        await asyncio.sleep(draw.random() * 0.01)
        if draw.random() < 0.1:
            raise ConnectionError("stumbled")

    async def handler(letter: int) -> int:
        await asyncio.sleep((letter % 7) * 0.002)
        return letter

    wire.mailbox, wire.fail = Mailbox(handler), stumble
    courier = Courier(wire.exchange, "host 1", hold_seconds=0.05)

    async def ask(number: int) -> int | None:
        await asyncio.sleep(draw.random() * 0.2)
        try:
            async with asyncio.timeout(0.005 if number % 5 == 0 else None):
                return await courier.ask(number)
        except (Lost, TimeoutError):
            return None

    answers = await asyncio.gather(*(ask(number) for number in range(400)))
    assert all(answer in (None, number) for number, answer in enumerate(answers))
    assert sum(answer is not None for answer in answers) > 100
    wire.fail = None
    assert await courier.ask(1) == 1
    await until(lambda: wire.mailbox.running == 0 and wire.out == 0)


async def test_a_status_that_raises_costs_no_letter(caplog: pytest.LogCaptureFixture) -> None:
    known = [1]

    def status() -> float:
        return 1 / known[0]

    mailbox = Mailbox(Office(), status=status)
    courier = Courier(Line(mailbox).exchange, "replica")
    known[0] = 0
    assert [await courier.ask(number) for number in range(3)] == [0, 1, 2]
    assert courier.take_status() is None
    assert [record.message for record in caplog.records] == ["it cannot say how it is"], "once"
    known[0] = 1
    assert (await courier.ask(3), courier.take_status()) == (3, 1.0)


async def test_letters_that_want_no_answer_travel_with_others_and_bring_nothing_home(
    caplog: pytest.LogCaptureFixture,
) -> None:
    office, wire, courier = line()
    for number in range(100):
        courier.tell(number)
    assert await courier.ask("now") == "now"
    assert sorted(office.begun, key=str) == sorted([*range(100), "now"], key=str)
    trips = wire.trips
    courier.tell(ToolError("not read"))
    courier.tell("later")
    await until(lambda: "later" in office.begun)
    assert wire.trips <= trips + 2
    assert "a letter that wanted no answer" in caplog.text
