"""`rollout export` as it is typed: real files of a run, every format, other scores, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from sample_rows import row, table, turn

from rollout.cli import main
from rollout.config import validate
from rollout.dataset import Committer, write_file
from rollout.export.formats import CHATS, NAMES, find
from rollout.scores import SCORES, Version, create

SAYS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three whole groups of two, one of them without a difference, and a group whose second episode failed."""
    folder = tmp_path / "run"
    rewards: list[list[float | None]] = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, None]]
    rows = [
        row(
            turn([1, index, sample], [10 + index, 11]),
            index=index,
            sample=sample,
            messages=SAYS,
            reward=reward,
            model="bundled",
            agent="agent",
            started_at=0,
            prompt_tokens=3,
            cached_tokens=0,
            **({} if reward is not None else {"status": "failed", "stop_reason": "failed", "failure": FAILURE}),
        )
        for index, group in enumerate(rewards)
        for sample, reward in enumerate(group)
    ]
    committer = Committer(str(folder / "episodes"), "run")
    committer.commit([write_file(committer.folder, table(*rows))])
    raw: dict[str, Any] = {
        "run": {"dir": str(folder), "samples_per_task": 2},
        "resource": {"name": "counter"},
        "model": {"engine": "scripted", "turns": ["."]},
    }
    config = validate(raw, "test").model_dump(mode="json")
    (folder / "run.yaml").write_text(
        yaml.safe_dump({"run_id": "run", "created": "now", "config": config, "digests": {}})
    )
    return folder


FAILURE = {"kind": "policy", "where": "turn 0", "message": "gone", "traceback_digest": None, "retries": 1}


def export(run: Path, *options: str, code: int = 0) -> dict[str, str]:
    """What it says, by the first word of each line; the one line it refuses with, under `error`."""
    told = CliRunner().invoke(main, ["export", str(run), *options])
    assert told.exit_code == code, told.output
    lines = told.output.splitlines()
    if code:
        assert len(lines) == 1, lines
        return {"error": lines[0]}
    return {line[:12].strip(): line[12:] for line in lines}


WHOLE_GROUPS = {"trl", "slime", "openrlhf"}
"""Trainers that expect equal groups: the one with a failed episode is left out as a whole."""
UNSCORED = {"atif"}
"""Chats that also tell of episodes without a reward."""


@pytest.mark.parametrize("name", NAMES)
def test_every_format_writes_its_file_and_says_what_it_left_out(run: Path, name: str) -> None:
    form = find(name)
    told = export(run, "--to", name)
    file = run / "export" / f"{name}{form.suffix}"
    assert told["wrote"] == str(file)
    rows = pq.read_table(file).to_pylist() if form.suffix == ".parquet" else file.read_text().splitlines()
    if name in CHATS:
        assert len(rows) == (8 if name in UNSCORED else 7)
        assert told["episodes"] == str(len(rows))
        assert told["left out"] == ("nothing" if name in UNSCORED else "unscored 1")
    else:
        whole = name in WHOLE_GROUPS
        count, groups = (6, 3) if whole else (7, 4)
        assert len(rows) == count
        assert told["samples"] == f"{count} of {count} episodes in {groups} groups"
        assert "failed 1 episodes" in told["left out"]
        assert ("incomplete_group 1 episodes" in told["left out"]) is whole


def test_choices_are_told_and_taken(run: Path) -> None:
    told = export(run, "--to", "verl", "--zero-variance", "drop", "--incomplete", "drop", "--out", str(run / "x.jsonl"))
    assert "zero_variance drop, incomplete drop" in told["chosen"]
    rows = [json.loads(line) for line in (run / "x.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert "zero_variance 2 episodes" in told["left out"]


def test_chats_above_a_reward(run: Path) -> None:
    told = export(run, "--to", "sft", "--min-reward", "0.5")
    assert told["episodes"] == "5"
    assert "below --min-reward 2" in told["left out"]


def rescored(run: Path, name: str, rewards: dict[str, float]) -> None:
    """A version of the scores with these rewards, and none for the other episodes."""
    version = Version(name, "now")
    create(str(run), version)
    rows = [
        {"episode_id": key, "task_index": int(key.split("-")[1]), "sample_index": int(key[-1]), "reward": reward}
        for key, reward in rewards.items()
    ]
    committer = Committer(str(run / version.table), "run", SCORES)
    committer.commit([write_file(committer.folder, pa.Table.from_pylist(rows, schema=SCORES))])


@pytest.mark.parametrize("form", ["skyrl", "nemo-gym"])
def test_other_scores_stand_in_for_the_recorded_ones(run: Path, form: str) -> None:
    rescored(run, "strict", {"run-0-0": 0.25, "run-0-1": 0.5})
    told = export(run, "--to", form, "--score", "strict", "--out", str(run / "x.jsonl"))
    rows = [json.loads(line) for line in (run / "x.jsonl").read_text().splitlines()]
    assert len(rows) == 2, told
    assert "0.25" in json.dumps(rows[0])
    assert "0.5" in json.dumps(rows[1])
    assert export(run, "--to", form, "--score", "latest", "--out", str(run / "y.jsonl"))
    assert (run / "y.jsonl").read_text() == (run / "x.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--to", "ver1"], "did you mean 'verl'"),
        (["--to", "verl", "--out", "x.csv"], "expected a name that ends in .parquet or .jsonl"),
        (["--to", "atif", "--out", "x.parquet"], "expected a name that ends in .jsonl"),
        (["--to", "verl", "--min-reward", "1"], "only for formats of chats"),
        (["--to", "verl", "--score", "strct"], "no scores 'strct'"),
        (["--to", "verl", "--advantages", "gro"], "did you mean 'grpo'"),
        (["--to", "verl", "--incomplete", "error"], "run-3"),
    ],
)
def test_what_does_not_fit_is_one_line_and_the_old_file_stays(run: Path, options: list[str], line: str) -> None:
    export(run, "--to", "verl")
    before = (run / "export" / "verl.parquet").read_bytes()
    assert line in export(run, *options, code=2)["error"]
    assert (run / "export" / "verl.parquet").read_bytes() == before
    assert [file.name for file in (run / "export").iterdir()] == ["verl.parquet"]
