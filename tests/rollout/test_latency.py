"""Histograms of how long things took."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rollout.latency import BOUNDS, Latencies
from rollout.trajectory import (
    Completion,
    FinishReason,
    Lease,
    Score,
    Seconds,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    ToolUse,
    Trajectory,
    Turn,
)

RUN = ToolUse(ToolCall("c", "add", "{}"), ToolResult("1", seconds=0.3))
SKIPPED = replace(RUN, result=ToolResult("no", skipped=True))
TURN = Turn(
    "agent", 0, (), Completion(FinishReason.STOP, ids=(1,), queue_seconds=2.0), (), (RUN, SKIPPED), model_seconds=3.0
)
EPISODE = Trajectory(
    lease=Lease("run", Task("t", ()), 0, 1, False, 0),
    resource="counter",
    agent="agent",
    model="m",
    messages=(),
    turns=(TURN, TURN),
    stop_reason=StopReason.DONE,
    score=Score(1.0),
    seconds=Seconds(queue=4.0, model=2.0, tool=0.6, verify=0.07, total=8.0),
)


def counts(latencies: Latencies, cause: str) -> dict[str, int]:
    return {bound: count for key, bound, count in latencies.at_most() if key == cause}


def test_a_bucket_takes_what_took_no_longer_than_its_bound() -> None:
    latencies = Latencies()
    for seconds in (0.0, 0.005, 0.0051, 1.0, 1800.0, 1801.0):
        latencies.observe("model", seconds)
    told = counts(latencies, "model")
    assert list(told) == [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    assert (told["0.005"], told["0.01"], told["0.5"], told["1"], told["1800"], told["+Inf"]) == (2, 3, 3, 4, 5, 6)


def test_an_episode_is_counted_by_what_it_waited_for() -> None:
    latencies = Latencies()
    latencies.take(EPISODE)
    assert {cause: counts(latencies, cause)["+Inf"] for cause, _ in latencies.sums()} == {
        "queue": 2,
        "model": 2,
        "tool": 2,
        "verify": 1,
        "episode": 1,
    }
    assert dict(latencies.sums()) == pytest.approx(
        {"queue": 4.0, "model": 2.0, "tool": 0.6, "verify": 0.07, "episode": 8.0}
    )


def test_one_that_was_never_scored_waited_for_no_verifier() -> None:
    latencies = Latencies()
    latencies.take(replace(EPISODE, score=None))
    assert "verify" not in dict(latencies.sums())


def test_parts_add_up_to_the_whole() -> None:
    draw = random.Random(0)
    whole, parts = Latencies(), [Latencies() for _ in range(3)]
    for _ in range(500):
        cause, seconds = draw.choice(("model", "tool")), draw.expovariate(0.1)
        whole.observe(cause, seconds)
        draw.choice(parts).observe(cause, seconds)
    added = Latencies()
    for part in parts:
        added.add(part)
    assert sorted(added.at_most()) == sorted(whole.at_most())
    assert dict(added.sums()) == pytest.approx(dict(whole.sums()))
    parts[0].observe("model", 1.0)
    assert sorted(added.at_most()) == sorted(whole.at_most()), "what was added is not shared"
