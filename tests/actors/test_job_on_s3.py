"""A whole job whose run is kept on an S3-compatible server: runners write there, the driver commits there."""

from __future__ import annotations

import os
import signal

import pytest
from ray_jobs import Jobs, Started, assert_one_each, keys, rows, scripted, until

from rollout.storage import folder

pytestmark = pytest.mark.ray

PLACE = "s3://runs/job"


def test_invariant_1_a_job_on_an_object_store_is_stopped_and_resumed(
    jobs: Jobs, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    job = [f"run.dir={PLACE}", *scripted(20)]
    run = jobs.start("unused", *job)
    until(lambda: _goes_on(run) and len(keys(PLACE)) >= 5, "5 rows")
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 75, run.said()
    assert f"run.dir={PLACE}" in run.said() and run.said().endswith("--resume\n")
    done = rows(PLACE)
    assert 5 <= len(done) < 20
    jobs.finish("unused", *job, "--resume")
    assert_one_each(PLACE, 20)
    by_id = {row["episode_id"]: row for row in rows(PLACE)}
    assert [by_id[row["episode_id"]] for row in done] == done
    assert not run.folder.exists()
    assert sorted(folder(PLACE).names()) == ["episodes", "run.yaml"]


def _goes_on(run: Started) -> bool:
    assert run.process.poll() is None, run.said()
    return True
