"""One run under faults: started, broken, resumed until it is done, and looked at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fault_runs.breaking import ACTORS, Scene, clear, mount, strike, unmount
from fault_runs.checks import Sessions, check_files, check_rows, check_sessions, read_rows, replaced_hosts
from fault_runs.nodes import Nodes, family, kill_all, until
from fault_runs.plan import ENDING, LASTING, Fault, Plan
from rollout.scripted import encode_lines
from rollout.template import load_template, resolve_model

ATTEMPTS = 4
SILENT_SECONDS = 4.0
"""scheduler.silent_seconds of the jobs: stopped processes are to be given up soon."""
STOPPED_SECONDS = SILENT_SECONDS + 9.0
"""How long a process is stopped: a trip's hold of 5 s comes on top of the silence."""
SHARE = 0.25
"""CPUs of each of the six actors of a job: a node has one CPU, so they are spread over two."""
GARBAGE_SHARE = 0.02
LATE_SECONDS = 8.0
"""More than tool_seconds and what a call may be late on its way."""
START_SECONDS = 240.0
"""A process that runs longer hangs."""
GONE_SECONDS = 60.0
"""What Ray and Serve may take to end what a job has left."""
MAX_STARTS = 8
EXIT_DONE, EXIT_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED, EXIT_KILLED = 0, 1, 75, -2, -9
_ENDS = {"ctrl-c": EXIT_STOPPED, "driver": EXIT_KILLED, "abandoned": EXIT_KILLED, "disk": EXIT_ERROR}


@dataclass(slots=True)
class Outcome:
    """What became of a run."""

    plan: Plan
    broken: list[str] = field(default_factory=list[str])
    """Kinds of faults that struck."""
    missed: list[str] = field(default_factory=list[str])
    """Those that found nothing to break any more."""
    exits: list[int] = field(default_factory=list[int])
    rows: int = 0
    retried: int = 0
    failed: int = 0
    sessions: Sessions = field(default_factory=Sessions)
    violations: list[str] = field(default_factory=list[str])
    seconds: float = 0.0


class FaultRun:
    """A run in `folder` on `nodes`."""

    def __init__(self, plan: Plan, nodes: Nodes, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._scene = Scene(nodes, folder / "disk", STOPPED_SECONDS)
        self._outcome = Outcome(plan)
        self._waiting = [fault for fault in plan.faults if fault.kind not in LASTING]
        self._ended_by: str | None = None
        """The fault after which the process at work is to end."""

    def play(self) -> Outcome:
        """Plays the plan to its end and checks everything. Never raises for what the job does wrong."""
        began = time.monotonic()
        self._scene.disk.mkdir(parents=True)
        mounted = self._plan.has("disk") and mount(self._scene.disk)
        try:
            self._prepare(mounted)
            if self._until_done():
                self._look()
        except TimeoutError as error:
            self._wrong(str(error))
        finally:
            self._clean(mounted)
        self._outcome.seconds = time.monotonic() - began
        return self._outcome

    def _prepare(self, mounted: bool) -> None:
        for fault in self._plan.faults:
            if fault.kind in LASTING:
                self._outcome.broken.append(fault.kind)
        if not mounted:  # mounting is not allowed here
            self._outcome.missed += [fault.kind for fault in self._waiting if fault.kind == "disk"]
            self._waiting = [fault for fault in self._waiting if fault.kind != "disk"]
        self._conf.write_text(yaml.safe_dump(self._job()))

    @property
    def _conf(self) -> Path:
        return self._folder / "job.yaml"

    @property
    def _diary(self) -> Path:
        return self._folder / "diary.txt"

    @property
    def _run(self) -> Path:
        return self._scene.disk / "run"

    def _job(self) -> dict[str, object]:
        plan = self._plan
        late = LATE_SECONDS if plan.has("late host") else 0.0
        options = {"path": str(self._diary), "count": plan.tasks, "target": plan.turns - 1, "late": late}
        many = {"hosts": 2, "cpus_per_host": SHARE}
        limits = {"max_turns": 8, "turn_seconds": 30, "tool_seconds": 1, "verify_seconds": 10, "close_seconds": 5}
        model = {"engine": "scripted", "latency_seconds": 0.2, "latency_spread": 0.5, "turns": lines(plan.turns)}
        return {
            "run": {"dir": str(self._run), "samples_per_task": plan.samples, "limits": limits},
            "resource": {"name": f"{Path(__file__).parent / 'world.py'}:Diary", "options": options, **many},
            "model": {**model, "replicas": 2, "cpus_per_replica": SHARE, "drain_seconds": 5},
            "scheduler": {
                "in_flight": 12,
                "runners": 2,
                "cpus_per_runner": SHARE,
                "max_attempts": ATTEMPTS,
                "silent_seconds": SILENT_SECONDS,
            },
            "dataset": {"commit_rows": 4, "commit_seconds": 0.5},
        }

    def _until_done(self) -> bool:
        """Starts the job, and again after all that ends it; True when it says that it is done."""
        while len(self._outcome.exits) < MAX_STARTS:
            self._start()
            status = self._see_through()
            self._outcome.exits.append(status)
            self._scene.do_due(all_of_it=True)
            expected = (EXIT_DONE, *self._expected())
            if status not in expected:
                self._wrong(f"start {len(self._outcome.exits)} ended with {status}, expected one of {expected}")
                return False
            if status == EXIT_DONE:
                return True
            if self._ended_by == "abandoned":
                self._wait_until_gone("after its driver was killed")
        self._wrong(f"not done after {MAX_STARTS} starts")
        return False

    def _expected(self) -> tuple[int, ...]:
        """Exit statuses the last fault may lead to. A Ctrl-C before there is a run has nothing to resume, one while the
        program is still being imported ends it as it ends any command."""
        if self._ended_by != "ctrl-c":
            return (_ENDS[self._ended_by],) if self._ended_by else ()
        started = (self._run / "run.yaml").exists()
        return (-signal.SIGINT, _ENDS["ctrl-c"]) if started else (-signal.SIGINT, EXIT_ERROR, EXIT_INTERRUPTED)

    def _start(self) -> None:
        clear(self._scene.disk)
        self._ended_by = None
        number = len(self._outcome.exits)
        program = ["-m", "fault_runs.driver"] if self._plan.has("garbage") else ["-m", "rollout"]
        resume = ["--resume"] if (self._run / "run.yaml").exists() else []
        env = {**self._scene.nodes.env, "GARBAGE_SHARE": str(GARBAGE_SHARE)}
        with (self._folder / f"start-{number}.log").open("wb") as out:
            command = [sys.executable, *program, "run", str(self._conf), *resume]
            self._scene.driver = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)

    def _see_through(self) -> int:
        """Breaks what is due until the process ends; its exit status."""
        driver, began = self._scene.driver, time.monotonic()
        assert driver is not None, "it was started"
        while (status := driver.poll()) is None:
            if time.monotonic() - began > START_SECONDS:
                self._wrong(f"start {len(self._outcome.exits) + 1} hangs")
                kill_all(family(driver.pid))
                return driver.wait()
            self._scene.do_due()
            if self._waiting and self._ended_by is None and self._is_due(self._waiting[0], began):
                self._strike(self._waiting.pop(0))
            time.sleep(0.05)
        return status

    def _is_due(self, fault: Fault, began: float) -> bool:
        if fault.share < 0:
            return time.monotonic() - began >= fault.delay
        done = committed(self._scene.episodes)
        return 0 < done >= fault.share * self._plan.rows

    def _strike(self, fault: Fault) -> None:
        if fault.share >= 0:
            time.sleep(fault.delay)
        driver = self._scene.driver
        assert driver is not None, "it was started"
        struck = driver.poll() is None and strike(self._scene, fault)
        (self._outcome.broken if struck else self._outcome.missed).append(fault.kind)
        if struck and (fault.kind in ENDING or driver.poll() == EXIT_KILLED):
            self._ended_by = fault.kind if fault.kind in ENDING else "driver"

    def _look(self) -> None:
        """Checks everything that must hold."""
        outcome = self._outcome
        outcome.missed += [fault.kind for fault in self._waiting]
        rows = read_rows(self._run)
        outcome.rows = len(rows)
        outcome.retried = sum(row["attempt"] > 1 for row in rows)
        outcome.failed = sum(row["failure"] is not None for row in rows)
        template = load_template(resolve_model("bundled"))
        sampled = encode_lines(template, tuple(lines(self._plan.turns)))
        outcome.violations += check_rows(self._plan, rows, sampled, ATTEMPTS)
        outcome.violations += check_files(self._run)
        self._wait_until_gone("after its end")
        outcome.sessions, wrong = check_sessions(self._diary, self._scene.dead_hosts | replaced_hosts(self._folder))
        outcome.violations += wrong
        outcome.violations += self._said()

    def _wait_until_gone(self, when: str) -> None:
        nodes = self._scene.nodes
        with suppress(TimeoutError):
            until(lambda: not any(nodes.named(actor) for actor in ACTORS), when, GONE_SECONDS)
            return
        left = [process for actor in ACTORS for process in nodes.named(actor)]
        self._wrong(f"{len(left)} processes of the job are left {when}: {left}")
        kill_all(left)

    def _said(self) -> Iterator[str]:
        for log in sorted(self._folder.glob("start-*.log")):
            if "Traceback (most recent call last)" in log.read_text(errors="replace"):
                yield f"{log.name} shows a traceback"

    def _wrong(self, what: str) -> None:
        self._outcome.violations.append(what)

    def _clean(self, mounted: bool) -> None:
        """Leaves a cluster for the next run, and the run's folder where a violation is to be looked at."""
        self._scene.do_due(all_of_it=True)
        if self._scene.driver is not None:
            kill_all(family(self._scene.driver.pid))
            self._scene.driver.wait()
        if mounted:
            clear(self._scene.disk)
            subprocess.run(["cp", "-r", str(self._run), str(self._folder / "run")], check=False)
            unmount(self._scene.disk)
        self._scene.nodes.mend()


def lines(turns: int) -> list[str]:
    """What the policy says: it adds, and in the last turn submits."""
    add = '<think>One more.</think>\n<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
    return [*[add] * (turns - 1), '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>']


def committed(episodes: Path) -> int:
    """Rows that were committed so far: the log is read as text, a table would be too much work so often."""
    count = 0
    for file in (episodes / "_delta_log").glob("*.json"):
        for line in file.read_text().splitlines():
            added = json.loads(line).get("add")
            count += json.loads(added["stats"])["numRecords"] if added and added["dataChange"] else 0
    return count


def totals(outcomes: list[Outcome]) -> dict[str, object]:
    """The figures of a series."""
    kinds = Counter(kind for outcome in outcomes for kind in outcome.broken)
    missed = Counter(kind for outcome in outcomes for kind in outcome.missed)
    return {
        "runs": len(outcomes),
        "starts": sum(len(outcome.exits) for outcome in outcomes),
        "faults": dict(sorted(kinds.items())),
        "faults_missed": dict(sorted(missed.items())),
        "rows_wanted": sum(outcome.plan.rows for outcome in outcomes),
        "rows": sum(outcome.rows for outcome in outcomes),
        "rows_retried": sum(outcome.retried for outcome in outcomes),
        "rows_failed": sum(outcome.failed for outcome in outcomes),
        "sessions_opened": sum(outcome.sessions.opened for outcome in outcomes),
        "sessions_closed": sum(outcome.sessions.closed for outcome in outcomes),
        "sessions_died_with_host": sum(outcome.sessions.died for outcome in outcomes),
        "violations": sum(len(outcome.violations) for outcome in outcomes),
    }
