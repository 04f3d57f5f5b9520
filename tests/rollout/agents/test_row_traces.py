"""`rollout show --trace`: totals are the row's own, agents and children stand in a tree."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from fakes import lease
from rich.console import Console

from rollout.agents.row_traces import row_trace
from rollout.cli import main
from rollout.dataset import Committer, write_file
from rollout.errors import UserError
from rollout.reading import show
from rollout.rows import SCHEMA, to_row
from rollout.trajectory import (
    Completion,
    FinishReason,
    Score,
    Seconds,
    Segment,
    StopReason,
    ToolCall,
    ToolResult,
    ToolUse,
    Trajectory,
    Turn,
)

ADD = ToolCall("c", "add", "{}")
SPENT = Seconds(model=2.0, tool=0.5, total=2.5)
FIRST = Turn(
    agent="planner",
    segment=0,
    prompt_ids=[1, 2, 3, 4],
    completion=Completion(FinishReason.STOP, ids=[5, 6], cached_tokens=0, prompt_tokens=4),
    segments=(Segment("content", "I add."), Segment("tool_call", "", ADD)),
    tool_uses=(ToolUse(ADD, ToolResult("4", seconds=0.5)), ToolUse(replace(ADD, id="d"), ToolResult("", error="no"))),
    model_seconds=1.0,
)
SECOND = replace(
    FIRST,
    prompt_ids=[7],
    completion=Completion(FinishReason.STOP, ids=[8], cached_tokens=6, prompt_tokens=7),
    segments=(Segment("content", "Four \x1b[31m."),),
    tool_uses=(),
)
THIRD = replace(SECOND, agent="writer", segment=1)


def row(sample: int, *turns: Turn, parent: int | None = None, cost: float | None = 0.5) -> dict[str, Any]:
    played = Trajectory(
        lease(sample_index=sample), "counter", "planner", "m", (), turns, StopReason.DONE, Score(1.0), cost=cost
    )
    told = to_row(replace(played, seconds=SPENT, started_at=float(sample)))
    return {**told, "parent_episode_id": None if parent is None else lease(sample_index=parent).episode_id}


def run_of(folder: Path, *rows: dict[str, Any]) -> Path:
    committer = Committer(str(folder / "episodes"), "run")
    committer.commit([write_file(committer.folder, pa.Table.from_pylist(list(rows), schema=SCHEMA))])
    return folder


def shown(run: Path, episode: str, trace: bool = True) -> str:
    out = io.StringIO()
    show(str(run), episode, Console(file=out, width=140, highlight=False), trace=trace)
    return out.getvalue()


def test_an_episode_is_told_with_its_agents_its_children_and_what_all_of_them_took(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        row(0, FIRST, SECOND, THIRD),
        row(1, FIRST, parent=0),
        row(2, SECOND, parent=1, cost=0.25),
        row(3, SECOND),
    )
    lines = shown(run, "0-0").splitlines()
    assert lines[0].startswith("run-0-0  completed  done · reward 1")
    assert "3 model calls · 2 tool calls · 18 in (12 cached) · 4 out · $0.5000 · 2.50 s" in lines[1]
    assert "planner  turns 0-1 · add x2" in lines[2] and "writer  turn 2" in lines[3]
    assert [line.index("run-0-") for line in lines if "run-0-" in line] == [0, 4, 8], "a child below its parent"
    assert "in all 3 episodes · 5 model calls · 4 tool calls · 29 in (18 cached) · 7 out · $1.2500" in lines
    told = "\n".join(lines)
    assert "run-0-3" not in told and "\x1b" not in told and "add, add (error)" in told
    assert [line.split()[-4] for line in lines[-3:]] == ["4", "7", "1"], "prompts are counted whole, a segment anew"


def test_a_total_is_not_known_where_a_row_does_not_tell_it(tmp_path: Path) -> None:
    run = run_of(tmp_path, row(0, FIRST, cost=None), row(1, SECOND, parent=0))
    told = shown(run, "0-0")
    assert "· no price · 2.50 s" in told and "in all 2 episodes · 2 model calls" in told
    assert "1 out · $0.5000" in told and told.count("no price") == 2
    assert row_trace([row(0), row(1, parent=0)], "run-0-0").total("cost") == 1.0


def test_the_command_tells_it_and_wants_an_episode(tmp_path: Path) -> None:
    run = run_of(tmp_path, row(0, FIRST))
    done = CliRunner().invoke(main, ["show", str(run), "0", "--trace"])
    assert done.exit_code == 0 and "planner  turn 0 · add x2" in done.output
    none = CliRunner().invoke(main, ["show", str(run), "--trace"])
    assert (none.exit_code, none.output) == (
        2,
        "rollout: --trace: expected an episode as well, by its number, its id or TASK-SAMPLE\n",
    )
    with pytest.raises(UserError, match="no such episode"):
        shown(run, "9-9")
