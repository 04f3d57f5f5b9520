"""Advantages against vectors computed by hand, and what holds for any rewards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_rows import row, table, turn

from rollout.advantages import ESTIMATORS, advantages, with_advantages
from rollout.errors import UserError
from rollout.samples import SAMPLES, left_out, to_samples

GROUP = np.array([0, 0, 0, 0, 1, 1])
REWARDS = np.array([1.0, 0.0, 0.0, 1.0, 0.5, 0.0])
"""Means 0.5 and 0.25; squares of the differences add up to 1 and 0.125."""
FIRST, SECOND = math.sqrt(1 / 3), math.sqrt(0.125)
BATCH = 2.5 / 6
SPREAD = math.sqrt((2 * (1 - BATCH) ** 2 + 3 * BATCH**2 + (0.5 - BATCH) ** 2) / 5)
BY_HAND = {
    "grpo": [0.5 / FIRST, -0.5 / FIRST, -0.5 / FIRST, 0.5 / FIRST, 0.25 / SECOND, -0.25 / SECOND],
    "grpo_no_std": [0.5, -0.5, -0.5, 0.5, 0.25, -0.25],
    "rloo": [2 / 3, -2 / 3, -2 / 3, 2 / 3, 0.5, -0.5],
    "reinforce++": [(reward - BATCH) / SPREAD for reward in REWARDS],
    "reinforce++_baseline": [off / math.sqrt(1.125 / 5) for off in (0.5, -0.5, -0.5, 0.5, 0.25, -0.25)],
}

scored = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0, -2.0])), min_size=1, max_size=12
)
estimators = st.sampled_from(ESTIMATORS)


def samples(*rewards: tuple[int, float | None], segments: int = 1) -> Any:
    """An episode each: (task, reward)."""
    turns = [turn([1], [10], number) for number in range(segments)]
    rows = [
        row(*turns, index=task, sample=number, reward=reward, status="completed" if reward is not None else "failed")
        for number, (task, reward) in enumerate(rewards)
    ]
    return to_samples(table(*rows), failed="keep")


def values(made: Any) -> list[float | None]:
    assert made.schema == SAMPLES
    return made["advantage"].to_pylist()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_by_hand(estimator: Any) -> None:
    assert advantages(REWARDS, GROUP, estimator) == pytest.approx(BY_HAND[estimator], rel=1e-5)


@given(scored=scored)
def test_a_group_adds_up_to_nothing(scored: Any) -> None:
    group, rewards = (np.array(column) for column in zip(*scored, strict=True))
    for estimator in ("grpo", "grpo_no_std", "rloo", "reinforce++_baseline"):
        assert np.bincount(group, advantages(rewards, group, estimator)) == pytest.approx(0, abs=1e-9)
    assert advantages(rewards, group, "reinforce++").sum() == pytest.approx(0, abs=1e-9)


@given(scored=scored, estimator=estimators, by=st.sampled_from([-3.0, 0.25, 8.0]))
def test_a_constant_added_to_all_rewards_changes_nothing(scored: Any, estimator: Any, by: float) -> None:
    group, rewards = (np.array(column) for column in zip(*scored, strict=True))
    assert advantages(rewards + by, group, estimator) == pytest.approx(advantages(rewards, group, estimator), abs=1e-6)


@given(scored=scored, estimator=estimators, seed=st.randoms(use_true_random=False))
def test_the_order_of_episodes_changes_nothing(scored: Any, estimator: Any, seed: Any) -> None:
    shuffled = list(enumerate(scored))
    seed.shuffle(shuffled)
    group, rewards = (np.array(column) for column in zip(*scored, strict=True))
    order = [place for place, _ in shuffled]
    there = advantages(rewards[order], group[order], estimator)
    assert there == pytest.approx(advantages(rewards, group, estimator)[order], abs=1e-9)


@given(scored=scored)
def test_rloo_is_the_difference_to_the_others(scored: Any) -> None:
    group, rewards = (np.array(column) for column in zip(*scored, strict=True))
    for place, value in enumerate(advantages(rewards, group, "rloo")):
        others = [rewards[other] for other in np.flatnonzero(group == group[place]) if other != place]
        assert value == pytest.approx(rewards[place] - np.mean(others) if others else 0, abs=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_siblings_share_an_advantage_and_do_not_count_twice(estimator: Any) -> None:
    rewards = [(0, 1.0), (0, 0.0), (0, 0.0), (1, 0.5), (1, 0.0)]
    alone = values(with_advantages(samples(*rewards), estimator))
    broken = with_advantages(samples(*rewards, segments=3), estimator)
    assert values(broken) == [value for value in alone for _ in range(3)]
    assert broken["weight"].to_pylist() == [pytest.approx(1 / 3)] * 15


def test_groups_of_equal_rewards_are_a_choice() -> None:
    made = samples((0, 0.1), (0, 0.1), (0, 0.1), (1, 1.0), (1, 0.0))
    assert values(with_advantages(made))[:3] == [0, 0, 0], "exactly, although 0.1 is no round number"
    dropped = with_advantages(made, "grpo_no_std", zero_variance="drop")
    assert values(dropped) == [0.5, -0.5]
    assert left_out(dropped) == {"zero_variance": {"episodes": 3, "tokens": 3}}
    assert left_out(with_advantages(made)) == {}
    with pytest.raises(UserError, match=r"^group run-0: all its rewards are equal \(1 such groups\)$"):
        with_advantages(made, zero_variance="error")


def test_what_is_dropped_is_no_part_of_the_batch() -> None:
    made = samples((0, 9.0), (0, 9.0), (1, 1.0), (1, 0.0))
    dropped = with_advantages(made, "reinforce++", zero_variance="drop")
    assert values(dropped) == values(with_advantages(samples((1, 1.0), (1, 0.0)), "reinforce++"))


def test_groups_of_one_and_incomplete_groups_are_a_choice() -> None:
    made = samples((0, 1.0), (1, 1.0), (1, 0.0), (2, 1.0), (2, 0.0), (2, None), (3, 1.0), (3, 0.0), (3, 0.5))
    assert values(with_advantages(made, "rloo")) == [0, 1, -1, 1, -1, None, 0.75, -0.75, 0]
    dropped = with_advantages(made, "rloo", single="drop", incomplete="drop", group_size=3)
    assert left_out(dropped) == {"incomplete_group": {"episodes": 5, "tokens": 5}}, "one cause an episode"
    assert values(dropped) == [None, 0.75, -0.75, 0]
    assert left_out(with_advantages(made, single="drop")) == {"single_group": {"episodes": 1, "tokens": 1}}
    with pytest.raises(UserError, match=r"^group run-0: has a single scored episode"):
        with_advantages(made, single="error")
    with pytest.raises(UserError, match=r"^group run-0: has fewer scored episodes than group_size \(3 such groups\)"):
        with_advantages(made, incomplete="error", group_size=3)
    with pytest.raises(UserError, match=r"^group_size: expected a number"):
        with_advantages(made, incomplete="drop")


def test_estimators_and_choices_there_are_not() -> None:
    with pytest.raises(UserError, match=r"^advantage: there is no 'gpro'; did you mean 'grpo'\?$"):
        with_advantages(samples((0, 1.0)), "gpro")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"^zero_variance: there is no 'mask'"):
        with_advantages(samples((0, 1.0)), zero_variance="mask")  # pyright: ignore[reportArgumentType]


def test_no_samples_and_no_rewards() -> None:
    assert values(with_advantages(samples())) == []
    assert values(with_advantages(samples((0, None)), zero_variance="error", single="error")) == [None]
