"""What happens around a scheduler, as a small model that keeps its own books: runners, their files, committed rows.

Whoever drives it decides what happens next; every step checks what must always hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rollout.lanes import LONGEST_PAUSE, Lane
from rollout.load import Load
from rollout.pacing import Pace
from rollout.progress import Done
from rollout.scheduling import STRAGGLER, Orders, Scheduler, samples
from rollout.trajectory import Lease, Task

GOOD, FAILED = "good", "failed"


@dataclass(frozen=True)
class Sizes:
    """A job."""

    tasks: tuple[int, ...]
    """How many, by lane."""
    each: int
    in_flight: int
    attempts: int
    wanted: int | None = None
    weights: tuple[float, ...] = (1.0,)
    limits: tuple[int | None, ...] = (None,)
    longest_first: bool = False
    adaptive: bool = False
    parked_max: int = 2


def longest_last(task: Task) -> float:
    """As if later tasks took longer."""
    return float(task.index)


@dataclass
class World:
    """A job in play. Task indices are unique over its lanes, as `index % number of lanes`."""

    sizes: Sizes
    now: float = 0.0
    playing: dict[str, dict[str, Lease]] = field(default_factory=dict)
    asking: dict[str, str] = field(default_factory=dict)
    """Runners by episode: what waits for a person,"""
    answered: dict[str, str] = field(default_factory=dict)
    """and what has been answered and not been told to go on."""
    told: dict[str, dict[str, str]] = field(default_factory=dict)
    """What runners were told to break off, while it is still in play."""
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    """Rows that are not committed, by runner: what they say by episode."""
    rows: dict[str, str] = field(default_factory=dict)
    good: Counter[str] = field(default_factory=Counter)
    """Committed good rows by group."""
    attempts: Counter[str] = field(default_factory=Counter)
    first: list[tuple[int, int]] = field(default_factory=list)
    """(task, sample) in the order they were handed out for the first time."""
    dead: list[tuple[str, list[str]]] = field(default_factory=list)
    cancelled: dict[str, str] = field(default_factory=dict)
    born: int = 0

    def __post_init__(self) -> None:
        sizes, width = self.sizes, len(self.sizes.tasks)
        lanes: list[Lane] = []
        self.lane_of: dict[str, int] = {}
        for number, count in enumerate(sizes.tasks):
            own = [Task(f"t{index}", (), {}, index * width + number) for index in range(count)]
            made = list(samples(own, "run", sizes.each, 0, Done(), sizes.attempts))
            self.lane_of |= {lease.episode_id: number for lease in made}
            expected = longest_last if sizes.longest_first else None
            weight, limit = sizes.weights[number], sizes.limits[number]
            lanes.append(Lane(iter(made), str(number), weight, limit, expected, look_ahead=4))
        pace = Pace(sizes.in_flight) if sizes.adaptive else None
        self.fresh = set(self.lane_of)
        """Samples that nobody has heard of yet."""
        self.scheduler = Scheduler(lanes, sizes.in_flight, sizes.attempts, sizes.wanted, pace, None, sizes.parked_max)

    def add(self) -> str:
        name = f"r{self.born}"
        self.born += 1
        self.scheduler.add_runner(name)
        self.playing[name], self.files[name], self.told[name] = {}, {}, {}
        return name

    def work(self, name: str) -> Orders:
        """A runner asks what to do."""
        before = self.by_lane()
        free = self.scheduler.limit - self.scheduler.running
        returning = len(self.parked().intersection(self.answered))
        orders = self.scheduler.assign(name, self.now)
        for episode_id in orders.resumed:
            assert self.answered.pop(episode_id) == name, "nobody goes on who has not been answered, or elsewhere"
        if any(runner == name for runner in self.answered.values()):
            assert self.scheduler.running >= self.scheduler.limit, "who comes back has the first free slot"
        assert not orders.leases or len(orders.leases) + returning <= free, "who comes back has its slot kept"
        for lease in orders.leases:
            self._begin(name, lease)
        for episode_id, reason in orders.drops.items():
            assert episode_id in self.playing[name], "nothing is to be broken off that has ended"
            self._may_drop(episode_id, reason)
            self.told[name][episode_id] = reason
        for lease, reason in orders.unplayed:
            self._may_drop(lease.episode_id, reason)
            self.fresh.discard(lease.episode_id)
            self.files[name][lease.episode_id] = reason
        returning = len(self.parked().intersection(self.answered))
        if orders.leases and self.scheduler.running + returning < self.scheduler.limit:
            self._work_conserving(name)
        self._fair(before, orders)
        return orders

    def _begin(self, name: str, lease: Lease) -> None:
        episode_id = lease.episode_id
        self.attempts[episode_id] += 1
        assert lease.attempt == self.attempts[episode_id] <= self.sizes.attempts
        assert lease.final == (lease.attempt == self.sizes.attempts)
        assert episode_id not in self.rows
        assert not any(episode_id in held for held in (*self.playing.values(), *self.files.values()))
        if lease.attempt == 1:
            self.fresh.discard(episode_id)
            self.first.append((lease.task.index, lease.sample_index))
        self.playing[name][episode_id] = lease

    def _may_drop(self, episode_id: str, reason: str) -> None:
        group = episode_id.rpartition("-")[0]
        if reason == STRAGGLER:
            assert self.sizes.wanted is not None
            assert self.good[group] >= self.sizes.wanted, "only a group with enough committed rows drops the rest"
        else:
            assert reason in (self.cancelled.get(episode_id), self.cancelled.get(group))

    def _fair(self, before: list[int], orders: Orders) -> None:
        """No lane got a slot while another with work was owed one."""
        for lease in reversed(orders.leases):
            lane = self.lane_of[lease.episode_id]
            loads, sessions = self.by_lane(), self.sessions()
            for other, limit in enumerate(self.sizes.limits):
                if other != lane and any(self.lane_of[one] == other for one in self.fresh):
                    full = limit is not None and sessions[other] >= limit
                    owed = loads[other] / self.sizes.weights[other]
                    assert full or (loads[lane] - 1) / self.sizes.weights[lane] <= owed
            return  # only the last one is judged: before it others may have been behind

    def _work_conserving(self, name: str) -> None:
        """Slots stay empty only where nobody could fill them: this runner has its share, or no lane has more."""
        share = -(-self.scheduler.limit // len(self.playing))
        if len(self.playing[name]) < share:
            loads = self.sessions()
            for lane, limit in enumerate(self.sizes.limits):
                if limit is None or loads[lane] < limit:
                    assert not any(self.lane_of[one] == lane for one in self.fresh)

    def by_lane(self) -> list[int]:
        """Episodes of each lane that have a slot."""
        parked = self.parked()
        counts = Counter(self.lane_of[one] for held in self.playing.values() for one in held if one not in parked)
        return [counts[lane] for lane in range(len(self.sizes.tasks))]

    def sessions(self) -> list[int]:
        """Episodes of each lane that hold a session: all that are played."""
        counts = Counter(self.lane_of[one] for held in self.playing.values() for one in held)
        return [counts[lane] for lane in range(len(self.sizes.tasks))]

    def parked(self) -> set[str]:
        """Who waits without a slot, as the scheduler has it."""
        found = {one for runner in self.scheduler._runners.values() for one in runner.parked}
        assert found <= {*self.asking, *self.answered}, "only who waits gives the slot away"
        return found

    def park(self, name: str, episode_id: str) -> None:
        """An episode asks a person."""
        self.scheduler.park(name, [episode_id])
        self.asking[episode_id] = name

    def unpark(self, episode_id: str) -> None:
        """The person answers."""
        name = self.answered[episode_id] = self.asking.pop(episode_id)
        self.scheduler.unpark(name, [episode_id])

    def _leave(self, episode_id: str) -> None:
        self.asking.pop(episode_id, None)
        self.answered.pop(episode_id, None)

    def end(self, name: str, episode_ids: Iterable[str], result: str = GOOD) -> None:
        """Episodes end with a good row, or fail for good."""
        chosen = list(episode_ids)
        self.scheduler.finish(name, chosen, [] if result == GOOD else chosen)
        for episode_id in chosen:
            del self.playing[name][episode_id]
            self._leave(episode_id)
            self.told[name].pop(episode_id, None)
            self.files[name][episode_id] = result

    def break_off(self, name: str) -> None:
        """The runner does what it was told."""
        for episode_id, reason in list(self.told[name].items()):
            self.end(name, [episode_id], reason)

    def give_back(self, name: str, episode_id: str) -> None:
        assert not self.playing[name][episode_id].final
        self.scheduler.give_back(name, episode_id, self.now)
        del self.playing[name][episode_id]
        self._leave(episode_id)
        self.told[name].pop(episode_id, None)

    def commit(self, name: str, said: dict[str, str] | None = None) -> None:
        """What the driver does with a file of a runner, also of one that is dead."""
        said = dict(self.files[name]) if said is None else said
        if not said or not self.scheduler.holds(name, said):
            return
        for episode_id, result in said.items():
            assert episode_id not in self.rows, "a second row"
            self.rows[episode_id] = result
            self.good[episode_id.rpartition("-")[0]] += result == GOOD
            del self.files[name][episode_id]
        self.scheduler.settle(name, said)

    def lose(self, name: str) -> None:
        held = [*self.playing.pop(name), *self.files.pop(name)]
        del self.told[name]
        for episode_id in held:
            self._leave(episode_id)
        self.dead.append((name, held))
        for orphan in self.scheduler.lose_runner(name, "dead", self.now):
            episode_id = orphan.lease.episode_id
            assert episode_id in held
            assert orphan.lease.final
            assert episode_id not in self.rows
            self.rows[episode_id] = FAILED

    def speak_from_the_dead(self, name: str, held: list[str]) -> None:
        before = dict(self.rows)
        self.commit(name, dict.fromkeys(held, GOOD))
        assert self.rows == before

    def cancel(self, one: str) -> None:
        self.cancelled.setdefault(one, f"cancelled {one}")
        self.scheduler.cancel([one], self.cancelled[one])

    def observe(self, loads: dict[str, Load]) -> None:
        self.scheduler.observe(loads, self.now)
        assert 1 <= self.scheduler.limit <= self.sizes.in_flight

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def check(self) -> None:
        """What holds at every moment."""
        playing, parked = sum(map(len, self.playing.values())), len(self.parked())
        assert self.scheduler.running == playing - parked <= self.sizes.in_flight
        assert self.scheduler.parked == parked
        assert playing <= self.sizes.in_flight + self.sizes.parked_max, "memory is bounded whoever waits"
        assert self.scheduler.asking == len(self.asking)
        off = sum(one in self.parked() for one in self.asking)
        assert off == min(len(self.asking), self.sizes.parked_max), "who waits has no slot, as far as may be"
        assert self.scheduler.only_asking == (bool(self.asking) and len(self.asking) == playing)
        assert self.scheduler.held == playing + sum(map(len, self.files.values()))
        assert set(self.rows) <= set(self.lane_of)
        for lane, limit in enumerate(self.sizes.limits):
            assert limit is None or self.sessions()[lane] <= limit
        if not self.sizes.longest_first and not self.cancelled:
            for lane in range(len(self.sizes.tasks)):
                own = [one for one in self.first if one[0] % len(self.sizes.tasks) == lane]
                assert own == sorted(own), "without knowledge first come first served"
        if self.scheduler.finished:
            self.check_end()

    def check_end(self) -> None:
        """Every sample has its row, and nothing is remembered of them."""
        assert set(self.rows) == set(self.lane_of)
        assert not self.scheduler._groups
        assert not self.scheduler._standing
        assert all(lane.running == lane.parked == 0 for lane in self.scheduler._lanes)
        assert self.scheduler.drained
        for episode_id, result in self.rows.items():
            if result == STRAGGLER:
                assert self.good[episode_id.rpartition("-")[0]] >= (self.sizes.wanted or 0)

    def play_out(self) -> None:
        """Whatever happened, the run can be brought to its end."""
        for name in list(self.playing):
            self.lose(name)
        name = self.add()
        for _ in range(3 * len(self.lane_of) + 3):
            self.wait(LONGEST_PAUSE)
            self.work(name)
            self.break_off(name)
            self.end(name, list(self.playing[name]))
            self.commit(name)
            self.check()
        assert self.scheduler.finished
        self.check_end()
