"""Trajectories as rows: what goes in comes out, and one that no row can hold costs only itself."""

import json
from array import array
from dataclasses import replace
from typing import Any

import pytest
from fakes import GOLD, lease, says, setting

from rollout.episode import run_episode
from rollout.rows import SCHEMA, to_row, to_table
from rollout.trajectory import (
    Completion,
    Failure,
    FailureKind,
    FinishReason,
    Message,
    Sampling,
    Score,
    Seconds,
    Segment,
    Status,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    ToolUse,
    Trajectory,
    Turn,
    VersionSpan,
)

CALL = ToolCall("call_0_0", "add", '{"amount": 1}')
MESSAGES: tuple[Message, ...] = (
    {"role": "user", "content": "Go."},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "why",
        "tool_calls": [{"id": "call_0_0", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "1", "tool_call_id": "call_0_0", "name": "add"},
)


def turn(**changes: Any) -> Turn:
    completion = Completion(
        FinishReason.STOP,
        array("i", [5, 6]),
        array("f", [-0.5, -1.5]),
        (VersionSpan("v9", 0, 1), VersionSpan("v10", 1, 2)),
        cached_tokens=3,
        prompt_tokens=4,
        replica="r",
    )
    use = ToolUse(CALL, ToolResult("1", error="odd", reward=0.5, seconds=0.25))
    chosen = Turn(
        "agent", 0, array("i", [1, 2]), completion, (Segment("tool_call", "x", CALL),), (use,), "anew", Sampling(0.5)
    )
    return replace(chosen, **changes)


def trajectory(**changes: Any) -> Trajectory:
    chosen = Trajectory(
        lease=lease(Task("t", MESSAGES[:1], {"deep": [1, {"a": None}]}, 4), sample_index=2, attempt=3),
        resource="counter",
        agent="agent",
        model="m",
        messages=MESSAGES,
        turns=(turn(), turn(segment_break=None)),
        stop_reason=StopReason.ENVIRONMENT,
        score=Score(0.5, {"correct": 0.5}, {"length": 3.0}),
        seconds=Seconds(1.0, 2.0, 3.0, 4.0, 11.0),
        started_at=1_700_000_000.25,
        finished_at=1_700_000_011.25,
    )
    return replace(chosen, **changes)


def read(*trajectories: Trajectory) -> list[dict[str, Any]]:
    table = to_table(trajectories)
    table.validate(full=True)
    assert table.schema == SCHEMA
    return table.to_pylist(maps_as_pydicts="strict")


def test_what_goes_in_comes_out() -> None:
    (row,) = read(trajectory())
    names = ("run_id", "episode_id", "task_id", "task_index", "group_id", "sample_index", "attempt")
    assert [row[name] for name in names] == ["run", "run-4-2", "t", 4, "run-4", 2, 3]
    assert (row["status"], row["stop_reason"], row["failure"], row["reward"]) == ("completed", "environment", None, 0.5)
    assert (row["reward_components"], row["metrics"]) == ({"correct": 0.5}, {"length": 3.0})
    assert (row["num_turns"], row["prompt_tokens"], row["completion_tokens"], row["cached_tokens"]) == (2, 8, 4, 6)
    assert (row["tool_calls"], row["tool_errors"]) == (2, 2)
    assert (row["version_min"], row["version_max"]) == ("v9", "v10"), "by number, not by letter"
    assert row["seconds"] == {"queue": 1.0, "model": 2.0, "tool": 3.0, "verify": 4.0, "idle": 1.0}
    assert row["finished_at"].timestamp() == 1_700_000_011.25
    assert json.loads(row["task"])["data"] == {"deep": [1, {"a": None}]}
    assert row["messages"][1]["tool_calls"] == [{"id": "call_0_0", "name": "add", "arguments": "{}"}]
    assert row["messages"][2]["tool_call_id"] == "call_0_0"


def test_a_turn_keeps_its_tokens_calls_and_reward() -> None:
    first = read(trajectory())[0]["turns"][0]
    assert (first["prompt_ids"], first["completion_ids"], first["logprobs"]) == ([1, 2], [5, 6], [-0.5, -1.5])
    assert first["versions"] == [{"version": "v9", "start": 0, "end": 1}, {"version": "v10", "start": 1, "end": 2}]
    assert first["segments"] == [{"kind": "tool_call", "text": "x", "call_id": "call_0_0"}]
    assert first["tool_calls"][0] == {
        "id": "call_0_0",
        "name": "add",
        "arguments": '{"amount": 1}',
        "result": "1",
        "error": "odd",
        "seconds": 0.25,
        "skipped": False,
    }
    assert (first["reward"], first["segment_break"], first["finish_reason"]) == (0.5, "anew", "stop")
    assert first["sampling"] == {"temperature": 0.5, "top_p": 1.0, "top_k": 0, "seed": None}


def test_a_turn_without_ids_has_none() -> None:
    silent = turn(prompt_ids=None, completion=Completion(FinishReason.STOP), tool_uses=())
    (row,) = read(trajectory(turns=(silent,)))
    assert [row["turns"][0][name] for name in ("prompt_ids", "completion_ids", "logprobs", "reward")] == [None] * 4
    assert (row["version_min"], row["completion_tokens"]) == (None, 0)


async def test_invariant_3_the_row_of_an_episode_holds_exactly_what_was_sampled() -> None:
    played = await run_episode(lease(), setting(says(*GOLD)))
    (row,) = read(played)
    sampled = [list(turn.completion.ids or ()) for turn in played.turns]
    assert [turn["completion_ids"] for turn in row["turns"]] == sampled
    assert row["completion_tokens"] == sum(map(len, sampled))
    assert row["prompt_tokens"] == sum(turn.completion.prompt_tokens or 0 for turn in played.turns)


def test_invariant_2_a_failed_row_has_no_reward_and_says_what_failed() -> None:
    failure = Failure(FailureKind.TOOL, "add", "host died")
    (row,) = read(trajectory(failure=failure, stop_reason=StopReason.FAILED, score=Score(0.0)))
    assert (row["status"], row["reward"]) == ("failed", None)
    assert row["failure"] == {"kind": "tool", "where": "add", "message": "host died"}
    assert row["attempt"] == 3


def test_invariant_11_a_dropped_episode_stays_a_row_with_its_reason() -> None:
    (row,) = read(trajectory(drop_reason="stale"))
    assert (row["status"], row["drop_reason"], row["reward"], len(row["turns"])) == ("dropped", "stale", 0.5, 2)


@pytest.mark.parametrize("stop", list(StopReason))
def test_truncation_is_not_termination(stop: StopReason) -> None:
    status = trajectory(stop_reason=stop).status
    limits = ("max_turns", "max_tokens", "context", "timeout", "cost", "approval_timeout")
    assert (status is Status.TRUNCATED) == (stop.value in limits)


def test_no_rows_make_an_empty_table() -> None:
    assert to_table([]).schema == SCHEMA
    assert len(to_table([])) == 0


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    use = ToolUse(ToolCall("a", "b\ud800", "c"), ToolResult("d\udfff"))
    odd = trajectory(messages=({"role": "user", "content": "x\ud800"},), turns=(turn(tool_uses=(use,)),))
    first, second = read(trajectory(), odd)
    assert first == read(trajectory())[0]
    assert second["messages"][0]["content"] == "x?"
    assert (second["turns"][0]["tool_calls"][0]["name"], second["turns"][0]["tool_calls"][0]["result"]) == ("b?", "d?")
    assert (second["status"], second["reward"]) == ("completed", 0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": ({"role": "user", "content": 5},)},
        {"messages": ({"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]},)},
        {"turns": (turn(completion=Completion(FinishReason.STOP, [2**40])),)},
        {"turns": (turn(tool_uses=(ToolUse(CALL, ToolResult("", reward=object())),)),)},  # pyright: ignore[reportArgumentType]
        {"score": Score(0.5, {"a": "b"})},  # pyright: ignore[reportArgumentType]
        {"lease": lease(Task("t", (), {(1, 2): 3}, 4), sample_index=2)},  # pyright: ignore[reportArgumentType]
    ],
)
def test_invariant_10_a_trajectory_no_row_can_hold_costs_only_itself(changes: dict[str, Any]) -> None:
    before, odd, after = read(trajectory(), trajectory(**changes), trajectory(model="other"))
    assert (before, after["model"], after["status"]) == (read(trajectory())[0], "other", "completed")
    assert (odd["status"], odd["reward"], odd["failure"]["kind"]) == ("failed", None, "internal")
    assert (odd["episode_id"], odd["failure"]["where"]) == ("run-4-2", "to_row")


def test_versions_without_numbers_are_ordered_by_name() -> None:
    spans = (VersionSpan("b", 0, 1), VersionSpan("a", 1, 2), VersionSpan("²", 1, 2))
    row = to_row(trajectory(turns=(turn(completion=Completion(FinishReason.STOP, versions=spans)),)))
    assert (row["version_min"], row["version_max"]) == ("a", "²")
