"""What only a running cluster can say is wrong, and a disk that gets full: one line, the right status, nothing lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_jobs import Jobs, Started, assert_one_each, keys, scripted

pytestmark = pytest.mark.ray

COMMITS = ("dataset.commit_rows=10", "dataset.commit_seconds=0.5")

MINE = """
import sys
from resources.counter import Counter

class Mine(Counter):
    name = "mine"
"""


def line_of(started: Started, status: int) -> str:
    """The one line of a job that ended so."""
    assert started.wait() == status, started.said()
    said = started.said()
    lines = [line for line in said.splitlines() if line.startswith("rollout: ")]
    assert len(lines) == 1 and said.endswith(f"{lines[0]}\n") and "Traceback" not in said, said
    return lines[0].removeprefix("rollout: ")


@pytest.mark.parametrize(
    ("conf", "overrides", "line"),
    [
        ("scripted", ["model.cpus_per_replica=9"], "model.replicas: asked for 1 replica of 9 CPUs; after 3 s 0 of 1 "),
        ("demo", ["model.gpus_per_replica=1"], "model.replicas: asked for 1 replica of 1 CPU and 1 GPU; after 3 s 0 "),
        ("scripted", ["resource.hosts=3", "resource.cpus_per_host=3"], "resource.hosts: asked for 3 of 3 CPUs each; "),
        # What starts before the runners has to find its place within the same time.
        (
            "scripted",
            ["scheduler.cpus_per_runner=8", "scheduler.start_seconds=15"],
            "scheduler.runners: asked for 1 of 8 CPUs; after 15 s 0 of 1 ",
        ),
    ],
)
def test_too_little_room(jobs: Jobs, conf: str, overrides: list[str], line: str) -> None:
    job = jobs.start("run", "scheduler.start_seconds=3", *overrides, conf=conf)
    said = line_of(job, 2)
    assert said.startswith(line) and " of 8 CPUs" in said and "free" in said
    assert not (job.folder / "run.yaml").exists()  # the same command works once there is room


def test_too_small_a_machine(local_jobs: Jobs) -> None:
    said = line_of(local_jobs.start("run", "model.gpus_per_replica=1000", conf="demo"), 2)
    assert said.startswith("model.replicas: the job asks for 1000 GPUs (model.replicas 1000); this machine has ")


def test_a_resource_that_a_node_cannot_make(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its relative path, though actors work in another folder."""
    monkeypatch.chdir(jobs.folder)
    own = "    def __init__(self, count):\n        if 'worker' in sys.argv[0]: raise ValueError('no licence here')\n"
    Path("mine.py").write_text(MINE + own + "        super().__init__(count)\n")
    said = line_of(jobs.start("run", "resource.name=mine.py", "resource.options.count=2"), 2)
    assert said.endswith("mine.py: ValueError: no licence here")


def test_tasks_that_break_off(jobs: Jobs) -> None:
    (jobs.folder / "mine.py").write_text(
        MINE + "    def tasks(self, seed):\n        yield from super().tasks(seed)\n        raise KeyError('more')\n"
    )
    job = jobs.start("run", f"resource.name={jobs.folder / 'mine.py'}", *scripted(3), "scheduler.in_flight=1")
    assert line_of(job, 2).endswith("mine.py:9: KeyError: 'more'")
    assert keys(job.folder), "what was played before is kept"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 80 KiB where the run is to be."""
    (folder := tmp_path / "run").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk(jobs: Jobs, disk: Path) -> None:
    whole = ["resource.options.count=200", "model.latency_seconds=0", "scheduler.in_flight=20", *COMMITS]
    full = jobs.start("run", *whole)
    said = line_of(full, 1)
    assert said.startswith(f"{full.folder / 'episodes'}: cannot ") and "No space left on device" in said
    kept = keys(full.folder)
    assert kept and len(kept) == len(set(kept)) < 200

    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    jobs.finish("run", *whole, "--resume")
    assert_one_each(full.folder, 200)
    assert set(kept) <= set(keys(full.folder))
