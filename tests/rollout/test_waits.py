"""What a process says it waits for: which part, what, how many, since when."""

import asyncio

import pytest
from fakes import hang

from rollout.waits import MODEL_CALL, MOST_PARTS, RECENT_SECONDS, Sight, Wait, Waits


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waits(clock: Clock) -> Waits:
    return Waits(clock)


def test_open_awaits_are_counted_by_part_and_kind_with_the_oldest_of_all(waits: Waits, clock: Clock) -> None:
    with waits.on("seeding", "host 0"):
        clock.now += 5
        with waits.on("tool call", "host 0"), waits.on("tool call", "host 0"), waits.on("tool call", "host 1"):
            clock.now += 2
            one, other = waits.sight().waits
    assert one == Wait("host 0", (("seeding", 1), ("tool call", 2)), oldest=7, stalled=7)
    assert other == Wait("host 1", (("tool call", 1),), oldest=2, stalled=2)
    assert waits.sight() == Sight(0)


def test_a_part_that_finishes_one_of_many_is_not_stalled_and_one_that_fails_them_all_is(
    waits: Waits, clock: Clock
) -> None:
    with waits.on("tool call", "host 0"):
        clock.now += 50
        with waits.on("tool call", "host 0"):
            pass
        clock.now += 3
        assert [(wait.oldest, wait.stalled) for wait in waits.sight().waits] == [(53, 3)]
        with pytest.raises(ValueError, match="odd"), waits.on("tool call", "host 0"):
            raise ValueError("odd")
        assert [wait.stalled for wait in waits.sight().waits] == [3]


def test_only_model_calls_that_are_answered_are_turns(waits: Waits) -> None:
    with waits.on("tool call", "host 0"):
        pass
    with pytest.raises(TimeoutError), waits.on(MODEL_CALL, "model slot 0"):
        raise TimeoutError
    assert waits.sight().turns == 0
    with waits.on(MODEL_CALL, "model slot 0"):
        pass
    assert waits.sight().turns == 1


async def test_every_trip_that_comes_back_is_a_sign_of_life_and_one_that_fails_is_none(
    waits: Waits, clock: Clock
) -> None:
    gates: list[asyncio.Future[str]] = []

    async def exchange(name: str) -> str:
        gates.append(asyncio.get_running_loop().create_future())
        return await gates[-1]

    heard = waits.heard_by("host 0", exchange)

    def silent() -> list[float | None]:
        return [wait.silent for wait in waits.sight().waits]

    clock.now += 1000
    first, second = asyncio.ensure_future(heard("a")), asyncio.ensure_future(heard("b"))
    await asyncio.sleep(0)
    assert silent() == [0], "it was idle: nothing was owed before"
    clock.now += 20
    gates[0].set_result("x")
    assert await first == "x"
    clock.now += 4
    assert silent() == [4]
    gates[1].set_exception(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await second
    clock.now += 5
    third = asyncio.ensure_future(heard("c"))
    await asyncio.sleep(0)
    assert silent() == [9], "what was lost is still owed"
    gates[2].set_result("y")
    await third
    assert silent() == []


async def test_a_trip_that_is_given_up_leaves_its_part_silent(waits: Waits, clock: Clock) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await waits.heard_by("host 0", hang)()
    clock.now += 7
    assert waits.sight().waits == (Wait("host 0", (), 0, 0, silent=7),)
    clock.now += RECENT_SECONDS
    assert waits.sight().waits == (), "nobody asks it any more"


def test_a_strict_part_is_silent_for_as_long_as_it_is_waited_for(waits: Waits, clock: Clock) -> None:
    with waits.on("report", "runner-0", strict=True):
        clock.now += 12
        assert [wait.silent for wait in waits.sight().waits] == [12]
    waits.forget("runner-0")
    assert waits.sight() == Sight(0)


def test_who_answered_last_is_told(waits: Waits) -> None:
    waits.met("model slot 0", "abc")
    with waits.on(MODEL_CALL, "model slot 0"):
        assert [wait.who for wait in waits.sight().waits] == ["abc"]


def test_a_sight_of_many_parts_tells_of_the_worst(waits: Waits, clock: Clock) -> None:
    for number in range(3 * MOST_PARTS):
        waits.on("tool call", f"host {number}").__enter__()
        clock.now += 1
    told = waits.sight().waits
    assert [wait.part for wait in told] == [f"host {number}" for number in range(MOST_PARTS)]
