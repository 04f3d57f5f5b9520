"""A job whose runner is killed, and then its driver: what the model has said once it is not asked for again."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray_jobs import Head, Jobs, assert_one_each, rows, until

from rollout.saved import scan
from rollout.scripted_endpoint import Behaviour, ScriptedEndpoint
from rollout.summary import summary
from rollout.template import BUNDLED, load_template

pytestmark = pytest.mark.ray

TASKS, TURNS = 6, 8
ADD = '<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
SUBMIT = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'


class Asked(ScriptedEndpoint):
    """An endpoint that counts how often it was asked for each turn of each task."""

    def __init__(self) -> None:
        lines = [ADD] * (TURNS - 1) + [SUBMIT]
        super().__init__(load_template(BUNDLED), lines, Behaviour(latency_seconds=0.5))
        self.turns = Counter[tuple[int, int]]()

    def _complete(self, asked: Any, raw: bytes, chat: bool) -> tuple[bytes, list[int]]:
        messages = json.loads(raw)["messages"]
        roles = [message["role"] for message in messages]
        task = int(messages[roles.index("user")]["content"].split()[1])
        self.turns[task, roles.count("assistant")] += 1
        return super()._complete(asked, raw, chat)


def standing(run: Path) -> dict[str, set[tuple[int, int]]]:
    """(task, turn) of what each runner has written down."""
    found: dict[str, set[tuple[int, int]]] = {}
    for file in (run / "turns").glob("*.turns"):
        turns = {(int(episode.split("-")[1]), number) for episode, number, *_ in scan(file)}
        found.setdefault(file.stem.rpartition("-")[0], set()).update(turns)
    return found


async def test_what_is_in_flight_outlives_its_runner_and_its_driver(jobs: Jobs, head: Head) -> None:
    async with Asked() as asked:
        await asyncio.to_thread(_killed_twice, jobs, head, asked)


def _killed_twice(jobs: Jobs, head: Head, asked: Asked) -> None:
    tasks = jobs.folder / "tasks.jsonl"
    lines = [{"id": f"t{n}", "prompt": f"Task {n} adds.", "data": {"target": TURNS - 1}} for n in range(TASKS)]
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = ["model.engine=openai", f"model.base_url={asked.url}", "model.name=scripted"]
    conf = jobs.folder / "job.yaml"
    conf.write_text("run: {dir: unset}\nmodel: {engine: openai, base_url: x, name: x}\nresource: {name: counter}\n")
    job = [*model, f"tasks.path={tasks}", f"scheduler.in_flight={TASKS}", "run.limits.max_turns=20"]
    run = jobs.start("run", *job, conf=conf)

    everyone = set(range(TASKS))
    until(lambda: {task for turns in standing(run.folder).values() for task, _ in turns} == everyone, "turns stand")
    head.workers("ray::EpisodeRunner")[0].kill()
    [(first, kept)] = standing(run.folder).items()

    until(lambda: len(standing(run.folder)) == 2, "another runner has taken over")
    run.process.kill()
    run.wait()
    until(lambda: not head.workers("ray::EpisodeRunner"), "its actors have ended with the driver")
    at_last = standing(run.folder)
    assert at_last.pop(first) == kept
    [taken_over] = at_last.values()
    assert rows(run.folder) == []

    jobs.finish("run", *job, "--resume", conf=conf)
    assert_one_each(run.folder, TASKS)
    ended = rows(run.folder)
    assert {(row["status"], row["reward"], row["num_turns"]) for row in ended} == {("completed", 1.0, TURNS)}
    for row in ended:
        restored = sum(task == row["task_index"] for task, _ in taken_over | kept)
        assert row["restored_turns"] == restored >= 1
        assert row["restored_tokens"] == sum(len(turn["completion_ids"]) for turn in row["turns"][:restored])
    assert {asked.turns[turn] for turn in kept} == {1}, "what stood before the first death was never asked for again"
    assert max(asked.turns.values()) <= 3
    assert not (run.folder / "turns").exists()
    assert f"continued   {TASKS} episodes, {sum(row['restored_turns'] for row in ended)} turns" in summary(run.folder)
