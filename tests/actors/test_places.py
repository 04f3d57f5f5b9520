"""Who is due first goes next; places are neither lost nor given twice."""

from __future__ import annotations

import asyncio
import random

import pytest

from actors.places import Places, due


async def served(places: Places, dues: list[float]) -> list[int]:
    """The order in which those that wait get a place, all places being taken."""
    order: list[int] = []

    async def wait(number: int) -> None:
        await places.take(dues[number])
        order.append(number)
        places.give_back()

    waiting = [asyncio.create_task(wait(number)) for number in range(len(dues))]
    await asyncio.sleep(0)
    places.give_back()
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    return order


async def test_who_is_due_first_goes_next_and_of_equals_who_came_first() -> None:
    places = Places(1)
    await places.take(0.0)
    assert await served(places, [5.0, 1.0, 3.0, 1.0, 9.0]) == [1, 3, 2, 0, 4]


def test_a_step_of_priority_is_worth_so_much_waiting() -> None:
    late = due(100.0, -3, 10.0)
    assert late < due(71.0, 0, 10.0)
    assert late > due(69.0, 0, 10.0), "who has waited longer than that goes first"
    assert due(1.0, -3, 0.0) < due(2.0, -9, 0.0), "as they come"


@pytest.mark.parametrize("seed", range(5))
async def test_cancelled_waits_cost_no_place_and_never_more_are_at_work(seed: int) -> None:
    chance, places, working, most = random.Random(seed), Places(3), 0, 0

    async def work(urgent: float) -> None:
        nonlocal working, most
        await places.take(urgent)
        try:
            working += 1
            most = max(most, working)
            await asyncio.sleep(chance.random() * 0.002)
        finally:
            working -= 1
            places.give_back()

    tasks = [asyncio.create_task(work(chance.random())) for _ in range(200)]
    for task in chance.sample(tasks, 80):
        await asyncio.sleep(0)
        task.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    async with asyncio.timeout(10):
        for _ in range(3):
            await places.take(0.0)


async def test_a_place_that_is_given_to_one_who_was_cancelled_goes_on() -> None:
    places = Places(1)
    await places.take(0.0)
    first, second = asyncio.create_task(places.take(1.0)), asyncio.create_task(places.take(2.0))
    await asyncio.sleep(0)
    places.give_back()
    first.cancel()
    async with asyncio.timeout(10):
        await second
    assert first.cancelled()
