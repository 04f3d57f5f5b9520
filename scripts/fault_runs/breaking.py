"""How things are broken: real signals to real processes, a real disk that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fault_runs.nodes import Nodes, family, kill_all, title
from fault_runs.plan import Fault

ACTORS = ("ray::EpisodeRunner", "ray::ResourceHost", "ray::ServeReplica")
"""What a job has on the cluster."""
RUNNER, HOST, REPLICA = ACTORS
_TITLES = {
    "runner": RUNNER,
    "host": HOST,
    "replica": REPLICA,
    "controller": "ray::ServeController",
    "stopped runner": RUNNER,
    "stopped host": HOST,
}
WRITER_SECONDS = 5.0
"""How long the next file is waited for."""
DISK_BYTES = 16_000_000
MEND_SECONDS = 2.0
"""After which a node that was killed is started again."""


@dataclass(slots=True)
class Scene:
    """A job at work and what was done to it."""

    nodes: Nodes
    disk: Path
    """Where the run's folder lies."""
    pause: float
    """Seconds a process is stopped."""
    driver: subprocess.Popen[bytes] | None = None
    dead_hosts: set[int] = field(default_factory=set[int])
    """Processes whose sessions died with them."""
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list[tuple[float, Callable[[], None]]])
    """What is to be done at a time."""

    @property
    def episodes(self) -> Path:
        """The dataset's folder."""
        return self.disk / "run" / "episodes"

    def do_due(self, all_of_it: bool = False) -> None:
        """Does what is due: stopped processes go on, nodes are started again."""
        due = [entry for entry in self.later if all_of_it or entry[0] <= time.monotonic()]
        self.later = [entry for entry in self.later if entry not in due]
        for _, action in due:
            action()


def strike(scene: Scene, fault: Fault) -> bool:
    """Breaks what the fault says; False when there was nothing of it."""
    match fault.kind:
        case "driver" | "abandoned":
            return _kill_driver(scene, scene.nodes.named(HOST))
        case "host":
            return _kill_host(scene, _picked(scene.nodes.named(HOST), fault))
        case "verifier":
            below = [child for host in scene.nodes.named(HOST) for child in family(host.pid)[1:]]
            return _kill(_picked([child for child in below if "spawn_main" in title(child)], fault))
        case "writer":
            return _kill_writer(scene, fault)
        case "node":
            return _kill_node(scene, fault)
        case "ctrl-c":
            return _interrupt(scene)
        case "disk":
            return fill(scene.disk)
        case "stopped runner" | "stopped host":
            return _stop(scene, _picked(scene.nodes.named(_TITLES[fault.kind]), fault))
        case _:
            return _kill(_picked(scene.nodes.named(_TITLES[fault.kind]), fault))


def _picked(found: Sequence[psutil.Process], fault: Fault) -> psutil.Process | None:
    return found[fault.pick % len(found)] if found else None


def _kill(process: psutil.Process | None) -> bool:
    if process is None:
        return False
    kill_all([process])
    return True


def _kill_host(scene: Scene, process: psutil.Process | None) -> bool:
    if process is not None:
        scene.dead_hosts.add(process.pid)
    return _kill(process)


def _kill_driver(scene: Scene, hosts: Sequence[psutil.Process]) -> bool:
    """Its hosts die with it: Ray ends what a driver owns."""
    assert scene.driver is not None, "a job runs"
    if scene.driver.poll() is not None:
        return False
    scene.driver.kill()
    scene.driver.wait()
    scene.dead_hosts.update(process.pid for process in hosts)
    return True


def _kill_node(scene: Scene, fault: Fault) -> bool:
    """One of those that hold something of the job."""
    families = {number: family(process.pid) for number, process in scene.nodes.running.items()}
    held = [number for number, below in families.items() if any(title(process).startswith(ACTORS) for process in below)]
    if not held:
        return False
    number = held[fault.pick % len(held)]
    processes = families[number]
    scene.dead_hosts.update(process.pid for process in processes if title(process).startswith(HOST))
    scene.nodes.kill(number)
    scene.later.append((time.monotonic() + MEND_SECONDS, scene.nodes.mend))
    return True


def _kill_writer(scene: Scene, fault: Fault) -> bool:
    """Between file and commit, a moment of milliseconds: the folder is looked at every millisecond."""
    assert scene.driver is not None, "a job runs"
    victim = _picked(scene.nodes.named(RUNNER), fault) if fault.pick % 2 else None
    hosts = scene.nodes.named(HOST)  # before: looking takes longer than that moment
    before, deadline = _files(scene.episodes), time.monotonic() + WRITER_SECONDS
    while time.monotonic() < deadline and scene.driver.poll() is None:
        if not _files(scene.episodes) - before:
            time.sleep(0.001)
        elif victim is None:
            return _kill_driver(scene, hosts)
        else:
            return _kill(victim)
    return False


def _files(folder: Path) -> set[str]:
    with suppress(FileNotFoundError):
        return {entry.name for entry in os.scandir(folder) if entry.name.startswith("part-")}
    return set()


def _interrupt(scene: Scene) -> bool:
    assert scene.driver is not None, "a job runs"
    if scene.driver.poll() is not None:
        return False
    os.killpg(scene.driver.pid, signal.SIGINT)
    return True


def _stop(scene: Scene, process: psutil.Process | None) -> bool:
    if process is None or not process.is_running():
        return False
    process.suspend()
    scene.later.append((time.monotonic() + scene.pause, lambda: _go_on(process)))
    return True


def _go_on(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):  # it was given up, and killed
        process.resume()


def mount(folder: Path) -> bool:
    """Makes the folder a small disk of its own; False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    """Takes the small disk away."""
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=True)


def fill(folder: Path) -> bool:
    """Writes until nothing more fits."""
    with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return True


def clear(folder: Path) -> None:
    """Takes away what `fill` wrote."""
    (folder / "ballast").unlink(missing_ok=True)
