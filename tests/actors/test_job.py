"""Whole jobs on a real Ray cluster: what rows they leave, whatever their environment does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars
import psutil
import pytest
import yaml
from ray_jobs import DIARY, Jobs, assert_closed, assert_one_each, diary, rows, scripted, sessions

from rollout.dataset import open_table
from rollout.scripted_endpoint import Behaviour, ScriptedEndpoint
from rollout.template import load_template, resolve_model

pytestmark = pytest.mark.ray

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'


def test_every_sample_becomes_one_row_and_others_read_meanwhile(jobs: Jobs) -> None:
    run = jobs.start("run", *scripted(20), "run.samples_per_task=2")
    run.until_rows(10)
    table = open_table(run.folder)
    dataset = table.to_pyarrow_dataset()
    count = dataset.count_rows()
    assert 10 <= count < 40
    assert run.process.poll() is None
    sums = duckdb.sql("select count(*), sum(reward), sum(len(turns)) from dataset")
    assert sums is not None
    assert sums.fetchall() == [(count, count, count * 5)]
    frame = polars.scan_delta(table).select("episode_id", "reward", polars.col("turns").list.len()).collect()
    assert (frame["episode_id"].n_unique(), frame["reward"].sum(), frame["turns"].sum()) == (count, count, count * 5)
    assert run.wait() == 0, run.said()
    assert_one_each(run.folder, 20, 2)
    groups = {row["group_id"]: row["task_id"] for row in rows(run.folder)}
    assert len(groups) == len(set(groups.values())) == 20


def test_invariant_11_stragglers_of_a_group_that_has_enough_are_dropped_and_stay_as_rows(jobs: Jobs) -> None:
    path, lines = diary(jobs)
    quick = ["resource.options.quick=2", "dataset.commit_rows=1", "scheduler.in_flight=3"]
    sizes = ["run.samples_per_task=2", "run.over_sample=4"]
    run = jobs.finish("run", *lines, *scripted(2), *quick, *sizes)
    assert_one_each(run.folder, 2, 6)
    table = rows(run.folder)
    kept = [row for row in table if row["status"] == "completed"]
    dropped = [row for row in table if row["status"] == "dropped"]
    assert (len(kept), len(dropped)) == (4, 8), "what hangs would take a minute to fail"
    assert all(row["reward"] == 1.0 for row in kept)
    assert {(row["drop_reason"], row["stop_reason"], row["reward"]) for row in dropped} == {
        ("straggler", "dropped", None)
    }
    assert any(row["num_turns"] for row in dropped), "broken off, with the turns it had"
    opened = sessions(path)[0].total()
    assert opened < 12, "some were never begun"
    assert_closed(path, at_once=3)


def test_one_seed_gives_the_same_rows_however_they_are_scheduled(jobs: Jobs) -> None:
    job: dict[str, Any] = {
        "run": {"dir": "?", "samples_per_task": 2, "seed": 7},
        "resource": {"name": "calculator", "options": {"count": 12}},
        "model": {
            "engine": "scripted",
            "turns": [CALL % ("calculate", '{"expression": "2+3"}'), "The answer is 5."],
            "latency_seconds": 0.05,
            "latency_spread": 1.0,
        },
    }
    conf = jobs.folder / "job.yaml"
    conf.write_text(yaml.safe_dump(job))
    first = jobs.finish("first", "scheduler.in_flight=3", "dataset.commit_rows=2", conf=conf)
    other = jobs.finish("other", "scheduler.runners=2", "resource.hosts=2", conf=conf)
    told = [_timeless(row) for row in rows(first.folder)]
    assert len({row["task"] for row in told}) == 12
    assert told == [_timeless(row) for row in rows(other.folder)]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what may differ between two runs: times, and the names of run and processes."""
    run_id = row["run_id"]
    for name in ("run_id", "started_at", "finished_at", "seconds"):
        del row[name]
    for turn in row["turns"]:
        del turn["replica"], turn["queue_seconds"], turn["model_seconds"]
        for call in turn["tool_calls"]:
            del call["seconds"]
    return {name: value.removeprefix(run_id) if isinstance(value, str) else value for name, value in row.items()}


def test_a_tool_that_never_works_ends_as_a_failed_row_without_a_reward(jobs: Jobs) -> None:
    path, lines = diary(jobs)
    run = jobs.finish("run", *lines, *scripted(6), "resource.options.down=[2]", "scheduler.max_attempts=4")
    assert_one_each(run.folder, 6)
    broken = [row for row in rows(run.folder) if row["status"] != "completed"]
    assert [(row["task_index"], row["status"], row["reward"], row["attempt"]) for row in broken] == [
        (2, "failed", None, 4)
    ]
    assert broken[0]["failure"] == {"kind": "tool", "where": "add", "message": "ResourceDown: no disk"}
    assert [row["reward"] for row in rows(run.folder) if row["status"] == "completed"] == [1.0] * 5
    assert [row["attempt"] for row in rows(run.folder) if row["status"] == "completed"] == [1] * 5
    assert_closed(path)


def test_a_host_that_always_dies_costs_rewards_not_rows(jobs: Jobs) -> None:
    _, lines = diary(jobs)
    deadly = ["resource.options.deadly=[0,1,2]", "run.limits.seed_seconds=2", "scheduler.max_attempts=2"]
    run = jobs.finish("run", *lines, *scripted(3), *deadly)
    assert_one_each(run.folder, 3)
    for row in rows(run.folder):
        assert (row["status"], row["reward"], row["attempt"]) == ("failed", None, 2)
        assert (row["failure"]["kind"], row["failure"]["where"]) == ("seed", DIARY)
        assert row["failure"]["message"]


async def test_a_key_is_in_no_row_log_or_argument(jobs: Jobs) -> None:
    """A server that stops taking a key repeats it in its refusals: they become rows, the key does not."""
    key = jobs.env["ENDPOINT_KEY"]
    behaviour = Behaviour(latency_seconds=0.1, api_key=key)
    template = load_template(resolve_model("bundled"))
    async with ScriptedEndpoint(template, [CALL % ("submit", "{}")], behaviour) as endpoint:
        model = {"engine": "openai", "base_url": endpoint.url, "name": "any", "api_key_env": "ENDPOINT_KEY"}
        resource = {"name": "counter", "options": {"count": 20, "target": 0}}
        conf = jobs.folder / "job.yaml"
        conf.write_text(yaml.safe_dump({"run": {"dir": "?"}, "resource": resource, "model": model}))
        run = jobs.start("run", "scheduler.in_flight=2", "dataset.commit_rows=1", conf=conf)
        await asyncio.to_thread(run.until_rows, 1)
        endpoint.behaviour = replace(behaviour, api_key="another")
        arguments = list(_arguments())
        assert await asyncio.to_thread(run.wait) == 0, run.said()
    assert {row["status"] for row in rows(run.folder)} == {"completed", "failed"}
    assert any("ray::EpisodeRunner" in line for line in arguments)
    told = [run.said(), json.dumps(rows(run.folder), default=str), *arguments, *_texts(run.folder, jobs.logs)]
    assert not [text[:200] for text in told if key in text]


def _arguments() -> Iterator[str]:
    for process in psutil.process_iter(["cmdline"]):
        yield " ".join(process.info["cmdline"] or ())


def _texts(*folders: Path) -> Iterator[str]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield path.read_bytes().decode(errors="replace")
