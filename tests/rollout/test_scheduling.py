"""The scheduler under everything that can happen to it: each sample ends once, in order, within bounds."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rollout.progress import Done
from rollout.scheduling import Scheduler, sample_seed, samples
from rollout.trajectory import FailureKind, Lease, Task


def tasks(count: int) -> Iterator[Task]:
    return (Task(f"t{index}", (), {}, index) for index in range(count))


def leases(count: int, each: int = 1, attempts: int = 3, done: Done | None = None) -> Iterator[Lease]:
    return samples(tasks(count), "run", each, 0, done or Done(), attempts)


def scheduler(count: int, in_flight: int, each: int = 1, attempts: int = 3) -> Scheduler:
    return Scheduler(leases(count, each, attempts), in_flight, attempts)


def ids(given: list[Lease]) -> list[str]:
    return [lease.episode_id for lease in given]


def test_samples_come_group_by_group_without_those_that_are_done() -> None:
    given = list(leases(3, 2, done=Done.of(np.array([1, 2, 3]))))
    assert [(lease.task.index, lease.sample_index) for lease in given] == [(0, 0), (2, 0), (2, 1)]
    assert {lease.group_id for lease in given} == {"run-0", "run-2"}
    assert not any(lease.final for lease in given)
    assert all(lease.final for lease in leases(3, attempts=1))


def test_invariant_7_samples_are_made_when_they_are_asked_for() -> None:
    asked = list[int]()

    def endless() -> Iterator[Task]:
        for index in range(10**9):
            asked.append(index)
            yield Task(f"t{index}", (), {}, index)

    chosen = Scheduler(samples(endless(), "run", 2, 0, Done(), 3), 5, 3)
    chosen.add_runner("a")
    assert len(chosen.assign("a")) == 5
    assert asked == [0, 1, 2]


def test_invariant_9_the_seed_of_a_sample_is_its_own_and_stays_the_same() -> None:
    seeds = {sample_seed(3, task, sample) for task in range(50) for sample in range(4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(3, 7, 1) == sample_seed(3, 7, 1) != sample_seed(4, 7, 1)
    chosen = scheduler(1, 1)
    chosen.add_runner("a")
    (first,) = chosen.assign("a")
    chosen.give_back("a", first.episode_id)
    (again,) = chosen.assign("a")
    assert (again.seed, again.episode_id, again.attempt) == (first.seed, first.episode_id, 2)


@pytest.mark.parametrize(("in_flight", "runners"), [(10, 3), (1, 4), (7, 7), (100, 3)])
def test_runners_get_even_shares_and_never_more_than_may_be_in_flight(in_flight: int, runners: int) -> None:
    chosen = scheduler(1000, in_flight)
    for number in range(runners):
        chosen.add_runner(f"r{number}")
    given = [len(chosen.assign(f"r{number}")) for number in range(runners)]
    assert sum(given) == in_flight == chosen.running
    assert max(given) <= -(-in_flight // runners)


def test_a_runner_that_comes_later_gets_its_share_as_the_others_finish() -> None:
    chosen = scheduler(1000, 10)
    chosen.add_runner("early")
    held = ids(chosen.assign("early"))
    chosen.add_runner("late")
    assert chosen.assign("late") == []
    chosen.finish("early", held[:7])
    assert (len(chosen.assign("early")), len(chosen.assign("late"))) == (2, 5)


def test_a_retry_goes_first_and_alone() -> None:
    chosen = scheduler(3, 2, each=2)
    chosen.add_runner("a")
    first, second = chosen.assign("a")
    chosen.give_back("a", second.episode_id)
    chosen.finish("a", [first.episode_id])
    assert ids(chosen.assign("a")) == [second.episode_id, "run-1-0"]
    assert chosen.retries == 1


def test_invariant_1_a_given_up_runners_file_is_never_accepted() -> None:
    chosen = scheduler(2, 2)
    chosen.add_runner("dead")
    held = ids(chosen.assign("dead"))
    chosen.finish("dead", held)
    assert chosen.holds("dead", held)
    assert chosen.lose_runner("dead", "silent") == []
    assert not chosen.holds("dead", held)
    chosen.add_runner("new")
    assert ids(chosen.assign("new")) == held
    assert not chosen.holds("new", held), "only what it has finished itself"
    assert not chosen.holds("dead", held)
    chosen.finish("new", held)
    chosen.settle("new", held)
    assert not chosen.holds("new", held), "nor a second time"


def test_invariant_2_the_last_attempt_that_is_lost_becomes_a_failure() -> None:
    chosen = scheduler(1, 1, attempts=2)
    for name, orphans in (("a", 0), ("b", 1)):
        chosen.add_runner(name)
        assert len(chosen.assign(name)) == 1
        lost = chosen.lose_runner(name, "node died")
        assert len(lost) == orphans
    assert (lost[0].lease.attempt, lost[0].failure.kind, lost[0].failure.where) == (2, FailureKind.LOST, "b")
    chosen.add_runner("c")
    assert chosen.assign("c") == []
    assert chosen.finished


def test_the_last_attempt_is_not_given_back() -> None:
    chosen = scheduler(1, 1, attempts=1)
    chosen.add_runner("a")
    (only,) = chosen.assign("a")
    with pytest.raises(AssertionError, match="last attempt"):
        chosen.give_back("a", only.episode_id)


def test_a_stopped_scheduler_hands_nothing_out_and_lets_what_is_held_end() -> None:
    chosen = scheduler(9, 3)
    chosen.add_runner("a")
    first, second, third = ids(chosen.assign("a"))
    chosen.stop()
    assert chosen.drained
    assert not chosen.finished
    chosen.finish("a", [first, second])
    chosen.give_back("a", third)
    assert chosen.assign("a") == []
    chosen.settle("a", [first, second])
    assert chosen.finished


class SchedulerMachine(RuleBasedStateMachine):
    """Runners that come, play, give back, write, commit and die in any order. A dead runner goes on talking."""

    @initialize(
        count=st.integers(0, 6), each=st.integers(1, 3), in_flight=st.integers(1, 5), attempts=st.integers(1, 3)
    )
    def begin(self, count: int, each: int, in_flight: int, attempts: int) -> None:
        self.expected = {f"run-{task}-{sample}" for task in range(count) for sample in range(each)}
        self.in_flight, self.attempts = in_flight, attempts
        self.scheduler = scheduler(count, in_flight, each, attempts)
        self.names = 0
        self.live: dict[str, dict[str, Lease]] = {}
        self.written: dict[str, list[str]] = {}
        self.dead: list[tuple[str, list[str]]] = []
        self.rows: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.first: list[str] = []

    @rule()
    @precondition(lambda self: len(self.live) < 3)
    def add(self) -> None:
        name = f"r{self.names}"
        self.names += 1
        self.scheduler.add_runner(name)
        self.live[name], self.written[name] = {}, []

    @rule(data=st.data())
    @precondition(lambda self: self.live)
    def assign(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        for lease in self.scheduler.assign(name):
            self.seen[lease.episode_id] += 1
            assert lease.attempt == self.seen[lease.episode_id] <= self.attempts
            assert lease.final == (lease.attempt == self.attempts)
            if lease.attempt == 1:
                self.first.append(lease.episode_id)
            self.live[name][lease.episode_id] = lease

    def some(self, data: st.DataObject) -> tuple[str, list[str]]:
        name = data.draw(st.sampled_from(sorted(name for name, playing in self.live.items() if playing)))
        return name, data.draw(st.lists(st.sampled_from(sorted(self.live[name])), min_size=1, unique=True))

    @rule(data=st.data())
    @precondition(lambda self: any(self.live.values()))
    def finish(self, data: st.DataObject) -> None:
        name, chosen = self.some(data)
        self.scheduler.finish(name, chosen)
        for episode_id in chosen:
            del self.live[name][episode_id]
            self.written[name].append(episode_id)

    @rule(data=st.data())
    @precondition(lambda self: any(self.live.values()))
    def give_back(self, data: st.DataObject) -> None:
        name, chosen = self.some(data)
        for episode_id in chosen:
            if not self.live[name][episode_id].final:
                self.scheduler.give_back(name, episode_id)
                del self.live[name][episode_id]

    @rule(data=st.data())
    @precondition(lambda self: any(self.written.values()))
    def settle(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, held in self.written.items() if held)))
        self.commit(name, self.written[name])
        self.written[name] = []

    def commit(self, name: str, episode_ids: list[str]) -> None:
        """What the driver does with a file."""
        if self.scheduler.holds(name, episode_ids):
            self.rows.update(episode_ids)
            self.scheduler.settle(name, episode_ids)

    @rule(data=st.data())
    @precondition(lambda self: self.live)
    def lose(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.dead.append((name, [*self.live.pop(name), *self.written.pop(name)]))
        for orphan in self.scheduler.lose_runner(name, "dead"):
            self.rows[orphan.lease.episode_id] += 1

    @rule(data=st.data())
    @precondition(lambda self: self.dead)
    def speak_from_the_dead(self, data: st.DataObject) -> None:
        name, held = data.draw(st.sampled_from(self.dead))
        if held:
            before = self.rows.copy()
            self.commit(name, held)
            assert self.rows == before

    @invariant()
    def bounds(self) -> None:
        assert self.scheduler.running == sum(map(len, self.live.values())) <= self.in_flight
        assert self.scheduler.held == self.scheduler.running + sum(map(len, self.written.values()))
        assert all(count == 1 for count in self.rows.values())
        assert set(self.rows) <= self.expected
        assert self.first == sorted(self.first), "first attempts are handed out in order"
        if self.scheduler.finished:
            assert set(self.rows) == self.expected

    def teardown(self) -> None:
        """Whatever happened, the run can be brought to its end, and then every sample has one row."""
        name = "last"
        for other in list(self.live):
            for orphan in self.scheduler.lose_runner(other, "dead"):
                self.rows[orphan.lease.episode_id] += 1
        self.scheduler.add_runner(name)
        while given := ids(self.scheduler.assign(name)):
            self.scheduler.finish(name, given)
            self.commit(name, given)
        assert self.scheduler.finished
        assert self.scheduler.drained
        assert set(self.rows) == self.expected
        assert set(self.rows.values()) <= {1}


TestInvariant1EverySampleEndsOnce = SchedulerMachine.TestCase
TestInvariant1EverySampleEndsOnce.settings = settings(max_examples=100, stateful_step_count=40)
