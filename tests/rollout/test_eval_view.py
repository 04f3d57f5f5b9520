"""`rollout eval` as it is typed, on real files: one run, two runs, tags, what has no reward, other scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner
from sample_rows import row, table, turn

from rollout.cli import main
from rollout.config import validate
from rollout.dataset import Committer, write_file
from rollout.scores import SCORES, Version, create

FAILURE = {"kind": "model", "where": "m", "message": "gone"}


def write(run: Path, *groups: Sequence[float | None], easy: int = 2) -> Path:
    """A task for each list of rewards, the first `easy` of them with a tag; None is an episode that failed."""
    rows = [
        row(
            turn([1], [2]),
            index=index,
            sample=sample,
            reward=reward,
            task=json.dumps({"id": f"t{index}", "data": {"tags": ["easy" if index < easy else "hard"]}}),
            messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": f"It is {reward}."}],
            **({} if reward is not None else {"status": "failed", "stop_reason": "failed", "failure": FAILURE}),
        )
        for index, rewards in enumerate(groups)
        for sample, reward in enumerate(rewards)
    ]
    committer = Committer(str(run / "episodes"), "run")
    committer.commit([write_file(committer.folder, table(*rows))])
    job = {"run": {"dir": str(run)}, "resource": {"name": "counter"}, "model": {"engine": "scripted", "turns": ["."]}}
    config = validate(job, "test").model_dump(mode="json")
    (run / "run.yaml").write_text(yaml.safe_dump({"run_id": "run", "created": "", "config": config, "digests": {}}))
    return run


def told(*arguments: Any) -> Any:
    result = CliRunner().invoke(main, ["eval", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_a_run_by_tag_and_without_what_has_no_reward(tmp_path: Path) -> None:
    run = write(tmp_path / "a", [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, None, 0.0, 0.0], [None, None])
    (found,) = told(run)["runs"]
    assert (found["tasks"], found["scored"], found["left_out"], found["unscored_tasks"]) == (3, 11, {"failed": 3}, 1)
    assert found["metrics"]["mean"]["mean"] == pytest.approx((0.25 + 1 + 0) / 3)
    assert found["metrics"]["pass@2"]["mean"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["metrics"]["pass@4"]["tasks"] == 2, "one task has three samples"
    assert found["parts"]["tag easy"]["mean"]["mean"] == pytest.approx(0.625)
    assert found["parts"]["tag hard"]["mean"]["mean"] == 0.0
    shown = CliRunner().invoke(main, ["eval", str(run)]).output
    assert "pass@4" in shown and "tag easy" in shown


def test_votes_are_read_with_a_pattern(tmp_path: Path) -> None:
    run = write(tmp_path / "a", [1.0, 1.0, 0.0, 0.5])
    (found,) = told(run, "--answer", r"It is (\S+)\.$")["runs"]
    assert found["metrics"]["majority@4"]["mean"] == 1.0


def test_two_runs_are_paired_by_their_tasks(tmp_path: Path) -> None:
    before = write(tmp_path / "a", *[[0.0, 0.0]] * 6, [1.0, 1.0])
    after = write(tmp_path / "b", *[[1.0, 1.0]] * 6)
    paired = told(before, after)["paired"]
    assert (paired["tasks"], paired["only_first"], paired["only_second"]) == (6, 1, 0)
    assert paired["metrics"]["mean"]["mean"] == 1.0
    assert paired["metrics"]["mean"]["p"] == pytest.approx(2 / 2**6)


def test_other_scores_count_where_they_are_named(tmp_path: Path) -> None:
    run = write(tmp_path / "a", [0.0, 0.0])
    create(str(run), Version("kind", "now"))
    scores = [{"episode_id": f"run-0-{n}", "task_index": 0, "sample_index": n, "reward": 1.0} for n in range(2)]
    committer = Committer(str(run / "scores" / "kind"), "run", SCORES)
    committer.commit([write_file(committer.folder, pa.Table.from_pylist(scores, schema=SCORES))])
    assert told(run)["runs"][0]["metrics"]["mean"]["mean"] == 0.0
    assert told(run, "--score", "kind")["runs"][0]["metrics"]["mean"]["mean"] == 1.0


def test_a_pattern_that_is_none_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["eval", str(write(tmp_path / "a", [1.0])), "--answer", "("])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("rollout: --answer: (: is no regular expression")
