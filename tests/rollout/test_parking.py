"""Episodes that wait off their slots, as a runner sees them; and the scheduler event by event where they do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from rollout.lanes import Lane
from rollout.parking import Parking
from rollout.progress import Done
from rollout.scheduling import Scheduler, samples
from rollout.trajectory import Lease, Task


def leases(count: int) -> Iterator[Lease]:
    return samples((Task(f"t{index}", (), {}, index) for index in range(count)), "run", 1, 0, Done(), 3)


def scheduler(count: int = 9, in_flight: int = 2, parked_max: int = 10, runners: str = "a") -> Scheduler:
    chosen = Scheduler(leases(count), in_flight, 3, parked_max=parked_max)
    for name in runners:
        chosen.add_runner(name)
    return chosen


def given(chosen: Scheduler, runner: str = "a") -> list[str]:
    return [lease.episode_id for lease in chosen.assign(runner, 0.0).leases]


def test_who_waits_for_a_person_gives_the_slot_away_and_is_still_held() -> None:
    chosen = scheduler()
    first, second = given(chosen)
    chosen.park("a", [first, second])
    assert (chosen.running, chosen.asking, chosen.held, chosen.only_asking) == (0, 2, 2, True)
    assert len(given(chosen)) == 2
    assert (chosen.running, chosen.held, chosen.only_asking) == (2, 4, False)


def test_who_comes_back_has_the_next_slot_before_any_new_sample() -> None:
    chosen = scheduler()
    first, second = given(chosen)
    chosen.park("a", [first])
    (third,) = given(chosen)
    chosen.unpark("a", [first])
    assert chosen.assign("a", 0.0).resumed == (), "both slots are taken"
    chosen.finish("a", [second])
    orders = chosen.assign("a", 0.0)
    assert (orders.resumed, orders.leases) == ((first,), ())
    assert chosen.running == 2
    chosen.finish("a", [first, third])
    assert len(given(chosen)) == 2


def test_a_slot_is_kept_for_who_comes_back_elsewhere() -> None:
    chosen = scheduler(in_flight=2, runners="ab")
    (first,), (second,) = given(chosen, "a"), given(chosen, "b")
    chosen.park("a", [first])
    assert len(given(chosen, "a")) == 1
    chosen.unpark("a", [first])
    chosen.finish("b", [second])
    assert given(chosen, "b") == [], "the free slot is the one that runner a is about to hear of"
    assert chosen.assign("a", 0.0).resumed == (first,)


def test_no_more_are_parked_than_may_be_and_an_answer_lets_the_next_one_out_of_its_slot() -> None:
    chosen = scheduler(in_flight=2, parked_max=1)
    first, second = given(chosen)
    chosen.park("a", [first, second])
    assert (chosen.running, chosen.parked, chosen.asking) == (1, 1, 2)
    (third,) = given(chosen)
    chosen.park("a", [third])
    assert (chosen.running, chosen.only_asking) == (2, True), "both slots are held by who waits"
    assert given(chosen) == []
    chosen.unpark("a", [first])
    assert (chosen.running, chosen.parked) == (1, 2), "the second has taken its place"
    assert chosen.assign("a", 0.0).resumed == (first,)
    chosen.unpark("a", [third])
    assert chosen.assign("a", 0.0).resumed == (third,), "it has kept its slot"


def test_a_host_that_holds_as_many_sessions_as_it_may_gets_no_more_while_episodes_wait() -> None:
    chosen = Scheduler([Lane(leases(9), limit=2)], 4, 3)
    chosen.add_runner("a")
    waiting = given(chosen)
    assert len(waiting) == 2
    chosen.park("a", waiting)
    assert given(chosen) == [], "their sessions are open"


def test_who_waits_may_be_dropped_or_lost_with_its_runner() -> None:
    chosen = scheduler(count=3, in_flight=3)
    first, second, third = given(chosen)
    chosen.park("a", [first, second, third])
    chosen.cancel([first], "old")
    assert chosen.assign("a", 0.0).drops == {first: "old"}
    chosen.finish("a", [first], [first])
    chosen.unpark("a", [second])
    assert chosen.lose_runner("a", "died", 0.0) == []
    assert (chosen.running, chosen.parked, chosen.asking, chosen.held) == (0, 0, 0, 0)
    chosen.add_runner("b")
    orders = chosen.assign("b", 99.0)
    assert {lease.episode_id for lease in orders.leases} == {second, third}
    assert [(lease.episode_id, why) for lease, why in orders.unplayed] == [(first, "old")]


class Runner:
    """What a runner and its driver do with a parking."""

    def __init__(self, *playing: str) -> None:
        self.news = 0
        self.parking = Parking(playing, self._told)
        self.answers = {one: asyncio.Event() for one in playing}
        self.over: list[str] = []

    def _told(self) -> None:
        self.news += 1

    async def play(self, episode_id: str) -> None:
        async with self.parking.away(episode_id):
            await self.answers[episode_id].wait()
        self.over.append(episode_id)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_episode_waits_for_its_answer_and_then_for_a_slot() -> None:
    runner = Runner("one", "two")
    async with asyncio.TaskGroup() as group:
        for one in ("one", "two"):
            group.create_task(runner.play(one))
        await settle()
        assert runner.parking.take() == (["one", "two"], [])
        runner.answers["two"].set()
        await settle()
        assert runner.over == [], "there is no slot yet"
        assert runner.parking.take() == ([], ["two"])
        assert runner.news == 3
        runner.parking.resume(["two"])
        await settle()
        assert runner.over == ["two"]
        runner.answers["one"].set()
        await settle()
        runner.parking.resume(["one", "gone"])
    assert runner.parking.take() == ([], [])


async def test_an_answer_that_is_there_before_anybody_was_told_of_the_wait_costs_no_slot() -> None:
    runner = Runner("one")
    runner.answers["one"].set()
    await runner.play("one")
    assert runner.over == ["one"]
    assert runner.parking.take() == ([], [])


async def test_a_wait_that_is_broken_off_leaves_nothing_behind() -> None:
    runner = Runner("one")
    for answered in (False, True):
        task = asyncio.create_task(runner.play("one"))
        await settle()
        assert runner.parking.take() == (["one"], [])
        if answered:
            runner.answers["one"].set()
            await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert runner.parking.take() == ([], [])
        runner.parking.resume(["one"])


async def test_who_has_no_slot_of_its_own_gives_none_away() -> None:
    nobody = Parking()
    async with nobody.away("child"):
        assert nobody.take() == ([], [])
