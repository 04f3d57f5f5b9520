"""What a job tells while it runs, as Prometheus and whoever reads the logs find it on a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray_jobs import PATIENCE, Head, Jobs, diary, ray_head, rows, scripted, short_folder, until

from rollout.metrics import METRICS

pytestmark = pytest.mark.ray

Row = dict[str, Any]
NEVER_HERE = {"rollout_engine_preemptions_total", "rollout_cached_prompt_tokens_total"}
"""Counters a scripted job has no reason to raise."""
EARLIER_RUNS = """
import ray
from actors.metrics import RayExport
from rollout.latency import CAUSES, Latencies
from rollout.metrics import Meters, Now
from rollout.tally import Tally

ray.init(log_to_driver=False)
meters = Meters()
for cause in CAUSES:
    meters.latencies.observe(cause, 0.001)
for run in range(60):
    RayExport(f"earlier-{run}", "counter")(meters.samples(Tally(), Now(1, 1, 0, None), 0.0))
"""


@dataclass
class Found:
    """What Ray's endpoint says about one run."""

    samples: Sequence[Sample]

    def total(self, name: str, **tags: str) -> float:
        """Sum over the samples with these tags."""
        chosen = [sample for sample in self.samples if sample.name == f"ray_rollout_{name}"]
        return sum(sample.value for sample in chosen if tags.items() <= sample.labels.items())


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[tuple[Head, Jobs]]:
    """A cluster that has had many runs before: Ray's agent tells only so many series of a metric (docs/metrics.md)."""
    with short_folder() as folder, ray_head(folder, dashboard=False) as head:
        jobs = Jobs(tmp_path, {**head.env, "RAY_ADDRESS": head.address})
        subprocess.run([sys.executable, "-c", EARLIER_RUNS], env=jobs.env, check=True, timeout=PATIENCE)
        try:
            yield head, jobs
        finally:
            jobs.end()


def test_prometheus_finds_what_the_rows_say_and_log_lines_name_their_episode(fresh: tuple[Head, Jobs]) -> None:
    head, jobs = fresh
    _, lines = diary(jobs)
    trouble = ["resource.options.down=[2]", "scheduler.max_attempts=3", "logs.format=json"]
    run = jobs.finish("run", *lines, *scripted(6), *trouble, "run.samples_per_task=2")
    told = rows(run.folder)
    assert Counter(row["status"] for row in told) == {"completed": 10, "failed": 2}
    _assert_counts(until(lambda: _scraped(head, told), "all rows are counted"), told)
    _assert_lines(jobs.logs, told)


def _scraped(head: Head, told: list[Row]) -> Found | None:
    """What is there of the run, once it has been told to the end."""
    with urllib.request.urlopen(head.metrics) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    found = Found([sample for sample in samples if sample.labels.get("run") == told[0]["run_id"]])
    ended = found.total("episode_seconds_bucket_total", le="+Inf")  # it may come in parts
    counters = {metric.name for metric in METRICS if metric.kind == "counter"}
    missing = counters - {sample.name.removeprefix("ray_") for sample in found.samples}
    return found if found.total("committed_rows_total") == ended == len(told) and missing == NEVER_HERE else None


def _assert_counts(found: Found, told: list[Row]) -> None:
    total = found.total
    turns = [turn for row in told for turn in row["turns"]]
    calls = [call for turn in turns for call in turn["tool_calls"]]
    model_seconds = sum(turn["model_seconds"] - turn["queue_seconds"] for turn in turns)
    assert (total("episodes_total", status="completed"), total("episodes_total", status="failed")) == (10, 2)
    assert total("failures_total", kind="tool") == total("failures_total") == 2
    assert total("retries_total", kind="tool") == total("retries_total") == 2 * 2
    assert total("turns_total") == len(turns)
    assert total("completion_tokens_total") == sum(len(turn["completion_ids"]) for turn in turns)
    assert total("tool_calls_total") == len(calls)
    assert total("tool_errors_total") == sum(call["error"] is not None for call in calls)
    assert total("reward_sum") == total("reward_count") == 10
    assert total("model_seconds_bucket_total", le="+Inf") == len(turns)
    quick = sum(turn["model_seconds"] - turn["queue_seconds"] <= 0.1 for turn in turns)
    assert total("model_seconds_bucket_total", le="0.1") == quick
    assert total("episode_seconds_bucket_total", le="+Inf") == len(told)
    assert total("latency_seconds_sum_total", cause="model") == pytest.approx(model_seconds)


def _assert_lines(logs: Path, told: list[Row]) -> None:
    """The runner says which attempts failed; what a tool logs itself has the ids of its call."""
    run_id = told[0]["run_id"]
    texts = [path.read_text() for path in logs.rglob("worker-*.err")]
    read = [json.loads(line) for text in texts for line in text.splitlines() if f'"run": "{run_id}"' in line]
    by_runner = [line for line in read if line["filename"] == "runner.py"]
    broken = [row["episode_id"] for row in told if row["status"] == "failed"]
    assert Counter((line["episode"], line["attempt"]) for line in by_runner) == Counter(
        (name, attempt) for name in broken for attempt in (1, 2, 3)
    )
    assert {line["message"] for line in by_runner} == {"failed: tool at add: ResourceDown: no disk"}
    by_tool = [line for line in read if line["filename"] == "diary.py"]
    added = [(row["episode_id"], number) for row in told for number in range(4) if row["status"] == "completed"]
    assert Counter((line["episode"], line["turn"]) for line in by_tool) == Counter(added)
    assert {line["message"] for line in by_tool if line["turn"] == 2} == {"the total is 3"}
