"""The limits as a state machine, in a time of its own."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rollout.agents.rates import DEFAULT, Rate, RateConfig, Rates, limit_of
from rollout.errors import UserError


@dataclass(frozen=True)
class Call:
    """Asked for at `at`, takes `used` of the `tokens` it reserves, and `seconds` once it has started."""

    at: float
    model: str = "m"
    tokens: int = 0
    used: int | None = 0
    seconds: float = 0.0
    patience: float = math.inf


@dataclass
class World:
    """Plays calls against limits, waking exactly when the machine asks for it."""

    rates: Rates
    calls: Sequence[Call]
    starts: dict[int, float] = field(default_factory=dict[int, float])
    order: list[int] = field(default_factory=list[int])
    running: int = 0
    most_running: int = 0
    clock: float = 0.0

    def play(self, until: float = math.inf) -> None:
        events = [(call.at, number, "ask") for number, call in enumerate(self.calls)]
        heapq.heapify(events)
        for _ in range(50 * len(self.calls) + 50):
            asked = events[0][0] if events else math.inf
            now = self.clock = max(self.clock, min(asked, self.rates.next_at(self.clock)))
            if now > until or now == math.inf:
                return
            while events and events[0][0] <= now:
                _, number, what = heapq.heappop(events)
                self._happens(number, what, now)
            for ticket in self.rates.due(now):
                number = int(ticket)
                self.starts[number] = now
                self.order.append(number)
                self.running += 1
                self.most_running = max(self.most_running, self.running)
                heapq.heappush(events, (now + self.calls[number].seconds, number, "end"))
        raise AssertionError("it is woken without end")

    def _happens(self, number: int, what: str, now: float) -> None:
        call = self.calls[number]
        if what == "ask":
            self.rates.ask(str(number), call.model, call.tokens, now, call.patience)
        else:
            self.running -= 1
            self.rates.settle(str(number), call.used, now)


def played(limits: Mapping[str, Rate], calls: Sequence[Call], full: bool = True) -> World:
    world = World(Rates(limits, 0.0, full), calls)
    world.play()
    return world


def starts(limits: Mapping[str, Rate], calls: Sequence[Call], full: bool = True) -> list[float]:
    world = played(limits, calls, full)
    return [world.starts[number] for number in range(len(calls))]


def test_vector_4_rate_10_starts_10_at_once_and_the_11th_after_a_tenth() -> None:
    assert starts({"m": Rate(rps=10)}, [Call(0.0)] * 12) == pytest.approx([0.0] * 10 + [0.1, 0.2])


def test_vector_4_within_the_first_second_start_19_or_20() -> None:
    first = [start for start in starts({"m": Rate(rps=10)}, [Call(0.0)] * 40) if start <= 1.0]
    assert len(first) <= 10 + 10 * 1.0


def test_vector_4_a_rate_below_one_starts_one_in_two_seconds() -> None:
    assert starts({"m": Rate(rps=0.5)}, [Call(0.0)] * 4) == pytest.approx([0.0, 2.0, 4.0, 6.0])


def test_vector_4_a_models_own_limit_beats_the_default_which_is_one_for_all_others() -> None:
    limits = {DEFAULT: Rate(rps=1), "own": Rate(rps=100)}
    calls = [Call(0.0, "a"), Call(0.0, "b"), Call(0.0, "own"), Call(0.0, "own"), Call(0.0, "a")]
    assert starts(limits, calls) == pytest.approx([0.0, 1.0, 0.0, 0.0, 2.0])
    assert [limit_of(limits, model) for model in ("own", "a")] == ["own", DEFAULT]


def test_vector_4_without_a_limit_nobody_waits() -> None:
    assert starts({"other": Rate(rps=1)}, [Call(0.0)] * 100) == [0.0] * 100
    assert starts({"m": Rate()}, [Call(0.0)] * 100) == [0.0] * 100
    assert limit_of(["other"], "m") is None


@pytest.mark.parametrize("bound", ["rps", "burst", "rpm", "tpm", "max_concurrency"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_vector_4_a_bound_that_is_not_above_0_is_a_users_error(bound: str, value: float) -> None:
    bounds: dict[str, Any] = {bound: value}
    with pytest.raises(UserError, match=f"rate_limits: {bound}: expected a number above 0"):
        Rate(**bounds)
    with pytest.raises(ValidationError):
        RateConfig.model_validate(bounds)


def test_the_section_says_what_the_limiter_takes() -> None:
    assert RateConfig(rps=0.5, max_concurrency=3).value() == Rate(rps=0.5, max_concurrency=3)


def test_a_limit_that_is_set_again_is_a_fresh_one() -> None:
    rates = Rates({"m": Rate(rps=1)}, 0.0)
    for number in range(3):
        rates.ask(str(number), "m", 0, 0.0, math.inf)
    assert rates.due(0.0) == ["0"]
    rates.set("m", Rate(rps=2), 0.0)
    assert rates.due(0.0) == ["1", "2"], "its bucket is full"
    rates.set("m", None, 0.0)
    rates.ask("3", "m", 0, 0.0, math.inf)
    assert rates.due(0.0) == ["3"], "it is taken away"


def test_who_waits_follows_the_limits_as_they_change_in_the_order_of_asking() -> None:
    rates = Rates({DEFAULT: Rate(max_concurrency=1)}, 0.0)
    for ticket, model in [("0", "a"), ("1", "b"), ("2", "a"), ("3", "b")]:
        rates.ask(ticket, model, 0, 0.0, math.inf)
    assert rates.due(0.0) == ["0"]
    rates.set("b", Rate(rps=10), 0.0)
    assert rates.due(0.0) == ["1", "3"]
    rates.set(DEFAULT, None, 0.0)
    assert rates.due(0.0) == ["2"]
    for ticket in "0123":
        rates.settle(ticket, 0, 0.0)  # those of a limit that is gone are nobody's


def test_an_empty_start_lets_nobody_burst() -> None:
    assert starts({"m": Rate(rps=2)}, [Call(0.0)] * 3, full=False) == pytest.approx([0.5, 1.0, 1.5])


def test_a_burst_and_requests_a_minute() -> None:
    assert starts({"m": Rate(rps=1, burst=3)}, [Call(0.0)] * 5) == pytest.approx([0.0] * 3 + [1.0, 2.0])
    assert starts({"m": Rate(rpm=30)}, [Call(0.0)] * 3) == pytest.approx([0.0, 2.0, 4.0])


def test_tokens_are_reserved_and_what_was_not_taken_reaches_those_who_wait() -> None:
    """600 a minute are 10 a second: the first call leaves a debt of 90, the second waits until 10 are there again."""
    limits = {"m": Rate(tpm=600)}
    whole = [Call(0.0, tokens=100, used=None, seconds=1.0), Call(0.0, tokens=100)]
    assert starts(limits, whole) == pytest.approx([0.0, 10.0])
    less = [Call(0.0, tokens=100, used=30, seconds=1.0), Call(0.0, tokens=100)]
    assert starts(limits, less) == pytest.approx([0.0, 3.0])
    more = [Call(0.0, tokens=100, used=130, seconds=1.0), Call(0.0, tokens=100)]
    assert starts(limits, more) == pytest.approx([0.0, 13.0])


def test_a_call_that_nobody_settles_is_given_up_in_time() -> None:
    world = World(Rates({"m": Rate(max_concurrency=1)}, 0.0), [Call(0.0, seconds=100.0, patience=5.0), Call(1.0)])
    world.play(until=50.0)
    assert world.starts[1] == 5.0


def test_who_left_the_queue_or_is_late_holds_nobody_up() -> None:
    rates = Rates({"m": Rate(max_concurrency=1)}, 0.0)
    for ticket, seconds in [("0", 100.0), ("1", 100.0), ("2", 3.0), ("3", 100.0)]:
        rates.ask(ticket, "m", 0, 0.0, seconds)
    assert rates.due(0.0) == ["0"]
    rates.settle("1", 0, 1.0)
    rates.settle("0", 0, 4.0)
    assert rates.due(4.0) == ["3"]


def test_waiting_for_a_call_to_end_needs_no_waking() -> None:
    rates = Rates({"m": Rate(max_concurrency=1)}, 0.0)
    for ticket in "01":
        rates.ask(ticket, "m", 0, 0.0, math.inf)
    assert rates.due(0.0) == ["0"]
    assert rates.next_at(0.0) == math.inf


GAPS = st.floats(0, 3) | st.just(0.0)
ARRIVALS = st.lists(
    st.tuples(GAPS, st.sampled_from("ab"), st.integers(0, 400), st.integers(0, 500), st.floats(0, 5)),
    min_size=1,
    max_size=40,
)
RATES = st.builds(
    Rate,
    rps=st.none() | st.floats(0.05, 50),
    burst=st.none() | st.floats(0.1, 8),
    rpm=st.none() | st.floats(1, 3000),
    tpm=st.none() | st.floats(60, 60_000),
    max_concurrency=st.none() | st.integers(1, 4),
)


def arriving(arrivals: Sequence[tuple[float, str, int, int, float]]) -> list[Call]:
    now, calls = 0.0, list[Call]()
    for gap, model, tokens, used, seconds in arrivals:
        now += gap
        calls.append(Call(now, model, tokens, used, seconds))
    return calls


def bounds(rate: Rate) -> list[tuple[float, float]]:
    """Rate a second and burst of each bound on requests."""
    each = [rate.rps, None if rate.rpm is None else rate.rpm / 60]
    return [(one, max(1.0, one if rate.burst is None else rate.burst)) for one in each if one is not None]


@given(ARRIVALS, RATES, RATES)
def test_no_window_has_more_requests_than_burst_and_rate_allow_and_none_overtakes(
    arrivals: list[tuple[float, str, int, int, float]], own: Rate, shared: Rate
) -> None:
    calls = arriving(arrivals)
    limits = {"a": own, DEFAULT: shared}
    world = played(limits, calls)
    assert sorted(world.order) == list(range(len(calls))), "everybody starts"
    started = defaultdict[str, list[float]](list)
    for number in world.order:
        started[limit_of(limits, calls[number].model) or ""].append(world.starts[number])
    for name, rate in limits.items():
        mine = [number for number in world.order if limit_of(limits, calls[number].model) == name]
        assert mine == sorted(mine), "first come, first served"
        times = started[name]
        for each, burst in bounds(rate):
            for first, begin in enumerate(times):
                for last in range(first, len(times)):
                    assert last - first + 1 <= burst + each * (times[last] - begin) + 0.001


@given(ARRIVALS, st.integers(1, 4), st.none() | st.floats(0.5, 50))
def test_never_more_run_at_once_than_may(
    arrivals: list[tuple[float, str, int, int, float]], most: int, rps: float | None
) -> None:
    world = played({DEFAULT: Rate(rps=rps, max_concurrency=most)}, arriving(arrivals))
    assert len(world.order) == len(arrivals)
    assert world.most_running <= most


@given(ARRIVALS, st.floats(60, 60_000))
def test_tokens_taken_since_the_beginning_stay_within_the_rate_and_one_call(
    arrivals: list[tuple[float, str, int, int, float]], tpm: float
) -> None:
    """When a call starts, what was taken before it, by calls that have ended, fits into the time that has passed."""
    calls = arriving(arrivals)
    world = played({DEFAULT: Rate(tpm=tpm)}, calls)
    assert len(world.order) == len(calls)
    largest = max(max(call.tokens, call.used or 0) for call in calls)
    burst = max(1.0, tpm / 60)
    for place, number in enumerate(world.order):
        now = world.starts[number]
        before = [calls[other] for other in world.order[:place]]
        ended = [call.used or 0 for call, other in zip(before, world.order, strict=False) if ends(world, other) < now]
        # A call may turn out to have taken more than it reserved, and only then; others start meanwhile.
        excess = sum(max(0, (call.used or 0) - call.tokens) for call in before)
        assert sum(ended) <= burst + largest + excess + tpm / 60 * now + 0.01


def ends(world: World, number: int) -> float:
    return world.starts[number] + world.calls[number].seconds
