"""The scheduler event by event: shares, retries, lost runners, groups that have enough, lanes."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from rollout.lanes import FIRST_PAUSE, LONGEST_PAUSE, Lane
from rollout.load import Load
from rollout.pacing import Pace
from rollout.progress import Done
from rollout.scheduling import STRAGGLER, Orders, Scheduler, sample_seed, samples
from rollout.trajectory import FailureKind, Lease, Task

LATER = 2 * LONGEST_PAUSE
"""When every pause is over."""


def tasks(count: int) -> Iterator[Task]:
    return (Task(f"t{index}", (), {}, index) for index in range(count))


def leases(count: int, each: int = 1, attempts: int = 3, done: Done | None = None) -> Iterator[Lease]:
    return samples(tasks(count), "run", each, 0, done or Done(), attempts)


def scheduler(count: int, in_flight: int, each: int = 1, attempts: int = 3, wanted: int | None = None) -> Scheduler:
    return Scheduler(leases(count, each, attempts), in_flight, attempts, wanted)


def lane(name: str, first: int, count: int, weight: float = 1.0, limit: int | None = None, each: int = 1) -> Lane:
    """Tasks `first`, `first` + 1, ... of one environment."""
    own = (Task(f"{name}{index}", (), {}, index, name) for index in range(first, first + count))
    return Lane(samples(own, "run", each, 0, Done(), 3), name, weight, limit)


def given(chosen: Scheduler, runner: str, now: float = 0.0) -> list[str]:
    return [lease.episode_id for lease in chosen.assign(runner, now).leases]


def dropped(orders: Orders) -> list[tuple[str, str]]:
    return [(lease.episode_id, reason) for lease, reason in orders.unplayed]


def play(chosen: Scheduler, runner: str, episode_ids: list[str], bad: tuple[str, ...] = ()) -> None:
    """The episodes end and their rows are committed."""
    chosen.finish(runner, episode_ids, bad)
    chosen.settle(runner, episode_ids)


def test_samples_come_group_by_group_without_those_that_are_done() -> None:
    made = list(leases(3, 2, done=Done.of(np.array([1, 2, 3]))))
    assert [(lease.task.index, lease.sample_index) for lease in made] == [(0, 0), (2, 0), (2, 1)]
    assert {lease.group_id for lease in made} == {"run-0", "run-2"}
    assert not any(lease.final for lease in made)
    assert all(lease.final for lease in leases(3, attempts=1))


def test_an_order_holds_as_many_leases_as_it_may_and_says_whether_there_is_room_for_more() -> None:
    chosen = Scheduler(leases(10), in_flight=5, max_attempts=1)
    chosen.add_runner("a")
    first = chosen.assign("a", 0.0, hold=0.5, most=3)
    assert (len(first.leases), first.hold) == (3, 0.0), "at once: two slots are free"
    second = chosen.assign("a", 0.0, hold=0.5, most=3)
    assert (len(second.leases), second.hold) == (2, 0.5)
    chosen.finish("a", [lease.episode_id for lease in first.leases])
    third = chosen.assign("a", 0.0, hold=0.5, most=3)
    assert (len(third.leases), third.hold) == (3, 0.5), "all slots are taken"


def test_invariant_7_samples_are_made_when_they_are_asked_for() -> None:
    asked = list[int]()

    def endless() -> Iterator[Task]:
        for index in range(10**9):
            asked.append(index)
            yield Task(f"t{index}", (), {}, index)

    chosen = Scheduler(samples(endless(), "run", 2, 0, Done(), 3), 5, 3)
    chosen.add_runner("a")
    assert len(given(chosen, "a")) == 5
    assert asked == [0, 1, 2, 3], "one more, which shows that the group before it is whole"


def test_invariant_9_the_seed_of_a_sample_is_its_own_and_stays_the_same() -> None:
    seeds = {sample_seed(3, task, sample) for task in range(50) for sample in range(4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(3, 7, 1) == sample_seed(3, 7, 1) != sample_seed(4, 7, 1)
    chosen = scheduler(1, 1)
    chosen.add_runner("a")
    (first,) = chosen.assign("a", 0.0).leases
    chosen.give_back("a", first.episode_id, 0.0)
    (again,) = chosen.assign("a", LATER).leases
    assert (again.seed, again.episode_id, again.attempt) == (first.seed, first.episode_id, 2)
    assert (first.played_by, again.played_by) == (None, "a")


@pytest.mark.parametrize(("in_flight", "runners"), [(10, 3), (1, 4), (7, 7), (100, 3)])
def test_runners_get_even_shares_and_never_more_than_may_be_in_flight(in_flight: int, runners: int) -> None:
    chosen = scheduler(1000, in_flight)
    for number in range(runners):
        chosen.add_runner(f"r{number}")
    got = [len(given(chosen, f"r{number}")) for number in range(runners)]
    assert sum(got) == in_flight == chosen.running
    assert max(got) <= -(-in_flight // runners)


def test_a_runner_that_comes_later_gets_its_share_as_the_others_finish() -> None:
    chosen = scheduler(1000, 10)
    chosen.add_runner("early")
    held = given(chosen, "early")
    chosen.add_runner("late")
    assert given(chosen, "late") == []
    chosen.finish("early", held[:7])
    assert (len(given(chosen, "early")), len(given(chosen, "late"))) == (2, 5)


def test_a_retry_goes_first_and_alone_when_its_pause_is_over() -> None:
    chosen = scheduler(3, 2, each=2)
    chosen.add_runner("a")
    first, second = given(chosen, "a")
    chosen.give_back("a", second, 0.0)
    chosen.finish("a", [first])
    assert given(chosen, "a", FIRST_PAUSE - 0.01) == ["run-1-0", "run-1-1"]
    chosen.finish("a", ["run-1-0", "run-1-1"])
    assert given(chosen, "a", FIRST_PAUSE) == [second, "run-2-0"]
    assert chosen.retries == 1


def test_the_pause_doubles_with_each_attempt_up_to_a_minute() -> None:
    chosen = scheduler(1, 1, attempts=9)
    chosen.add_runner("a")
    now, pauses = 0.0, list[float]()
    (episode,) = given(chosen, "a", now)
    while len(pauses) < 8:
        chosen.give_back("a", episode, now)
        assert not chosen.drained
        began = now
        while not given(chosen, "a", now):
            now += 0.5
        pauses.append(now - began)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_invariant_1_a_given_up_runners_file_is_never_accepted() -> None:
    chosen = scheduler(2, 2)
    chosen.add_runner("dead")
    held = given(chosen, "dead")
    chosen.finish("dead", held)
    assert chosen.holds("dead", held)
    assert chosen.lose_runner("dead", "silent", 0.0) == []
    assert not chosen.holds("dead", held)
    chosen.add_runner("new")
    assert given(chosen, "new", LATER) == held
    assert not chosen.holds("new", held), "only what it has finished itself"
    assert not chosen.holds("dead", held)
    chosen.finish("new", held)
    chosen.settle("new", held)
    assert not chosen.holds("new", held), "nor a second time"


def test_invariant_2_the_last_attempt_that_is_lost_becomes_a_failure() -> None:
    chosen = scheduler(1, 1, attempts=2)
    for name, orphans in (("a", 0), ("b", 1)):
        chosen.add_runner(name)
        assert len(given(chosen, name, LATER)) == 1
        lost = chosen.lose_runner(name, "node died", 0.0)
        assert len(lost) == orphans
    assert (lost[0].lease.attempt, lost[0].failure.kind, lost[0].failure.where) == (2, FailureKind.LOST, "b")
    chosen.add_runner("c")
    assert given(chosen, "c", LATER) == []
    assert chosen.finished


def test_the_last_attempt_is_not_given_back() -> None:
    chosen = scheduler(1, 1, attempts=1)
    chosen.add_runner("a")
    (only,) = given(chosen, "a")
    with pytest.raises(AssertionError, match="last attempt"):
        chosen.give_back("a", only, 0.0)


def test_a_stopped_scheduler_hands_nothing_out_and_lets_what_is_held_end() -> None:
    chosen = scheduler(9, 3)
    chosen.add_runner("a")
    first, second, third = given(chosen, "a")
    chosen.cancel(["run-5"], "not wanted")
    chosen.stop()
    assert chosen.drained
    assert not chosen.finished
    chosen.finish("a", [first, second])
    chosen.give_back("a", third, 0.0)
    orders = chosen.assign("a", LATER)
    assert (orders.leases, orders.unplayed, orders.draining) == ((), (), True)
    chosen.settle("a", [first, second])
    assert chosen.finished


def test_a_group_with_enough_good_rows_drops_what_is_left_of_it() -> None:
    chosen = scheduler(2, 3, each=5, wanted=2)
    chosen.add_runner("a")
    first, second, third = given(chosen, "a")
    chosen.finish("a", [first, second])
    fourth, fifth = given(chosen, "a")
    chosen.give_back("a", fifth, 0.0)
    assert chosen.assign("a", 0.0).drops == {}, "rows that are not committed do not count"
    chosen.settle("a", [first, second])
    orders = chosen.assign("a", 0.0)
    assert orders.drops == {third: STRAGGLER, fourth: STRAGGLER}
    assert dropped(orders) == [(fifth, STRAGGLER)]
    assert [lease.attempt for lease, _ in orders.unplayed] == [1], "the second attempt was never begun"
    again = chosen.assign("a", LATER)
    assert (again.drops, again.unplayed) == ({}, ()), "told once"
    assert chosen.holds("a", [fifth])


def test_samples_that_failed_or_were_dropped_are_not_enough() -> None:
    chosen = scheduler(1, 4, each=4, wanted=2)
    chosen.add_runner("a")
    held = given(chosen, "a")
    play(chosen, "a", held[:2], bad=(held[0],))
    assert chosen.assign("a", 0.0).drops == {}
    play(chosen, "a", held[2:3])
    assert chosen.assign("a", 0.0).drops == {held[3]: STRAGGLER}


def test_a_straggler_that_ends_before_it_is_told_is_a_row_like_any_other() -> None:
    chosen = scheduler(1, 2, each=2, wanted=1)
    chosen.add_runner("a")
    first, second = given(chosen, "a")
    play(chosen, "a", [first])
    chosen.finish("a", [second])
    assert chosen.assign("a", 0.0).drops == {}
    chosen.settle("a", [second])
    assert chosen.finished


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_straggler_whose_runner_dies_is_dropped_and_neither_repeated_nor_failed(attempts: int) -> None:
    chosen = scheduler(1, 2, each=2, attempts=attempts, wanted=1)
    chosen.add_runner("a")
    first, second = given(chosen, "a")
    play(chosen, "a", [first])
    chosen.assign("a", 0.0)
    for name in ("b", "c"):
        assert chosen.lose_runner("a" if name == "b" else "b", "dead", 0.0) == []
        assert not chosen.finished
        chosen.add_runner(name)
        orders = chosen.assign(name, LATER)
        assert dropped(orders) == [(second, STRAGGLER)]
        assert orders.unplayed[0][0].attempt == 1
        assert not orders.leases
    chosen.settle("c", [second])
    assert chosen.finished


def test_without_over_sampling_every_sample_is_played_to_its_end() -> None:
    chosen = scheduler(1, 2, each=3)
    chosen.add_runner("a")
    first, second = given(chosen, "a")
    play(chosen, "a", [first, second])
    orders = chosen.assign("a", 0.0)
    assert (len(orders.leases), orders.drops, orders.unplayed) == (1, {}, ())


def test_cancelled_groups_and_samples_become_rows_with_the_reason() -> None:
    chosen = scheduler(4, 3, each=3)
    chosen.add_runner("a")
    held = given(chosen, "a")
    chosen.give_back("a", held[2], 0.0)
    given(chosen, "a")
    chosen.cancel(["run-0", "run-1-0", "run-1-2", "run-3", "run-2-1"], "stale")
    orders = chosen.assign("a", LATER)
    assert orders.drops == {held[0]: "stale", held[1]: "stale", "run-1-0": "stale"}
    assert dropped(orders) == [(held[2], "stale"), ("run-1-2", "stale")]
    chosen.finish("a", orders.drops, orders.drops)
    orders = chosen.assign("a", LATER)
    assert dropped(orders) == [("run-2-1", "stale")]
    assert [lease.episode_id for lease in orders.leases] == ["run-1-1", "run-2-0", "run-2-2"]
    play(chosen, "a", ["run-1-1", "run-2-0", "run-2-2"])
    last = chosen.assign("a", LATER)
    assert dropped(last) == [("run-3-0", "stale"), ("run-3-1", "stale"), ("run-3-2", "stale")]
    assert not last.leases
    assert last.draining
    chosen.settle("a", [*orders.drops, *held, "run-1-0", "run-1-2", "run-2-1", "run-3-0", "run-3-1", "run-3-2"])
    assert chosen.finished
    assert not chosen._cancelled, "nothing is remembered of them"


def test_a_group_that_was_cancelled_keeps_that_reason() -> None:
    chosen = scheduler(1, 2, each=3, wanted=1)
    chosen.add_runner("a")
    first, second = given(chosen, "a")
    chosen.cancel(["run-0"], "stale")
    chosen.cancel(["run-0"], "too late")
    play(chosen, "a", [first])
    orders = chosen.assign("a", 0.0)
    assert (orders.drops, dropped(orders)) == ({second: "stale"}, [("run-0-2", "stale")])


def test_a_cancelled_sample_that_fails_is_not_tried_again() -> None:
    chosen = scheduler(1, 1)
    chosen.add_runner("a")
    (only,) = given(chosen, "a")
    chosen.cancel([only], "stale")
    chosen.give_back("a", only, 0.0)
    orders = chosen.assign("a", LATER)
    assert (orders.leases, [reason for _, reason in orders.unplayed]) == ((), ["stale"])


def test_lanes_share_slots_by_weight_whoever_is_slow() -> None:
    chosen = Scheduler([lane("slow", 0, 100), lane("fast", 100, 10_000, weight=3.0)], 8, 3)
    chosen.add_runner("a")
    running = given(chosen, "a")
    for _ in range(200):  # slow episodes never end
        fast = [episode for episode in running if int(episode.split("-")[1]) >= 100]
        play(chosen, "a", fast)
        running = [episode for episode in running if episode not in fast] + given(chosen, "a")
        by_lane = Counter(int(episode.split("-")[1]) >= 100 for episode in running)
        assert by_lane == {False: 2, True: 6}


def test_what_a_lane_cannot_use_goes_to_others_and_comes_back_as_slots_free_up() -> None:
    late = lane("late", 100, 50)
    chosen = Scheduler([lane("early", 0, 50), late], 6, 3)
    late.limit = 0
    chosen.add_runner("a")
    held = given(chosen, "a")
    assert len(held) == 6
    assert all(int(episode.split("-")[1]) < 100 for episode in held)
    late.limit = None
    play(chosen, "a", held[:4])
    assert Counter(int(episode.split("-")[1]) >= 100 for episode in given(chosen, "a")) == {True: 3, False: 1}


def test_a_lane_never_runs_more_than_its_hosts_hold() -> None:
    chosen = Scheduler([lane("small", 0, 9, limit=2), lane("large", 100, 3)], 50, 3)
    chosen.add_runner("a")
    held = given(chosen, "a")
    assert held == ["run-0-0", "run-100-0", "run-1-0", "run-101-0", "run-102-0"]
    assert not chosen.drained
    chosen.finish("a", held[:1])
    assert given(chosen, "a") == ["run-2-0"]


def test_the_limit_follows_what_engines_report() -> None:
    chosen = Scheduler(leases(1000), 100, 3, pace=Pace(100, 5))
    chosen.add_runner("a")
    held = given(chosen, "a")
    assert len(held) == 100, "at once: nothing alarming is known"
    chosen.observe({"r0": Load(100, 0, 0.95, 0)}, 0.0)
    assert chosen.limit == 80
    chosen.finish("a", held[:10])
    assert given(chosen, "a") == []
    chosen.finish("a", held[10:25])
    assert len(given(chosen, "a")) == 5


def test_a_fixed_limit_takes_no_notice_of_loads() -> None:
    chosen = scheduler(100, 10)
    chosen.observe({"r0": Load(100, 9, 1.0, 7)}, 0.0)
    assert chosen.limit == 10


def test_nothing_is_kept_of_groups_that_have_all_their_rows() -> None:
    chosen = scheduler(500, 7, each=4, wanted=3)
    chosen.add_runner("a")
    while not chosen.finished:
        orders = chosen.assign("a", 0.0)
        chosen.settle("a", [lease.episode_id for lease, _ in orders.unplayed])
        play(chosen, "a", [lease.episode_id for lease in orders.leases])
        assert len(chosen._groups) <= 7
    assert not chosen._groups
    assert not chosen._cancelled
