"""How far ahead of a trainer groups are begun, alone and through the scheduler."""

from __future__ import annotations

from collections import deque
from itertools import count

import pytest

from rollout.demand import Demand
from rollout.progress import Done
from rollout.scheduling import Scheduler, samples
from rollout.trajectory import Task


def begin_all(demand: Demand) -> int:
    """Begins what may be begun; how many groups that were."""
    begun = 0
    while demand.room:
        demand.begin()
        begun += 1
    return begun


def test_nothing_is_begun_before_a_trainer_asks_or_without_weights() -> None:
    demand = Demand(max_behind=4)
    assert begin_all(demand) == 0
    demand.ask(8)
    demand.closed = True
    assert begin_all(demand) == 0


def test_a_trainer_that_allows_no_age_waits_for_its_groups_and_they_for_it() -> None:
    demand = Demand(max_behind=0)
    demand.ask(8)
    for version in range(1, 4):
        assert begin_all(demand) == 8
        demand.set_aside(3)
        assert begin_all(demand) == 3, "others take the places of those that nobody will read"
        demand.read(8)
        assert begin_all(demand) == 0, "they would be a version old"
        demand.publish(version)


def test_a_trainer_that_pulls_often_and_never_publishes_is_served() -> None:
    demand = Demand(max_behind=1)
    for _ in range(10):
        demand.ask(4)
        begin_all(demand)
        assert 4 <= demand.stock <= 8
        demand.read(4)


def test_a_step_of_several_pulls_is_learned() -> None:
    demand = Demand(max_behind=1)
    for version in range(1, 3):
        for _ in range(4):
            demand.ask(4)
            begin_all(demand)
            demand.read(4)
        demand.publish(version)
    begin_all(demand)
    assert demand.stock == 2 * 16


@pytest.mark.parametrize("max_behind", [0, 1, 3])
def test_what_is_begun_in_time_is_never_too_old(max_behind: int) -> None:
    demand, stock = Demand(max_behind), deque[int]()
    oldest = 0
    for version in range(1, 200):
        demand.ask(8)
        stock.extend(demand.version for _ in range(begin_all(demand)))
        assert len(stock) >= 8
        oldest = max(oldest, demand.version - min(stock.popleft() for _ in range(8)))
        demand.read(8)
        stock.extend(demand.version for _ in range(begin_all(demand)))
        demand.publish(version)
        stock.extend(demand.version for _ in range(begin_all(demand)))
    assert oldest <= max_behind
    assert oldest == max_behind, "and what may be begun ahead is"


def test_the_scheduler_begins_no_group_without_room_and_says_of_which_version_an_attempt_is() -> None:
    demand = Demand(max_behind=1)
    tasks = (Task(f"t{number}", (), index=number) for number in count())
    scheduler = Scheduler(samples(tasks, "run", 2, 0, Done(), 2), 100, 2, demand=demand)
    scheduler.add_runner("a")
    assert scheduler.assign("a", 0.0).leases == ()
    assert scheduler.resting
    assert not scheduler.drained
    demand.ask(3)
    first = scheduler.assign("a", 0.0).leases
    assert [(lease.task.index, lease.step) for lease in first] == [(n, 0) for n in range(6) for _ in range(2)]
    assert not scheduler.resting
    demand.publish(7)
    scheduler.give_back("a", first[0].episode_id, 0.0)
    [again] = scheduler.assign("a", 60.0).leases
    assert (again.episode_id, again.attempt, again.step) == (first[0].episode_id, 2, 7)
    ids = [lease.episode_id for lease in first]
    scheduler.finish("a", ids)
    scheduler.settle("a", ids)
    assert scheduler.resting
    demand.read(3)
    assert len(scheduler.assign("a", 60.0).leases) == 0, "three are ready, three are read"
    demand.publish(8)
    assert len(scheduler.assign("a", 60.0).leases) == 6
