"""A cluster of several nodes on one machine: each `ray start` is a process with an address of its own in 127/8."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 120.0
"""Seconds a part of the cluster may take to come up."""
STARTS = 3
"""Tries a node gets to come up."""
ROOT = Path(__file__).parent.parent.parent
_HEALTH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
"""A node that dies is noticed after seconds; Ray's own 15 s would be most of a run."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_enable_worker_prestart": "0"}


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Waits for a condition and gives what it gave; raises TimeoutError naming `what`."""
    deadline = time.monotonic() + seconds
    while not (given := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return given


def family(pid: int) -> list[psutil.Process]:
    """A process and everything below it; nothing when it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def title(process: psutil.Process) -> str:
    """How a process calls itself, like `ray::EpisodeRunner.work`; nothing when it has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def kill_all(processes: list[psutil.Process]) -> None:
    """kill -9, all at once; returns when they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=PATIENCE)


@dataclass(slots=True)
class Nodes:
    """A head that holds nothing but Ray itself and Serve's controller, and workers that may be killed."""

    folder: Path
    workers: int
    address: str = ""
    head: subprocess.Popen[bytes] | None = None
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict[int, subprocess.Popen[bytes]])

    @property
    def env(self) -> dict[str, str]:
        """What a command on this cluster is to find in its environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
        own = {"RAY_TMPDIR": str(self.folder), "RAY_ADDRESS": self.address, "PYTHONPATH": path}
        return {**kept, **_QUIET, **_HEALTH, **own}

    def start_head(self) -> None:
        """Starts the head and all workers."""
        port, client, metrics = _free_ports(3)
        own = ["--head", f"--port={port}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"]
        own += [f"--temp-dir={self.folder}", "--include-dashboard=false", "--num-cpus=0"]
        self.head = self._start(0, own)
        self.address = f"127.0.0.1:{port}"
        self.mend()

    def mend(self) -> None:
        """Starts the workers that do not run."""
        for number in range(1, self.workers + 1):
            process = self.running.get(number)
            if process is None or process.poll() is not None:
                self.running[number] = self._start(number, [f"--address={self.address}", "--num-cpus=1"])

    def kill(self, number: int) -> list[psutil.Process]:
        """kill -9 for a worker node and all that runs on it, as when its machine loses power."""
        processes = family(self.running[number].pid)
        kill_all(processes)
        self.running[number].wait()
        return processes

    def processes(self) -> list[psutil.Process]:
        """All of the cluster."""
        started = [self.head, *self.running.values()]
        return [process for one in started if one is not None for process in family(one.pid)]

    def named(self, start: str) -> list[psutil.Process]:
        """Its processes whose title begins so."""
        return [process for process in self.processes() if title(process).startswith(start)]

    def stop(self) -> None:
        """Ends all of it."""
        kill_all(self.processes())
        for process in (self.head, *self.running.values()):
            if process is not None:
                process.wait()

    def renew(self) -> None:
        """Ends all of it and starts it again."""
        self.stop()
        self.start_head()

    def _start(self, number: int, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Tries again: on a busy machine Ray gives its own parts up after half a minute."""
        for _ in range(STARTS - 1):
            with suppress(RuntimeError):
                return self._start_once(number, arguments)
        return self._start_once(number, arguments)

    def _start_once(self, number: int, arguments: list[str]) -> subprocess.Popen[bytes]:
        ray = str(Path(sys.executable).parent / "ray")
        own = [f"--node-ip-address=127.0.0.{number + 1}", f"--dashboard-agent-listen-port={_free_ports(1)[0]}"]
        own += ["--object-store-memory=80000000", "--disable-usage-stats", "--block"]
        log = self.folder / f"node-{number}.log"
        with log.open("wb") as out:
            command = [ray, "start", *arguments, *own]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=self.env, start_new_session=True)
        until(lambda: process.poll() is not None or "Ray runtime started" in log.read_text(), f"node {number} is up")
        if process.poll() is not None:
            raise RuntimeError(f"node {number} does not start: {log.read_text()[-500:]}")
        return process


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Nodes]:
    """Nodes that live as long as the block."""
    nodes = Nodes(folder, workers)
    try:
        nodes.start_head()
        yield nodes
    finally:
        nodes.stop()


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
