"""Traces: what was used in all, from an episode or a conversation, and what is shown of it."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from rollout.agents.conversations import folded, opened, turn_ended
from rollout.agents.traces import Trace, summaries, summed_up, trace_view
from rollout.trajectory import (
    Completion,
    FinishReason,
    Lease,
    Segment,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    ToolUse,
    Trajectory,
    Turn,
)

ADD = ToolCall("c", "add", '{"a": 2}')
FIRST = Turn(
    agent="planner",
    segment=0,
    prompt_ids=[1, 2, 3, 4],
    completion=Completion(FinishReason.STOP, ids=[5, 6], cached_tokens=0),
    segments=(Segment("content", "I add."), Segment("tool_call", "", ADD)),
    tool_uses=(
        ToolUse(ADD, ToolResult("4", seconds=0.5)),
        ToolUse(replace(ADD, id="d"), ToolResult("error: no", error="no", seconds=0.25)),
    ),
    model_seconds=1.0,
)
SECOND = Turn(
    agent="planner",
    segment=0,
    prompt_ids=[7],
    completion=Completion(FinishReason.STOP, ids=[8], cached_tokens=6),
    segments=(Segment("content", "Four."),),
    model_seconds=2.0,
)
THIRD = replace(SECOND, agent="writer", segment=1, prompt_ids=[1, 2])


def episode(*turns: Turn) -> Trajectory:
    lease = Lease("r", Task("t", ()), 0, 1, True, 0)
    return Trajectory(lease, "calc", "planner", "model", (), turns, StopReason.DONE)


def price(turn: Turn, prompt: int | None) -> float | None:
    return None if prompt is None else prompt * 0.01 + turn.completion.num_sampled


def test_the_totals_of_an_episode_count_each_prompt_whole_and_each_segment_anew() -> None:
    trace = Trace.of_trajectory(episode(FIRST, SECOND, THIRD), price)
    assert [turn.input_tokens for turn in trace.turns] == [4, 7, 2]
    assert (trace.input_tokens, trace.output_tokens, trace.cached_tokens) == (13, 4, 12)
    assert (trace.model_calls, trace.tool_calls) == (3, 2)
    assert trace.cost == pytest.approx(4.13)
    assert trace.seconds == pytest.approx(5.5)
    assert trace.agents == ("planner", "writer")
    assert [tool.error for tool in trace.turns[0].tools] == [None, "no"]
    assert trace.turns[0].output == "I add."


def test_an_endpoints_own_count_of_a_prompt_stands_and_what_nobody_counted_is_not_zero() -> None:
    told = replace(
        SECOND, prompt_ids=None, completion=Completion(FinishReason.STOP, prompt_tokens=50, sampled_tokens=3)
    )
    untold = replace(told, completion=Completion(FinishReason.STOP))
    assert [turn.input_tokens for turn in summaries([FIRST, told], "m")] == [4, 50]
    trace = Trace.of_trajectory(episode(FIRST, untold), price)
    assert (trace.input_tokens, trace.output_tokens, trace.cost) == (None, None, None)
    assert Trace.of_trajectory(episode(FIRST)).cost is None


def test_a_conversation_is_traced_by_the_turns_that_were_summed_up() -> None:
    turn = summed_up(summaries([FIRST, SECOND], "m", price), "What is 2 + 2?", at=9.0)
    assert (turn.input, turn.output, turn.model_calls, turn.at) == ("What is 2 + 2?", "Four.", 2, 9.0)
    assert (turn.input_tokens, turn.output_tokens, len(turn.tools)) == (11, 3, 2)
    conversation = folded("talk", [opened("a", "u", 1.0), turn_ended(turn, 2.0), turn_ended(turn, 3.0)])
    assert conversation is not None
    trace = Trace.of_conversation(conversation)
    assert (trace.name, trace.model_calls, trace.input_tokens, len(trace.turns)) == ("talk", 4, 22, 2)
    with pytest.raises(ValueError, match="no turns"):
        summed_up((), "x")


def test_a_trace_is_shown_with_totals_and_turns_and_sends_nothing_to_the_terminal() -> None:
    escape = replace(THIRD, segments=(Segment("content", "red \x1b[31m" + "x" * 99),))
    trace = Trace.of_trajectory(episode(FIRST, escape), price)
    out = io.StringIO()
    console = Console(file=out, width=140, force_terminal=False)
    for part in trace_view(trace):
        console.print(part)
    shown = out.getvalue()
    assert "r-0-0  planner, writer" in shown
    assert "2 turns · 2 model calls · 2 tool calls · 6 in (6 cached) · 3 out · $3.0600 · 3.50 s" in shown
    assert "add, add (error)" in shown and "\x1b" not in shown and "…" in shown
    (head, totals, _) = trace_view(Trace("empty", ()))
    assert "0 turns" in str(totals) and "empty" in str(head)
    assert "no price" in "".join(str(part) for part in trace_view(Trace.of_trajectory(episode(FIRST))))
