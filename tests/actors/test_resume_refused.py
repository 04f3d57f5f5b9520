"""Invariant 8 with real processes: a run whose tasks, configuration or code changed is not gone on with by itself."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_jobs import Jobs, assert_one_each, rows, scripted
from test_bad_input_cluster import MINE, line_of

pytestmark = pytest.mark.ray

COUNT = 20


def test_invariant_8_what_changed_is_named_nothing_is_touched_and_force_records_it(jobs: Jobs) -> None:
    """The changes come one on top of the other: the first of them is named each time, and how many more."""
    tasks, code = jobs.folder / "tasks.jsonl", jobs.folder / "mine.py"
    _write(tasks, target=4)
    code.write_text(MINE)
    job = [f"resource.name={code}", "resource.options.count=null", f"tasks.path={tasks}", *scripted(0)[1:]]
    run = jobs.start("run", *job)
    run.until_rows(5)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 75, run.said()
    done = rows(run.folder)
    assert 5 <= len(done) < COUNT
    left = _files(run.folder)
    assert any(name.startswith("turns/") for name in left), "what was in flight is there to be gone on with"

    _write(tasks, target=5)
    _refused(jobs, job, "the digest of tasks was ", left)
    code.write_text(f"{MINE}    instructions = 'Otherwise.'\n")
    _refused(jobs, job, "the digest of resource was ", left, more=1)
    job.append("run.limits.max_turns=7")
    _refused(jobs, job, "run.limits.max_turns was 8, is 7 now (and 2 more)", left, more=2)

    jobs.finish("run", *job, "--resume", "--force")
    assert_one_each(run.folder, COUNT)
    by_id = {row["episode_id"]: row for row in rows(run.folder)}
    assert [by_id[row["episode_id"]] for row in done] == done
    told = yaml.safe_load((run.folder / "run.yaml").read_text())
    changed = ["run.limits.max_turns", "the digest of resource", "the digest of tasks"]
    assert [line.partition(" was ")[0] for line in told["forced"]] == changed


def _write(tasks: Path, target: int) -> None:
    lines = [{"id": f"t{number}", "prompt": "Add.", "data": {"target": target}} for number in range(COUNT)]
    tasks.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _refused(jobs: Jobs, job: list[str], line: str, left: dict[str, Any], more: int = 0) -> None:
    resumed = jobs.start("run", *job, "--resume")
    said = line_of(resumed, 2)
    assert said.startswith(f"run.dir: {resumed.folder}: cannot resume: {line}"), said
    assert said.endswith("--force goes on all the same")
    assert f"(and {more} more)" in said if more else "more)" not in said
    assert _files(resumed.folder) == left


def _files(run: Path) -> dict[str, bytes]:
    """All there is of a run; its lock tells who was there last."""
    files = [file for file in run.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}
