"""What is broken in a run, and when: all of it follows from the run's seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = {
    "driver": "kill -9 of the driver, then --resume",
    "runner": "kill -9 of an episode runner",
    "host": "kill -9 of a resource host",
    "verifier": "kill -9 of a process that scores",
    "replica": "kill -9 of a model replica",
    "controller": "kill -9 of Serve's controller",
    "writer": "kill -9 of the driver or a runner between file and commit",
    "node": "kill -9 of all processes of a node",
    "ctrl-c": "SIGINT to the job's process group, then --resume",
    "disk": "the run's disk is full, then --resume",
    "stopped runner": "SIGSTOP of a runner for longer than it may be silent, then SIGCONT",
    "stopped host": "SIGSTOP of a host for longer than it may be silent, then SIGCONT",
    "late host": "hosts that do nothing at all for longer than a call may take",
    "garbage": "replicas whose replies are now and then not what they should be",
    "abandoned": "kill -9 of the driver and nobody resumes until nothing of it is left",
}
"""Faults by name."""
LASTING = ("late host", "garbage")
"""Faults that are there from the start."""
ENDING = ("driver", "ctrl-c", "disk", "abandoned")
"""Faults after which the job has ended."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is broken. `share` of the rows are committed by then; before any, when it is negative."""

    kind: str
    share: float
    delay: float
    """Seconds after that moment; after the start of the process when `share` is negative."""
    pick: int
    """Which of several."""

    def __str__(self) -> str:
        if self.kind in LASTING:
            return self.kind
        moment = "at the start" if self.share < 0 else f"at {self.share:.0%}"
        return f"{self.kind} #{self.pick} {moment} + {self.delay:.1f} s"


@dataclass(frozen=True, slots=True)
class Plan:
    """A run and what is to happen to it."""

    seed: int
    turns: int
    tasks: int
    samples: int
    faults: tuple[Fault, ...]

    @property
    def rows(self) -> int:
        """How many the run is to have."""
        return self.tasks * self.samples

    def has(self, kind: str) -> bool:
        """True when this is one of its faults."""
        return any(fault.kind == kind for fault in self.faults)

    def __str__(self) -> str:
        told = ", ".join(str(fault) for fault in self.faults)
        return f"seed {self.seed}: {self.tasks} x {self.samples} episodes of {self.turns} turns; {told}"


def plan(seed: int, kinds: Sequence[str]) -> Plan:
    """The plan of a seed. Its first fault goes through `kinds` one by one, so that none is forgotten."""
    draw = random.Random(seed)
    samples = draw.choice([1, 2, 3])
    drawn = [kinds[seed % len(kinds)], *draw.choices(kinds, k=draw.choice([0, 1, 1, 2]))]
    lasting = {kind for kind in drawn if kind in LASTING}
    faults = [_fault(kind, draw) for kind in (*sorted(lasting), *(kind for kind in drawn if kind not in lasting))]
    turns, tasks = draw.choice([3, 4, 5]), draw.randrange(36, 61) // samples
    return Plan(seed, turns, tasks, samples, tuple(sorted(faults, key=lambda fault: fault.share)))


def _fault(kind: str, draw: random.Random) -> Fault:
    pick = draw.randrange(100)
    if kind in LASTING:
        return Fault(kind, -1.0, 0.0, pick)
    if kind in ("driver", "ctrl-c") and draw.random() < 0.25:
        return Fault(kind, -1.0, draw.uniform(0.2, 10.0), pick)
    return Fault(kind, draw.uniform(0.0, 0.8), draw.uniform(0.0, 0.6), pick)
