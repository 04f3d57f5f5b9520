"""Jobs whose parts freeze or hang: they are named, replaced where they are ours, and no work is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from ray_jobs import Head, Jobs, alive, assert_one_each, keys, rows, scripted, until

from rollout.scripted_endpoint import Behaviour, ScriptedEndpoint
from rollout.template import load_template, resolve_model

pytestmark = pytest.mark.ray

SUBMIT = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
STOPPED = 75


def test_a_frozen_host_and_a_frozen_replica_are_named_and_replaced_and_every_row_is_there(
    jobs: Jobs, head: Head
) -> None:
    two = ["resource.hosts=2", "model.replicas=2", "run.limits.seed_seconds=20", "scheduler.max_attempts=9"]
    impatient = "import actors.mend; actors.mend.PROBE_SECONDS = 2; import rollout.cli; rollout.cli.main()"
    run = jobs.start("run", *scripted(60), *two, "scheduler.silent_seconds=8", program=("-c", impatient))
    run.until_rows(5)
    frozen = [head.workers("ray::ResourceHost")[0], head.workers("ray::ServeReplica")[0]]
    for process in frozen:
        process.suspend()
    try:
        until(lambda: not alive(frozen), "they are ended")
    finally:
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert run.wait() == 0, run.said()
    assert "waiting for model replicas: 0 of 2 ready" in run.said()
    shown = [line.partition("waiting for ")[2] for line in run.said().splitlines()]
    assert [line for line in shown if line.startswith(("host ", "model slot ")) and "silent for" in line], run.said()
    for process, part in zip(frozen, ("host ", "model slot "), strict=True):
        assert [
            line for line in run.said().splitlines() if line.startswith(part) and f"process {process.pid} on " in line
        ]
    assert_one_each(run.folder, 60)
    assert {(row["status"], row["reward"]) for row in rows(run.folder)} == {("completed", 1.0)}


async def test_an_endpoint_that_hangs_is_named_and_the_run_ends_with_its_work_kept(jobs: Jobs) -> None:
    template = load_template(resolve_model("bundled"))
    async with ScriptedEndpoint(template, [SUBMIT], Behaviour(latency_seconds=0.1)) as endpoint:
        model = {"engine": "openai", "base_url": endpoint.url, "name": "any"}
        job = {
            "run": {"dir": "?"},
            "resource": {"name": "counter", "options": {"count": 40, "target": 0}},
            "model": model,
        }
        (conf := Path(jobs.folder / "job.yaml")).write_text(yaml.safe_dump(job))
        sizes = ["scheduler.in_flight=2", "dataset.commit_rows=1", "scheduler.stuck_seconds=5"]
        run = jobs.start("run", *sizes, "scheduler.silent_seconds=3", conf=conf)
        await asyncio.to_thread(run.until_rows, 3)
        endpoint.behaviour = Behaviour(latency_seconds=3600.0)
        assert await asyncio.to_thread(run.wait) == STOPPED, run.said()
        kept = keys(run.folder)
        assert 3 <= len(kept) < 40
        host = endpoint.url.split("/")[2]
        assert (
            f"rollout: no turn and no episode has ended well for 5 s; waiting for model endpoint {host}: 2 model calls"
            in run.said()
        )
        assert f"waiting for model endpoint {host}: 2 model calls" in run.said() and "--resume" in run.said()
        assert {row["status"] for row in rows(run.folder)} == {"completed"}
