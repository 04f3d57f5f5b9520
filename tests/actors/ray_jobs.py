"""Ray clusters and jobs as processes of their own, and ways to look at what they do. For the tests beside it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil

from rollout.dataset import open_table
from rollout.errors import UserError
from rollout.storage import Place

DIARY = f"{Path(__file__).parent / 'diary.py'}:Diary"
PATIENCE = 100.0
"""Seconds a condition may take to come true. Nothing is concluded from how long it took."""


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Waits for a condition and gives what it gave; fails the test when it does not come true."""
    deadline = time.monotonic() + seconds
    while not (given := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return given


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def family(pid: int) -> list[psutil.Process]:
    """A process and everything below it; nothing when it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; what has ended and was not waited for does not."""
    return [process for process in processes if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    """Ray's own agents do not count: after a raylet was killed they try for a minute to tell somebody."""
    try:
        lives = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return lives and process.name() not in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
    except psutil.NoSuchProcess:
        return False


@dataclass
class Head:
    """A running cluster of one node."""

    process: subprocess.Popen[bytes]
    address: str
    dashboard: str | None
    metrics: str
    """Where Prometheus would look."""
    env: dict[str, str]

    def workers(self, title: str) -> list[psutil.Process]:
        """Its actors whose process title begins so, like `ray::EpisodeRunner`."""
        return named(self.process.pid, title)


def named(pid: int, title: str) -> list[psutil.Process]:
    """Processes below `pid` whose title begins so."""
    found: list[psutil.Process] = []
    for process in family(pid):
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@contextmanager
def ray_head(folder: Path, dashboard: bool, **env: str) -> Iterator[Head]:
    """A cluster that lives as long as the block. Everything it starts is a child of one process, and ends with it."""
    port, agent, client, metrics, web = free_ports(5)
    full = environment(folder, **env)
    arguments = ["--head", "--block", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=8"]
    arguments += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    arguments += [f"--metrics-export-port={metrics}", "--object-store-memory=150000000", "--disable-usage-stats"]
    arguments += [f"--dashboard-port={web}"] if dashboard else ["--include-dashboard=false"]
    ray = str(Path(sys.executable).parent / "ray")
    log = folder / "head.log"
    with log.open("wb") as out:
        process = subprocess.Popen([ray, "start", *arguments], stdout=out, stderr=out, env=full, start_new_session=True)
    scraped = f"http://127.0.0.1:{metrics}/metrics"
    try:
        until(lambda: "Ray runtime started" in log.read_text(errors="replace"), "the cluster has started")
        yield Head(process, f"127.0.0.1:{port}", f"http://127.0.0.1:{web}" if dashboard else None, scraped, full)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Ends a process and everything below it, at once."""
    below = family(process.pid)
    for one in below:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(below, timeout=PATIENCE)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Ours without what would lead to another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"  # a submitted job is started as `python`
    return {**kept, "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **more}


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder with a short path: Ray puts sockets into it, whose paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ro-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Started:
    """A `rollout` command at work, the leader of a process group as a terminal makes it."""

    process: subprocess.Popen[bytes]
    folder: Path
    out: Path
    seen: dict[int, psutil.Process] = field(default_factory=dict[int, psutil.Process])

    def rows(self) -> list[dict[str, Any]]:
        """What is committed now."""
        return rows(self.folder)

    def until_rows(self, least: int) -> int:
        """Waits until so many rows are committed; how many there are then."""

        def enough() -> int:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.said()}"
            return len(committed) if len(committed := keys(self.folder)) >= least else 0

        return until(enough, f"{least} rows")

    def remember(self) -> list[psutil.Process]:
        """Everything below it, now and at earlier calls."""
        self.seen.update({p.pid: p for p in family(self.process.pid)[1:]})
        return list(self.seen.values())

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(PATIENCE)

    def said(self) -> str:
        """What it has written to stdout and stderr."""
        return self.out.read_text(errors="replace")


class Jobs:
    """Starts `rollout run` or `rollout submit`, and ends what a failing test leaves."""

    def __init__(self, folder: Path, env: dict[str, str], submit_to: str | None = None) -> None:
        self.folder = folder
        self.env = env
        self.submit_to = submit_to
        """Jobs address of a cluster that is to run them."""
        self.logs = Path(env["RAY_TMPDIR"])
        """Where Ray keeps its logs."""
        self._started: list[Started] = []

    def start(
        self, name: str, *arguments: str, conf: str | Path = "scripted", program: Sequence[str] = ("-m", "rollout")
    ) -> Started:
        """Starts a job with overrides and options; its run is called `name`."""
        run = self.folder / name
        out = self.folder / f"{name}-{len(self._started)}.log"
        verb = ("submit", f"--address={self.submit_to}") if self.submit_to else ("run",)
        command = [sys.executable, *program, *verb, str(conf), f"run.dir={run}", *arguments]
        with out.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self.env, start_new_session=True)
        self._started.append(started := Started(process, run, out))
        return started

    def finish(self, name: str, *arguments: str, conf: str | Path = "scripted") -> Started:
        """The same, and waits for its end, which must be a good one."""
        started = self.start(name, *arguments, conf=conf)
        assert started.wait() == 0, started.said()
        return started

    def end(self) -> None:
        """Ends what still runs."""
        for started in self._started:
            end(started.process)
            for process in started.seen.values():
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def scripted(count: int) -> list[str]:
    """Overrides that cut the scripted job down to a test's size: an episode takes a second."""
    sizes = ["model.latency_seconds=0.2", "scheduler.in_flight=10"]
    return [f"resource.options.count={count}", *sizes, "dataset.commit_rows=5", "dataset.commit_seconds=0.5"]


def rows(run: Place) -> list[dict[str, Any]]:
    """All committed rows in the order of their samples."""
    table = open_table(run).to_pyarrow_table()
    return sorted(table.to_pylist(), key=lambda row: (row["task_index"], row["sample_index"]))


def keys(run: Place) -> list[tuple[int, int]]:
    """(task, sample) of every committed row but those of children; none while there is no run yet."""
    try:
        table = open_table(run).to_pyarrow_table(columns=["task_index", "sample_index", "parent_episode_id"])
    except UserError:
        return []
    own = (row for row in table.to_pylist() if row["parent_episode_id"] is None)
    return [(row["task_index"], row["sample_index"]) for row in own]


def assert_one_each(run: Place, tasks: int, samples: int = 1) -> None:
    """Every (task, sample) has exactly one row."""
    assert Counter(keys(run)) == {(task, sample): 1 for task in range(tasks) for sample in range(samples)}


def diary(jobs: Jobs) -> tuple[Path, list[str]]:
    """Where a job's sessions are written down, and the overrides that make it do so."""
    path = jobs.folder / "diary.txt"
    return path, [f"resource.name={DIARY}", f"resource.options.path={path}"]


def assert_closed(diary: Path, at_once: int = 10) -> None:
    """Every session that was opened was closed, once, and no more than `at_once` were open together: they are closed
    with their episodes, not in the end by the host."""
    opened, closed = sessions(diary)
    assert opened == closed
    assert set(opened.values()) == {1}
    steps = [1 if line.startswith("open") else -1 for line in diary.read_text().splitlines()]
    assert max(accumulate(steps)) <= at_once


def sessions(diary: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each session was opened and closed."""
    lines = [line.split() for line in diary.read_text().splitlines()]
    opened, closed = ([key for verb, key, _ in lines if verb == wanted] for wanted in ("open", "close"))
    return Counter(opened), Counter(closed)
