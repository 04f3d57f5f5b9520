"""Drift and selection bias: what `rollout stats` says about tokens that training will not see."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sample_rows import row, table, turn

from rollout.dataset import Committer, write_file
from rollout.reading import stats
from rollout.summary import numbers, summary

ANEW = "the endpoint rendered the history anew"
SLIGHT = row(turn([1, 2, 3], [10, 11]), turn([1, 2, 3, 10, 19, 4], [12], 1, segment_break=ANEW))
"""One token of its history is told otherwise."""
WHOLLY = row(
    turn([1, 2], [10]),
    turn([3], [11]),
    turn([7, 7], [12, 13], 1, segment_break=ANEW),
    turn(None, None, 2, segment_break="the endpoint gave no token ids"),
    sample=1,
)
UNBROKEN = row(turn([1, 2], [10]), turn([3], [11]), sample=2)


def commit(run: Path, *rows: dict[str, Any]) -> None:
    committer = Committer(str(run / "episodes"), "run")
    committer.commit([write_file(committer.folder, table(*rows))])


def printed(run: Path) -> str:
    out = io.StringIO()
    stats(run, console=Console(file=out, width=160, highlight=False, color_system=None))
    return out.getvalue()


def test_breaks_by_cause_and_what_each_policy_makes_of_them(tmp_path: Path) -> None:
    commit(tmp_path, SLIGHT, UNBROKEN, WHOLLY)
    found = numbers(tmp_path)["drift"]
    assert found["breaks"] == {ANEW: 2, "the endpoint gave no token ids": 1}
    assert found["episodes"] == 2
    assert found["policies"] == {
        "fork": {"samples": 2, "tokens": 5 + 7 + 5 + 4, "lost": 0},
        "realign": {"samples": 1.5, "tokens": 7 + 5 + 4, "lost": 1},
        "truncate": {"samples": 1, "tokens": 5 + 5, "lost": 3},
        "per_turn": {"samples": 2.5, "tokens": 5 + 7 + 3 + 5 + 4, "lost": 0},
    }
    assert found["examples"] == {ANEW: {"episode_id": "run-0-0", "token": 4, "history": [11], "prompt": [19, 4]}}
    shown = printed(tmp_path)
    assert f"segment breaks in 2 episodes: {ANEW} 2, the endpoint gave no token ids 1" in shown
    assert ["realign", "1.50", "16", "1"] in [line.split() for line in shown.splitlines()]
    assert f"first, {ANEW}: run-0-0, token 4: ids [11] became [19, 4]" in shown


def test_a_run_without_breaks_says_nothing_of_them(tmp_path: Path) -> None:
    commit(tmp_path, UNBROKEN)
    values = numbers(tmp_path)
    assert values["drift"] is None
    assert values["selection"] is None
    assert [line.rstrip() for line in printed(tmp_path).splitlines()] == summary(tmp_path).splitlines()


def test_who_is_missing_is_told_by_length_difficulty_and_resource(tmp_path: Path) -> None:
    """Tasks 0 to 3 have mean rewards 0 to 3; of each, the longest sample is cut off; one task fails wholly."""
    rows = [
        row(
            turn([1], [9] * (10 * sample + 1)),
            index=task,
            sample=sample,
            reward=float(task),
            status="truncated" if sample == 3 else "completed",
            resource="easy" if task > 1 else "hard",
        )
        for task in range(4)
        for sample in range(4)
    ]
    lost = [row(index=4, sample=sample, reward=None, status="failed", resource="hard") for sample in range(2)]
    lost += [row(index=0, sample=9, reward=None, status="dropped", resource="hard")]
    commit(tmp_path, *rows, *lost)
    found = numbers(tmp_path)["selection"]
    shares = [(part["lowest"], part["highest"], part["episodes"], part["truncated"]) for part in found["length"]]
    assert shares == [(0, 1, 7, 0), (11, 11, 4, 0), (21, 21, 4, 0), (31, 31, 4, 4)]
    assert [part["failed"] for part in found["length"]] == [2, 0, 0, 0]
    by_reward = [(part["lowest"], part["dropped"], part["failed"]) for part in found["difficulty"]]
    assert by_reward == [(0, 1, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (None, 0, 2)]
    assert found["resource"] == [
        {"resource": "easy", "episodes": 8, "dropped": 0, "failed": 0, "truncated": 2},
        {"resource": "hard", "episodes": 11, "dropped": 1, "failed": 2, "truncated": 2},
    ]
    shown = printed(tmp_path)
    lines = [line.split() for line in shown.splitlines()]
    assert ["sampled", "tokens", "31", "to", "31", "4", "0.0%", "0.0%", "100.0%"] in lines
    assert ["no", "reward", "2", "0.0%", "100.0%", "0.0%"] in lines
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("rows", [[], [row(status="failed", reward=None)]])
def test_runs_without_a_turn(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    commit(tmp_path, *rows)
    assert numbers(tmp_path)["drift"] is None
    assert (numbers(tmp_path)["selection"] is None) == (not rows)
    assert printed(tmp_path)
