"""Who runs what: a pure state machine over leases. It owns no tasks, clocks or connections.

    sample --assign--> running --finished--> written --settled--> gone
              ^           |                     |
              +--retry----+---- runner lost ----+

A sample is handed out again only after its lease was given back or its runner was given up; from then on whatever the
old runner says about it is refused, so a sample ends as one row however late somebody answers. Samples of a group are
handed out next to each other; a retry is of one sample, never of its group, and goes first.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field, replace

from rollout.trajectory import Failure, FailureKind, Lease, Task


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


@dataclass(slots=True)
class _Runner:
    running: dict[str, Lease] = field(default_factory=dict[str, Lease])
    written: dict[str, Lease] = field(default_factory=dict[str, Lease])


@dataclass(frozen=True, slots=True)
class Orphan:
    """A sample that nobody will run again; its row has to be written by whoever is left."""

    lease: Lease
    failure: Failure


@dataclass(slots=True)
class Scheduler:
    """Hands out leases, at most `in_flight` running at once over all runners."""

    source: Iterator[Lease]
    in_flight: int
    max_attempts: int
    retries: int = 0
    """Attempts beyond the first that were handed out."""
    _runners: dict[str, _Runner] = field(default_factory=dict[str, _Runner])
    _again: deque[Lease] = field(default_factory=deque[Lease])
    _exhausted: bool = False
    _stopped: bool = False

    @property
    def running(self) -> int:
        """Episodes being played now."""
        return sum(len(runner.running) for runner in self._runners.values())

    @property
    def held(self) -> int:
        """Samples handed out whose row is not committed yet."""
        return sum(len(runner.running) + len(runner.written) for runner in self._runners.values())

    @property
    def drained(self) -> bool:
        """True when nothing is left to hand out: runners need not wait for company to write their rows."""
        return self._stopped or (self._exhausted and not self._again)

    @property
    def finished(self) -> bool:
        """True when nothing is left to hand out and every row is committed."""
        return self.drained and not self.held

    def add_runner(self, name: str) -> None:
        """A runner that may be given leases."""
        assert name not in self._runners, f"runner {name} is known already"
        self._runners[name] = _Runner()

    def assign(self, name: str) -> list[Lease]:
        """New leases for a runner: its share of what may still be in flight."""
        runner = self._runners[name]
        share = -(-self.in_flight // len(self._runners))
        room = min(share - len(runner.running), self.in_flight - self.running)
        leases: list[Lease] = []
        while len(leases) < room and (lease := self._next()) is not None:
            leases.append(lease)
        runner.running.update({lease.episode_id: lease for lease in leases})
        self.retries += sum(lease.attempt > 1 for lease in leases)
        return leases

    def finish(self, name: str, episode_ids: Iterable[str]) -> None:
        """Episodes that ended; their rows are on the way. Frees their slots."""
        runner = self._runners[name]
        for episode_id in episode_ids:
            runner.written[episode_id] = runner.running.pop(episode_id)

    def give_back(self, name: str, episode_id: str) -> None:
        """An attempt that failed outside the policy; the sample will be tried again."""
        lease = self._runners[name].running.pop(episode_id)
        assert not lease.final, "the last attempt becomes a row, it is not given back"
        self._again.append(self._following(lease, name))

    def holds(self, name: str, episode_ids: Iterable[str]) -> bool:
        """True when the runner may turn these samples into rows: none was taken from it."""
        runner = self._runners.get(name)
        return runner is not None and all(episode_id in runner.written for episode_id in episode_ids)

    def settle(self, name: str, episode_ids: Iterable[str]) -> None:
        """Samples whose rows are committed."""
        for episode_id in episode_ids:
            del self._runners[name].written[episode_id]

    def lose_runner(self, name: str, why: str) -> list[Orphan]:
        """Takes a runner out with all it held. Returns the samples that have no attempt left."""
        runner = self._runners.pop(name)
        orphans: list[Orphan] = []
        for lease in (*runner.running.values(), *runner.written.values()):
            if lease.final:
                orphans.append(Orphan(lease, Failure(FailureKind.LOST, name, why)))
            else:
                self._again.append(self._following(lease, name))
        return orphans

    def stop(self) -> None:
        """Hands out nothing more; what is held may still end."""
        self._stopped = True

    def _next(self) -> Lease | None:
        if self._stopped:
            return None
        if self._again:
            return self._again.popleft()
        lease = next(self.source, None)
        self._exhausted = lease is None
        return lease

    def _following(self, lease: Lease, played_by: str) -> Lease:
        attempt = lease.attempt + 1
        return replace(lease, attempt=attempt, final=attempt >= self.max_attempts, played_by=played_by)
