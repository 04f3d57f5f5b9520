"""Counts over episodes."""

import functools
import operator
import pickle
from dataclasses import replace

from rollout.tally import Tally
from rollout.trajectory import (
    Completion,
    Failure,
    FailureKind,
    FinishReason,
    Lease,
    Score,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    ToolUse,
    Trajectory,
    Turn,
)

LEASE = Lease("run", Task("t", ()), 0, 1, False, 0)
CALL = ToolCall("c", "add", "{}")


def turn(sampled: int, *errors: str | None) -> Turn:
    completion = Completion(FinishReason.STOP, ids=range(sampled), prompt_tokens=100, cached_tokens=60)
    uses = tuple(ToolUse(CALL, ToolResult("", error=error)) for error in errors)
    return Turn("agent", 0, (), completion, (), uses)


def finished(*turns: Turn, reward: float | None = None, stop: StopReason = StopReason.DONE) -> Trajectory:
    score = Score(reward) if reward is not None else None
    return Trajectory(LEASE, "counter", "agent", "m", (), turns, stop, score)


GOOD = finished(turn(10, None), turn(5, "no such tool", None), reward=1.0)
CUT = finished(turn(7), reward=0.0, stop=StopReason.MAX_TURNS)
BROKEN = replace(
    finished(stop=StopReason.FAILED),
    lease=replace(LEASE, attempt=3),
    failure=Failure(FailureKind.MODEL, "replica", "gone"),
)
DROPPED = replace(GOOD, drop_reason="stale")


def test_of_one_episode() -> None:
    tally = Tally.of(GOOD)
    assert tally.statuses == {"completed": 1}
    assert tally.stops == {"done": 1}
    assert (tally.turns, tally.tool_calls, tally.tool_errors) == (2, 3, 1)
    assert (tally.prompt_tokens, tally.cached_tokens, tally.completion_tokens) == (200, 120, 15)
    assert tally.mean_reward == 1.0
    assert tally.cached_share == 0.6


def test_what_was_not_lost_is_counted_and_what_was() -> None:
    first, nothing = replace(GOOD, restored_turns=1), replace(GOOD, restored_turns=0)
    tally = Tally.of(first) + Tally.of(nothing) + Tally.of(GOOD) + Tally.of(replace(GOOD, restored_turns=2))
    assert (tally.restored, tally.restored_turns, tally.restored_tokens, tally.started_again) == (2, 3, 25, 1)


def test_a_failure_has_no_reward() -> None:
    tally = Tally.of(BROKEN)
    assert tally.failures == {"model": 1}
    assert (tally.failed, tally.retries, tally.scored, tally.mean_reward) == (1, 2, 0, None)


def test_the_sum_does_not_depend_on_the_order() -> None:
    tallies = [Tally.of(trajectory) for trajectory in (GOOD, CUT, BROKEN, DROPPED, CUT)]
    total = sum(tallies, Tally())
    assert total == sum(reversed(tallies), Tally())
    assert total == functools.reduce(operator.add, tallies[2:], tallies[0] + tallies[1])
    assert (total.episodes, total.retries, total.tool_calls, total.tool_errors) == (5, 2, 6, 2)
    assert total.statuses == {"completed": 1, "dropped": 1, "failed": 1, "truncated": 2}
    assert total.stops == {"done": 2, "failed": 1, "max_turns": 2}
    assert total.drops == {"stale": 1}
    assert total.mean_reward == 0.5
    assert total.mean_turns == 6 / 5


def test_nothing_yet() -> None:
    tally = Tally()
    assert (tally.episodes, tally.mean_reward, tally.mean_turns, tally.cached_share) == (0, None, None, None)


def test_it_travels_small_however_much_is_in_it() -> None:
    few = sum((Tally.of(GOOD) for _ in range(3)), Tally())
    many = sum((Tally.of(GOOD) for _ in range(3000)), Tally())
    assert pickle.loads(pickle.dumps(many)) == many
    assert len(pickle.dumps(many)) <= len(pickle.dumps(few)) + 32
    assert len(pickle.dumps(many)) < 400
