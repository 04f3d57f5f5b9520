"""The scheduler under everything that can happen to it, in random orders and, for a tiny job, in all of them."""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from world import FAILED, GOOD, Sizes, World

from rollout.lanes import LONGEST_PAUSE
from rollout.load import Load

SIZES = st.integers(1, 2).flatmap(
    lambda lanes: st.builds(
        Sizes,
        tasks=st.tuples(*[st.integers(0, 5)] * lanes),
        each=st.integers(1, 4),
        in_flight=st.integers(1, 6),
        attempts=st.integers(1, 3),
        wanted=st.none() | st.integers(1, 3),
        weights=st.tuples(*[st.sampled_from((1.0, 2.0, 0.5))] * lanes),
        limits=st.tuples(*[st.none() | st.integers(1, 3)] * lanes),
        longest_first=st.booleans(),
        adaptive=st.booleans(),
        parked_max=st.integers(0, 3),
    )
)
LOADS = st.builds(
    Load, st.integers(0, 9), st.integers(0, 2), st.sampled_from((0.1, 0.7, 0.95)), preemptions=st.integers(0, 3)
)


class SchedulerMachine(RuleBasedStateMachine):
    """Runners that come, play, give back, write, commit and die in any order. A dead runner goes on talking."""

    @initialize(sizes=SIZES)
    def begin(self, sizes: Sizes) -> None:
        self.world = World(sizes)

    @rule()
    @precondition(lambda self: len(self.world.playing) < 3)
    def add(self) -> None:
        self.world.add()

    def runner(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.world.playing)))

    @rule(data=st.data())
    @precondition(lambda self: self.world.playing)
    def work(self, data: st.DataObject) -> None:
        self.world.work(self.runner(data))

    def some(self, data: st.DataObject) -> tuple[str, list[str]]:
        playing = self.world.playing
        name = data.draw(st.sampled_from(sorted(name for name, held in playing.items() if held)))
        return name, data.draw(st.lists(st.sampled_from(sorted(playing[name])), min_size=1, unique=True))

    @rule(data=st.data(), result=st.sampled_from((GOOD, GOOD, FAILED)))
    @precondition(lambda self: any(self.world.playing.values()))
    def end(self, data: st.DataObject, result: str) -> None:
        self.world.end(*self.some(data), result)

    @rule(data=st.data())
    @precondition(lambda self: any(self.world.playing.values()))
    def park(self, data: st.DataObject) -> None:
        name, chosen = self.some(data)
        for episode_id in chosen:
            if episode_id not in self.world.asking and episode_id not in self.world.answered:
                self.world.park(name, episode_id)

    @rule(data=st.data())
    @precondition(lambda self: self.world.asking)
    def unpark(self, data: st.DataObject) -> None:
        self.world.unpark(data.draw(st.sampled_from(sorted(self.world.asking))))

    @rule(data=st.data())
    @precondition(lambda self: any(self.world.told.values()))
    def break_off(self, data: st.DataObject) -> None:
        self.world.break_off(self.runner(data))

    @rule(data=st.data())
    @precondition(lambda self: any(self.world.playing.values()))
    def give_back(self, data: st.DataObject) -> None:
        name, chosen = self.some(data)
        for episode_id in chosen:
            if not self.world.playing[name][episode_id].final:
                self.world.give_back(name, episode_id)

    @rule(data=st.data())
    @precondition(lambda self: any(self.world.files.values()))
    def commit(self, data: st.DataObject) -> None:
        self.world.commit(self.runner(data))

    @rule(data=st.data())
    @precondition(lambda self: self.world.playing)
    def lose(self, data: st.DataObject) -> None:
        self.world.lose(self.runner(data))

    @rule(data=st.data())
    @precondition(lambda self: self.world.dead)
    def speak_from_the_dead(self, data: st.DataObject) -> None:
        self.world.speak_from_the_dead(*data.draw(st.sampled_from(self.world.dead)))

    @rule(data=st.data(), whole=st.booleans())
    @precondition(lambda self: self.world.lane_of)
    def cancel(self, data: st.DataObject, whole: bool) -> None:
        episode_id = data.draw(st.sampled_from(sorted(self.world.lane_of)))
        self.world.cancel(episode_id.rpartition("-")[0] if whole else episode_id)

    @rule(loads=st.dictionaries(st.sampled_from(("a", "b")), LOADS))
    def observe(self, loads: dict[str, Load]) -> None:
        self.world.observe(loads)

    @rule(seconds=st.sampled_from((0.5, 1.0, 12.0, LONGEST_PAUSE)))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """Whatever happened, the run can be brought to its end, and then every sample has one row."""
        if hasattr(self, "world"):
            self.world.play_out()


TestInvariant1EverySampleEndsOnce = SchedulerMachine.TestCase
TestInvariant1EverySampleEndsOnce.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def events(world: World, deaths: int) -> Iterator[tuple[str, ...]]:
    """All that can happen next. Of samples of a group that are played alike one stands for all."""
    for name, playing in world.playing.items():
        yield "work", name
        alike = {(lease.task.index, lease.attempt): lease for lease in playing.values()}
        for lease in alike.values():
            yield "end", name, lease.episode_id
            yield ("fail" if lease.final else "give_back"), name, lease.episode_id
        if world.files[name]:
            yield "commit", name
        if len(world.dead) < deaths:
            yield "lose", name
    if any(entry[0] > world.now for entry in world.scheduler._lanes[0]._pauses):
        yield ("wait",)


def happen(world: World, event: tuple[str, ...]) -> None:
    """A pause is either not over or over: `wait` is the only step of the clock."""
    match event:
        case "work", name:
            world.work(name)
            world.break_off(name)
        case "end", name, episode_id:
            world.end(name, [episode_id])
        case "fail", name, episode_id:
            world.end(name, [episode_id], FAILED)
        case "give_back", name, episode_id:
            world.give_back(name, episode_id)
        case "commit", name:
            world.commit(name)
        case "lose", name:
            world.lose(name)
            world.add()
        case _:
            world.wait(LONGEST_PAUSE)


def fingerprint(world: World) -> object:
    """What decides how a world can go on. Runners are alike, and so are the samples of a group: which of them it is
    that plays or waits makes no difference."""
    scheduler = world.scheduler
    due = {entry[2]: entry[0] <= world.now for entry in scheduler._lanes[0]._pauses}
    samples: dict[str, tuple[object, ...]] = dict.fromkeys(world.fresh, ("fresh",))
    samples |= {one: ("row", result) for one, result in world.rows.items()}
    for group in scheduler._groups.values():
        samples |= {one: ("again", lease.attempt, due[one]) for one, lease in group.again.items()}
    samples |= {lease.episode_id: ("unplayed",) for lease, _ in scheduler._unplayed}
    rest = (
        sorted((group_id, group.good, group.closed) for group_id, group in scheduler._groups.items()),
        scheduler._lanes[0].exhausted,
        len(world.dead),
    )
    return min(repr((_by_group(world, samples, names), rest)) for names in permutations(world.playing))


def _by_group(world: World, samples: dict[str, tuple[object, ...]], names: Iterable[str]) -> object:
    for number, name in enumerate(names):
        drops = world.scheduler._runners[name].drops
        samples |= {one: ("plays", number, lease.attempt, one in drops) for one, lease in world.playing[name].items()}
        samples |= {one: ("file", number, result) for one, result in world.files[name].items()}
    groups: dict[str, list[str]] = {}
    for one, sample in samples.items():
        groups.setdefault(one.rpartition("-")[0], []).append(repr(sample))
    return sorted((group, sorted(states)) for group, states in groups.items())


LONG = pytest.mark.skipif("ROLLOUT_LONG_TESTS" not in os.environ, reason="takes minutes; set ROLLOUT_LONG_TESTS=1")
BOTH = Sizes((2,), each=3, in_flight=2, attempts=2, wanted=2)
"""Two tasks of two samples and one more, two attempts each."""


@pytest.mark.parametrize(
    ("sizes", "runners", "deaths"),
    [
        pytest.param(replace(BOTH, tasks=(1,), in_flight=3), 2, 2, id="one group, two runners that die"),
        pytest.param(replace(BOTH, attempts=1), 1, 1, id="two groups, no second attempt"),
        pytest.param(replace(BOTH, each=2, wanted=1), 2, 1, id="two groups of two"),
        pytest.param(BOTH, 1, 0, id="one runner", marks=LONG),
        pytest.param(BOTH, 2, 0, id="two runners", marks=LONG),
        pytest.param(BOTH, 2, 1, id="two runners, one dies", marks=LONG),
    ],
)
@pytest.mark.timeout(600)
def test_invariant_1_in_every_order_of_events(sizes: Sizes, runners: int, deaths: int) -> None:
    begin = World(sizes)
    for _ in range(runners):
        begin.add()
    seen, ends = {fingerprint(begin)}, 0
    ahead = deque([pickle.dumps(begin)])
    while ahead:
        state = ahead.popleft()
        here = pickle.loads(state)
        moves = False
        for event in events(here, deaths):
            world = pickle.loads(state)
            happen(world, event)
            world.check()
            mark = fingerprint(world)
            moves = moves or mark != fingerprint(here)
            if mark not in seen:
                seen.add(mark)
                ahead.append(pickle.dumps(world))
        if not moves or here.scheduler.finished:
            here.check_end()
            ends += 1
    print(f"{len(seen):,} states")
    assert ends > 1
