"""How long an interrupted run takes to be at work again: python -m scripts.resume_time [--episodes 100000]

Makes a run of so many finished episodes as a real one would leave it (commits of 256 rows, five turns each, and some
samples unfinished in the middle and at the end), then takes the time from `rollout run --resume` to the first episode
that plays and to the first row that is committed. The cluster is up before: one that RAY_ADDRESS names, or its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import yaml

from actors.check import check, make_resources
from rollout.config import JobConfig, find_conf, load
from rollout.dataset import Committer, open_table, write_file
from rollout.rows import to_table
from rollout.run_folder import Run, create_or_resume
from rollout.trajectory import Lease, Score, StopReason, Task, Trajectory
from rollout.turn import Completion, FinishReason, Segment, Turn

TURNS, PROMPT, SAMPLED = 5, 60, 100
"""Turns an episode; tokens a turn."""
COMMIT_ROWS = 256
HOLE = 1000
"""Every so many samples one is unfinished."""
TAIL = 500
"""Samples after the last finished one."""
PATIENCE = 300.0


def main() -> None:
    """Prints one line with the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="keeps the run here; a temporary folder otherwise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        config = _config(folder, options.episodes)
        made = _make(config, options.episodes)
        version = open_table(made.place).version()
        context: Any = ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
        try:
            working, committed = _measure(folder, context.address_info["gcs_address"], version)
        finally:
            ray.shutdown()
    print(
        f"{options.episodes:,} finished episodes: at work {working:.1f} s after the command, first row committed "
        f"after {committed:.1f} s"
    )


def _config(folder: Path, episodes: int) -> JobConfig:
    tree = yaml.safe_load(find_conf("scripted").read_text())
    tree["run"]["dir"] = str(folder / "run")
    tree["resource"]["options"]["count"] = episodes + TAIL
    tree["model"]["latency_seconds"] = 0.01
    tree["dataset"] = {"commit_seconds": 0.1}
    conf = folder / "job.yaml"
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(yaml.safe_dump(tree))
    return load(conf, ())


def _make(config: JobConfig, episodes: int) -> Run:
    run = create_or_resume(config, check(config, make_resources(config)), resume=False, force=False)
    committer = Committer(run.episodes, run.run_id)
    committer.take_over()
    like = to_table([_episode(run.run_id, np.random.default_rng(seed)) for seed in range(COMMIT_ROWS)])
    numbers = np.array([number for number in range(episodes) if number % HOLE])
    for start in range(0, len(numbers), COMMIT_ROWS):
        committer.commit([write_file(committer.folder, _numbered(like, run.run_id, numbers[start:][:COMMIT_ROWS]))])
    return run


def _episode(run_id: str, random: np.random.Generator) -> Trajectory:
    lease = Lease(run_id, Task("t", ({"role": "user", "content": "Count."},), {}, 0), 0, 1, False, 0)
    turn = Turn("agent", 0, (), Completion(FinishReason.STOP), (Segment("content", "One more. " * 20),))
    turns = [
        replace(
            turn,
            prompt_ids=random.integers(0, 150_000, PROMPT).tolist(),
            completion=Completion(
                FinishReason.STOP,
                random.integers(0, 150_000, SAMPLED).tolist(),
                (-random.random(SAMPLED)).tolist(),
                replica="r",
            ),
        )
        for _ in range(TURNS)
    ]
    return Trajectory(lease, "counter", "agent", "m", (), tuple(turns), StopReason.DONE, Score(1.0))


def _numbered(like: pa.Table, run_id: str, numbers: np.ndarray) -> pa.Table:
    """The same episodes as those of other tasks."""
    table = like.slice(0, len(numbers))
    ids = [f"{run_id}-{number}" for number in numbers]
    columns: dict[str, Any] = {
        "task_index": numbers,
        "task_id": [f"counter-{number}" for number in numbers],
        "group_id": ids,
        "episode_id": [f"{group}-0" for group in ids],
    }
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    return table


def _measure(folder: Path, address: str, version: int) -> tuple[float, float]:
    """Seconds to the first episode that plays, and to the first row that is committed."""
    command = [sys.executable, "-m", "rollout", "run", str(folder / "job.yaml"), "--resume", "--address", address]
    began, wall = time.monotonic(), time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    run = folder / "run"
    before = open_table(run).to_pyarrow_dataset().count_rows()
    try:
        while open_table(run).version() <= version or open_table(run).to_pyarrow_dataset().count_rows() <= before:
            if process.poll() is not None or time.monotonic() - began > PATIENCE:
                raise SystemExit(f"the run ended, or committed nothing within {PATIENCE:g} s")
            time.sleep(0.2)
        committed = time.monotonic() - began
        process.wait(PATIENCE)
    finally:
        process.terminate()
        process.wait()
    rows = open_table(run).to_pyarrow_dataset()
    started = rows.to_table(columns=["started_at"], filter=pc.field("started_at") > pa.scalar(int(wall * 1e6), _TIME))
    first = pc.min(started["started_at"]).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    return first.timestamp() - wall, committed


_TIME = pa.timestamp("us", tz="UTC")

if __name__ == "__main__":
    main()
