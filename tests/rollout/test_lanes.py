"""The order in which waiting samples go: the longest first, but none waits for ever, and little is read ahead."""

from collections.abc import Callable, Iterator
from itertools import count, islice

from rollout.lanes import OVERTAKEN, Lane
from rollout.progress import Done
from rollout.scheduling import Scheduler, samples
from rollout.trajectory import Task


def lane(seconds: Callable[[int], float], tasks: int | None, each: int = 1, look_ahead: int = 8) -> Lane:
    """Tasks whose episodes take as long as `seconds` says of their index; endless without a number."""
    made: Iterator[Task] = (Task(f"t{index}", (), {}, index) for index in islice(count(), tasks))
    leases = samples(made, "run", each, 0, Done(), 1)
    return Lane(leases, expected=lambda task: seconds(task.index), look_ahead=look_ahead)


def order(chosen: Lane, slots: int = 1, most: int = 10**9) -> list[tuple[int, int]]:
    """(task, sample) as they are handed out, a few at a time."""
    scheduler = Scheduler([chosen], slots, 1)
    scheduler.add_runner("a")
    handed: list[tuple[int, int]] = []
    while not scheduler.finished and len(handed) < most:
        leases = scheduler.assign("a", 0.0).leases
        handed += [(lease.task.index, lease.sample_index) for lease in leases]
        scheduler.finish("a", [lease.episode_id for lease in leases])
        scheduler.settle("a", [lease.episode_id for lease in leases])
    return handed


def test_the_longest_goes_first_with_its_whole_group() -> None:
    times = [3.0, 1.0, 9.0, 2.0]
    handed = order(lane(lambda index: times[index], 4, each=2))
    assert handed == [(task, sample) for task in (2, 0, 3, 1) for sample in (0, 1)]


def test_of_equals_the_first_that_came_is_the_first() -> None:
    assert [task for task, _ in order(lane(lambda index: 1.0, 40))] == list(range(40))


def test_only_what_was_read_ahead_is_compared() -> None:
    handed = [task for task, _ in order(lane(float, 20, look_ahead=4))]
    assert handed[:5] == [3, 4, 5, 6, 7]
    assert sorted(handed) == list(range(20))


def test_a_short_task_is_overtaken_only_so_often() -> None:
    ahead = 4
    handed = [task for task, _ in order(lane(lambda index: float(index > 0), None, look_ahead=ahead), most=100)]
    assert handed.index(0) == OVERTAKEN * ahead


def test_invariant_7_an_endless_source_is_held_only_as_far_as_it_is_read_ahead() -> None:
    chosen = lane(lambda index: index % 977, None, each=3, look_ahead=8)
    scheduler = Scheduler([chosen], 2, 1)
    scheduler.add_runner("a")
    for _ in range(5000):
        leases = scheduler.assign("a", 0.0).leases
        scheduler.finish("a", [lease.episode_id for lease in leases])
        scheduler.settle("a", [lease.episode_id for lease in leases])
        assert len(scheduler._groups) <= 8
        assert len(chosen._longest) <= 2 * 8 + 1
        assert len(chosen._oldest) <= OVERTAKEN * 8 + 8
