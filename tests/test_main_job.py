"""The main job on real parts: the bundled model through vLLM on Ray Serve, its rows read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from rollout.template import BUNDLED, load_template

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]

TASKS, SAMPLES = 12, 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of conf/demo.yaml, cut to a few tasks."""
    folder = tmp_path_factory.mktemp("main") / "run"
    cut = [f"run.dir={folder}", f"resource.options.count={TASKS}", f"run.samples_per_task={SAMPLES}"]
    command = [sys.executable, "-m", "rollout", "run", "demo", *cut]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-2] for line in done.stdout.splitlines()[-3:-1]] == ["show", "stats"]
    return folder


@pytest.fixture(scope="module")
def rows(run: Path) -> list[dict[str, Any]]:
    return DeltaTable(str(run / "episodes")).to_pyarrow_table().to_pylist()


def test_every_sample_is_one_scored_row(rows: list[dict[str, Any]]) -> None:
    assert sorted((row["task_index"], row["sample_index"]) for row in rows) == [
        (task, sample) for task in range(TASKS) for sample in range(SAMPLES)
    ]
    assert {row["status"] for row in rows} <= {"completed", "truncated"}
    assert all(row["reward"] in (0.0, 1.0) for row in rows)
    assert 0 < sum(row["reward"] for row in rows) < len(rows)


def test_model_calls_tools_over_several_turns(rows: list[dict[str, Any]]) -> None:
    calls = [call for row in rows for turn in row["turns"] for call in turn["tool_calls"]]
    assert len(calls) > len(rows)
    assert sum(bool(call["name"]) for call in calls) >= 0.9 * len(calls)
    assert all(call["result"] for call in calls), "every call has its result"


def test_invariant_3_rows_hold_what_was_sampled(rows: list[dict[str, Any]]) -> None:
    template = load_template(BUNDLED)
    for row in rows:
        turns = row["turns"]
        assert sum(len(turn["completion_ids"]) for turn in turns) == row["completion_tokens"]
        for turn in turns:
            assert len(turn["logprobs"]) == len(turn["completion_ids"]) > 0
            assert all(logprob <= 0 for logprob in turn["logprobs"])
            assert turn["versions"][0]["start"] == 0
            assert turn["versions"][-1]["end"] == len(turn["completion_ids"])
        # One segment, and its text is the conversation that a person reads, reasoning and all.
        assert {turn["segment"] for turn in turns} == {0}
        text = template.decode([token for turn in turns for token in (*turn["prompt_ids"], *turn["completion_ids"])])
        assert json.loads(row["task"])["messages"][-1]["content"] in text
        assert all(call["result"] in text for turn in turns[:-1] for call in turn["tool_calls"])


def test_later_turns_hit_the_prefix_cache(rows: list[dict[str, Any]]) -> None:
    assert sum(row["cached_tokens"] for row in rows) > 0.3 * sum(row["prompt_tokens"] for row in rows)
