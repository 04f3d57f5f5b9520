"""Who runs what: a pure state machine over leases. It owns no tasks, clocks or connections.

    sample --assign--> running --finish--> written --settle--> gone
              ^         ^ | |                 |
              |    slot | | +-- runner lost --+
              |         | park                |
              |         parked                |
              +-------------pause-------------+

A sample is handed out again only after its lease was given back or its runner was given up; from then on whatever the
old runner says about it is refused, so a sample ends as one row however late somebody answers. Samples of a group are
handed out next to each other; a retry is of one sample, never of its group, waits for a pause that grows, and then goes
first. A group that has enough good rows is closed: what of it is played is broken off, what is not begun is handed to a
runner only to be written down, and every sample of it still becomes one row.

Who waits for a person gives the slot away and gets another before new samples do, so that no more than the limit ever
run and no more than `parked_max` wait beside them; those beyond keep their slots.

The clock is an argument: seconds of any clock that never goes back.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rollout.demand import Demand
from rollout.lanes import Group, Lane
from rollout.load import Load
from rollout.pacing import Pace
from rollout.trajectory import Failure, FailureKind, Lease, Task

STRAGGLER = "straggler"
"""Drop reason of samples whose group had enough without them."""


def samples(
    tasks: Iterable[Task], run_id: str, samples_per_task: int, seed: int, done: Container[int], max_attempts: int
) -> Iterator[Lease]:
    """First leases of all samples that have no row yet, group by group, lazily."""
    for task in tasks:
        for index in range(samples_per_task):
            if task.index * samples_per_task + index not in done:
                yield Lease(run_id, task, index, 1, max_attempts == 1, sample_seed(seed, task.index, index))


def sample_seed(seed: int, task_index: int, sample_index: int) -> int:
    """The seed of a sample: the same for every attempt, different between samples; 31 bits."""
    digest = hashlib.blake2b(f"{seed}/{task_index}/{sample_index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class Orders:
    """What a runner is to do next."""

    leases: tuple[Lease, ...] = ()
    """To play."""
    drops: Mapping[str, str] = field(default_factory=dict[str, str])
    """To break off where they are still played: drop reasons by episode."""
    resumed: tuple[str, ...] = ()
    """Episodes whose wait is over and that have a slot again."""
    unplayed: tuple[tuple[Lease, str], ...] = ()
    """To write down as dropped rows without playing them, each with its reason."""
    settled: tuple[str, ...] = ()
    """Episodes whose rows have been committed."""
    draining: bool = False
    """No more leases wait: rows need not wait for company."""
    hold: float = 0.0
    """How long a runner with nothing to tell may keep its answer, in seconds."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A sample that nobody will run again; its row has to be written by whoever is left."""

    lease: Lease
    failure: Failure


@dataclass(slots=True)
class _Runner:
    running: dict[str, Lease] = field(default_factory=dict[str, Lease])
    parked: dict[str, Lease] = field(default_factory=dict[str, Lease])
    """Leases without a slot, as somebody has to say something first."""
    returning: dict[str, None] = field(default_factory=dict[str, None])
    """Those of them that have been told it, in order."""
    resumed: dict[str, None] = field(default_factory=dict[str, None])
    """What waited in its slot, as no more could be parked, and is to be told to go on."""
    written: dict[str, tuple[Lease, bool]] = field(default_factory=dict[str, tuple[Lease, bool]])
    """Leases whose row is on the way, and whether it is a good one."""
    drops: dict[str, str] = field(default_factory=dict[str, str])
    """What it is to be told to break off."""


class Scheduler:
    """Hands out leases, at most `limit` running at once over all runners.

    Every event costs time that depends on the group it is about, not on how many samples or runners there are.
    """

    def __init__(
        self,
        source: Iterator[Lease] | Sequence[Lane],
        in_flight: int,
        max_attempts: int,
        wanted: int | None = None,
        pace: Pace | None = None,
        demand: Demand | None = None,
        parked_max: int = 10_000,
    ) -> None:
        """`source` gives the samples of the one environment, or is a lane for each.

        `wanted` good rows close a group; without it all its samples are played to their end. `pace` makes the limit
        follow what engines report; without it the limit is `in_flight`. `demand` says when another group may be
        begun; without it all are. So many episodes as `parked_max` may wait for a person without a slot.
        """
        self.in_flight = in_flight
        self.retries = 0
        """Attempts beyond the first that were handed out."""
        self._lanes = [Lane(source)] if isinstance(source, Iterator) else list(source)
        self._max_attempts = max_attempts
        self._wanted = wanted
        self._pace = pace
        self._demand = demand
        self._runners: dict[str, _Runner] = {}
        self._groups: dict[str, Group] = {}
        self._unplayed: deque[tuple[Lease, str]] = deque()
        self._cancelled: dict[str, str] = {}
        """Reasons by episode or group: of groups that are not read yet, and of single samples without a row."""
        self._parked_max = parked_max
        self._standing: dict[str, str] = {}
        """Runners by episode: what waits for a person and holds its slot, in order."""
        self._running = 0
        self._parked = 0
        self._returning = 0
        self._written = 0
        self._stopped = False

    @property
    def limit(self) -> int:
        """Episodes that may run now."""
        return self.in_flight if self._pace is None else min(self.in_flight, self._pace.limit)

    @property
    def running(self) -> int:
        """Episodes being played now."""
        return self._running

    @property
    def parked(self) -> int:
        """Episodes that wait without a slot: for a person, or for a slot behind that."""
        return self._parked

    @property
    def asking(self) -> int:
        """Episodes that wait for a person."""
        return self._parked - self._returning + len(self._standing)

    @property
    def only_asking(self) -> bool:
        """True when all that is played waits for a person."""
        return self.asking > 0 and not self._returning and self._running == len(self._standing)

    @property
    def held(self) -> int:
        """Samples handed out whose row is not committed yet."""
        return self._running + self._parked + self._written

    @property
    def drained(self) -> bool:
        """True when nothing is left to hand out: runners need not wait for company to write their rows."""
        return self._stopped or (not self._unplayed and all(lane.drained for lane in self._lanes))

    @property
    def finished(self) -> bool:
        """True when nothing is left to hand out and every row is committed."""
        return self.drained and not self.held

    @property
    def resting(self) -> bool:
        """True when every group that was begun has its rows and no other may be begun for now."""
        return self._demand is not None and not self._demand.room and not self._groups

    def observe(self, loads: Mapping[str, Load], now: float) -> None:
        """What replicas report of their engines, by name; those that report nothing new may be left out."""
        if self._pace is not None:
            self._pace.observe(loads, self._running, now)

    def add_runner(self, name: str) -> None:
        """A runner that may be given leases."""
        assert name not in self._runners, f"runner {name} is known already"
        self._runners[name] = _Runner()

    def assign(self, name: str, now: float, hold: float = 0.0, most: int | None = None) -> Orders:
        """What a runner is to do: new leases, its share of what may still be in flight, and what to drop.

        An order holds at most `most` new leases. Where that leaves slots free, the runner is told to answer at once.
        """
        runner = self._runners[name]
        resumed = self._resume(runner)
        share = -(-self.limit // len(self._runners))
        # What comes back at other runners has its slots kept: new leases would take them all, one by one.
        room = min(share - len(runner.running), self.limit - self._running - self._returning)
        leases: list[Lease] = []
        while len(leases) < room and len(leases) != most and (lease := self._next(name, now)) is not None:
            leases.append(lease)
            runner.running[lease.episode_id] = lease
        drops, runner.drops = runner.drops, {}
        unplayed = self._write_down(runner)
        more = len(leases) == most and len(leases) < room
        return Orders(tuple(leases), drops, resumed, unplayed, draining=self.drained, hold=0.0 if more else hold)

    def park(self, name: str, episode_ids: Iterable[str]) -> None:
        """Episodes that wait for a person. Frees the slots of as many as may be parked; of others when they may be."""
        for episode_id in episode_ids:
            assert episode_id in self._runners[name].running, f"{episode_id} is not played"
            self._standing[episode_id] = name
        self._park()

    def unpark(self, name: str, episode_ids: Iterable[str]) -> None:
        """Episodes whose wait is over: `Orders.resumed` says when they have a slot."""
        runner = self._runners[name]
        for episode_id in episode_ids:
            if self._standing.pop(episode_id, None) is not None:
                runner.resumed[episode_id] = None
            else:
                assert episode_id in runner.parked, f"{episode_id} does not wait"
                runner.returning[episode_id] = None
                self._returning += 1
        self._park()

    def finish(self, name: str, episode_ids: Iterable[str], bad: Collection[str] = ()) -> None:
        """Episodes that ended; their rows are on the way. Frees their slots. Those in `bad` failed or were dropped."""
        runner = self._runners[name]
        for episode_id in episode_ids:
            lease = _held(runner, episode_id)
            self._stop_running(runner, lease)
            runner.written[episode_id] = lease, episode_id not in bad
            self._written += 1

    def give_back(self, name: str, episode_id: str, now: float) -> None:
        """An attempt that failed outside the policy; the sample will be tried again."""
        runner = self._runners[name]
        lease = _held(runner, episode_id)
        assert not lease.final, "the last attempt becomes a row, it is not given back"
        self._stop_running(runner, lease)
        self._again(lease, name, now)

    def holds(self, name: str, episode_ids: Iterable[str]) -> bool:
        """True when the runner may turn these samples into rows: none was taken from it."""
        runner = self._runners.get(name)
        return runner is not None and all(episode_id in runner.written for episode_id in episode_ids)

    def settle(self, name: str, episode_ids: Iterable[str]) -> None:
        """Samples whose rows are committed. A group that has enough good ones now is closed.

        Only committed rows count: those of a runner that dies with them must not leave their group short.
        """
        written = self._runners[name].written
        for episode_id in episode_ids:
            lease, good = written.pop(episode_id)
            self._written -= 1
            group = self._forget(lease)
            group.good += good
            if group.good == self._wanted and group.closed is None:
                self._close(group, STRAGGLER)

    def lose_runner(self, name: str, why: str, now: float) -> list[Orphan]:
        """Takes a runner out with all it held. Returns the samples that have no attempt left."""
        runner = self._runners[name]
        playing = [*runner.running.values(), *runner.parked.values()]
        held = [*playing, *(lease for lease, _ in runner.written.values())]
        for lease in playing:
            self._stop_running(runner, lease)
        self._written -= len(runner.written)
        del self._runners[name]
        orphans: list[Orphan] = []
        for lease in held:
            if lease.final and self._dropped(lease) is None:
                orphans.append(Orphan(lease, Failure(FailureKind.LOST, name, why)))
                self._forget(lease)
            else:
                self._again(lease, name, now)
        return orphans

    def cancel(self, ids: Iterable[str], reason: str) -> None:
        """Drops groups and single samples, by group or episode id. What has ended stays; what has not becomes a row
        with this drop reason, also when it was not read from its source yet."""
        for one in ids:
            if (group := self._groups.get(one)) is not None:
                self._close(group, group.closed or reason)
            elif (group := self._groups.get(one.rpartition("-")[0])) is not None:
                self._drop_one(group, one, reason)
            else:
                self._cancelled[one] = reason

    def stop(self) -> None:
        """Hands out nothing more; what is held may still end."""
        self._stopped = True

    def _next(self, name: str, now: float) -> Lease | None:
        """The next lease: of the lane that is furthest below its share and has one.

        Weighted max-min over slots: a lane of slow episodes holds its slots longer and so is owed none while others
        have work, and what a lane cannot use goes to the others at once.
        """
        if self._stopped:
            return None
        for lane in sorted((lane for lane in self._lanes if not lane.full), key=_load):
            if (taken := self._take(lane, now)) is not None:
                lease, group = taken
                if self._demand is not None:
                    lease = replace(lease, step=self._demand.version)
                group.running[lease.episode_id] = name
                lane.running += 1
                self._running += 1
                return lease
        return None

    def _take(self, lane: Lane, now: float) -> tuple[Lease, Group] | None:
        if (failed := lane.take_again(now)) is not None:
            lease, group = failed
            self.retries += 1
            attempt = lease.attempt + 1
            return replace(lease, attempt=attempt, final=attempt >= self._max_attempts), group
        while lane.hungry and (self._demand is None or self._demand.room):
            self._read(lane)
        return lane.take_new()

    def _read(self, lane: Lane) -> None:
        """Reads a group. What of it was cancelled before is dropped."""
        if (group := lane.read()) is None:
            return
        first = group.waiting[0]
        assert first.group_id not in self._groups, f"{first.group_id}: samples of a group come next to each other"
        self._groups[first.group_id] = group
        if self._demand is not None:
            self._demand.begin()
        if not self._cancelled:
            return
        if (reason := self._cancelled.pop(first.group_id, None)) is not None:
            self._close(group, reason)
        for lease in tuple(group.waiting):
            if (reason := self._cancelled.get(lease.episode_id)) is not None:
                self._drop_one(group, lease.episode_id, reason)

    def _again(self, lease: Lease, played_by: str, now: float) -> None:
        """Another attempt after a pause, or none when the sample is not wanted any more."""
        group = self._groups[lease.group_id]
        if (reason := self._dropped(lease)) is not None:
            self._unplayed.append((lease, reason))
        else:
            group.lane.pause(replace(lease, played_by=played_by), group, now)

    def _dropped(self, lease: Lease) -> str | None:
        """Why a sample is not wanted any more; None while it is."""
        return self._groups[lease.group_id].closed or self._cancelled.get(lease.episode_id)

    def _close(self, group: Group, reason: str) -> None:
        """Drops what is left of a group."""
        group.closed = reason
        self._unplayed += [(lease, reason) for lease in group.lane.withdraw(group)]
        for episode_id, name in group.running.items():
            self._runners[name].drops[episode_id] = reason

    def _drop_one(self, group: Group, episode_id: str, reason: str) -> None:
        if (name := group.running.get(episode_id)) is not None:
            self._runners[name].drops[episode_id] = self._cancelled[episode_id] = reason
        elif (lease := group.lane.withdraw_one(group, episode_id)) is not None:
            self._unplayed.append((lease, reason))
            self._cancelled[episode_id] = reason

    def _write_down(self, runner: _Runner) -> tuple[tuple[Lease, str], ...]:
        """All that waits to become a dropped row; from now on the runner holds it as rows on the way."""
        if self._stopped:
            return ()
        unplayed = tuple(self._unplayed)
        self._unplayed.clear()
        runner.written.update({lease.episode_id: (lease, False) for lease, _ in unplayed})
        self._written += len(unplayed)
        return unplayed

    def _stop_running(self, runner: _Runner, lease: Lease) -> None:
        group, episode_id = self._groups[lease.group_id], lease.episode_id
        if episode_id in runner.parked:
            self._with_slot(runner, episode_id)
        del runner.running[episode_id]
        del group.running[episode_id]
        runner.drops.pop(episode_id, None)
        runner.resumed.pop(episode_id, None)
        self._standing.pop(episode_id, None)
        group.lane.running -= 1
        self._running -= 1
        self._park()

    def _park(self) -> None:
        """Takes their slots from those that wait for a person, the first to wait first, as far as may be."""
        while self._standing and self._parked - self._returning < self._parked_max:
            episode_id = next(iter(self._standing))
            runner = self._runners[self._standing.pop(episode_id)]
            lease = runner.parked[episode_id] = runner.running.pop(episode_id)
            lane = self._groups[lease.group_id].lane
            lane.running, lane.parked = lane.running - 1, lane.parked + 1
            self._running, self._parked = self._running - 1, self._parked + 1

    def _resume(self, runner: _Runner) -> tuple[str, ...]:
        """What the runner may go on with. Beyond its share: they are where they are."""
        resumed, runner.resumed = list(runner.resumed), {}
        while runner.returning and self._running < self.limit:
            episode_id = next(iter(runner.returning))
            self._with_slot(runner, episode_id)
            resumed.append(episode_id)
        return tuple(resumed)

    def _with_slot(self, runner: _Runner, episode_id: str) -> None:
        """Gives a parked episode a slot."""
        lease = runner.running[episode_id] = runner.parked.pop(episode_id)
        if episode_id in runner.returning:
            del runner.returning[episode_id]
            self._returning -= 1
        lane = self._groups[lease.group_id].lane
        lane.running, lane.parked = lane.running + 1, lane.parked - 1
        self._running, self._parked = self._running + 1, self._parked - 1

    def _forget(self, lease: Lease) -> Group:
        """The group of a sample that has its row; nothing is kept of a group that has all of them."""
        group = self._groups[lease.group_id]
        self._cancelled.pop(lease.episode_id, None)
        group.open -= 1
        if not group.open:
            del self._groups[lease.group_id]
        return group


def _held(runner: _Runner, episode_id: str) -> Lease:
    """The lease of an episode that the runner plays, with a slot or without."""
    return runner.running[episode_id] if episode_id in runner.running else runner.parked[episode_id]


def _load(lane: Lane) -> float:
    return lane.load
