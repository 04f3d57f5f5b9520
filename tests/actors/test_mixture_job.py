"""Jobs with several environments, and with one that holds few sessions, on a real Ray cluster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_jobs import DIARY, Head, Jobs, assert_closed, assert_one_each, diary, keys, rows, scripted, sessions

from rollout.config import CHECKOUT
from rollout.mixture import LANE_TASKS

pytestmark = pytest.mark.ray

BLOCKED, QUICK = 12, 24


def mixture(folder: Path) -> Path:
    """A job whose first environment waits at its tools until `gate` is there, and whose second one breaks at a task."""
    slow = {"path": str(folder / "blocked.txt"), "count": BLOCKED, "gate": str(folder / "gate")}
    quick = {"path": str(folder / "quick.txt"), "count": QUICK, "down": [3]}
    job: dict[str, Any] = {
        "run": {"dir": "?", "limits": {"tool_seconds": 300, "seed_seconds": 5}},
        "resources": {
            "blocked": {"name": DIARY, "options": slow, "max_sessions": 4},
            "quick": {"name": DIARY, "options": quick},
        },
        "model": yaml.safe_load((CHECKOUT / "scripted.yaml").read_text())["model"] | {"latency_seconds": 0.05},
        "scheduler": {"in_flight": 10, "max_attempts": 2},
        "dataset": {"commit_rows": 5, "commit_seconds": 0.5},
    }
    (conf := folder / "job.yaml").write_text(yaml.safe_dump(job))
    return conf


def test_a_blocked_environment_holds_up_only_its_own_episodes(jobs: Jobs, head: Head) -> None:
    """And the sessions of a runner that dies make room for those of the next."""
    run = jobs.start("run", conf=mixture(jobs.folder))
    quick = {(LANE_TASKS + task, 0): 1 for task in range(QUICK)}
    run.until_rows(QUICK)
    assert Counter(keys(run.folder)) == quick, "every episode of the one, and none of the other"
    opened, closed = sessions(jobs.folder / "blocked.txt")
    assert (len(opened), len(closed)) == (4, 0), "they are in play"
    head.workers("ray::EpisodeRunner")[0].kill()
    (jobs.folder / "gate").touch()
    assert run.wait() == 0, run.said()
    assert Counter(keys(run.folder)) == {(task, 0): 1 for task in range(BLOCKED)} | quick
    for row in rows(run.folder):
        index = row["task_index"]
        assert row["reward"] == (None if index == LANE_TASKS + 3 else 1.0)
        assert row["attempt"] == (2 if index < 4 or index == LANE_TASKS + 3 else 1)
        assert row["resource"] == DIARY
    assert_closed(jobs.folder / "blocked.txt", at_once=4)
    assert_closed(jobs.folder / "quick.txt")
    said = [line.split()[:2] for line in run.said().splitlines()]
    assert ["blocked", str(BLOCKED)] in said and ["quick", str(QUICK)] in said


def test_a_cap_far_below_what_may_be_in_flight_costs_no_attempt(jobs: Jobs) -> None:
    path, lines = diary(jobs)
    fast = ["model.latency_seconds=0", "run.limits.seed_seconds=1"]
    run = jobs.finish("run", *lines, *scripted(60), *fast, "resource.max_sessions=3", "scheduler.in_flight=50")
    assert_one_each(run.folder, 60)
    assert {(row["status"], row["reward"], row["attempt"]) for row in rows(run.folder)} == {("completed", 1.0, 1)}
    assert_closed(path, at_once=3)
