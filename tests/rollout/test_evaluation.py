"""pass@k, mean and majority@k against enumeration of all draws; intervals and tests against what is known of them."""

import math
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.evaluation import (
    Samples,
    difference,
    estimates,
    majority_at_k,
    metrics,
    pass_at_k,
    powers,
    sign_flip_p,
    wilson,
)


@pytest.mark.parametrize(
    ("samples", "passed", "k", "expected"),
    [(10, 3, 1, 0.3), (10, 3, 5, 11 / 12), (4, 0, 4, 0.0), (4, 1, 4, 1.0), (4, 2, 2, 5 / 6), (200, 1, 100, 0.5)],
)
def test_pass_at_k_by_hand(samples: int, passed: int, k: int, expected: float) -> None:
    assert pass_at_k(samples, passed, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 5])
def test_k_is_no_more_than_the_samples(k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 4"):
        pass_at_k(4, 1, k)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_pass(passed: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(passed)))
    draws = [any(draw) for draw in combinations(passed, k)]
    assert pass_at_k(len(passed), sum(passed), k) == pytest.approx(np.mean(draws))


def voted(samples: Samples, draw: tuple[int, ...]) -> float:
    """Chance that the majority of one draw is right, ties by lot."""
    votes = Counter(samples.answers[at] for at in draw if samples.answers[at])
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    right = {
        name: np.mean(
            [reward >= 1 for reward, answer in zip(samples.rewards, samples.answers, strict=True) if answer == name]
        )
        for name in winners
    }
    return float(np.mean([right[name] for name in winners])) if winners else 0.0


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.booleans()), min_size=1, max_size=8), st.data())
def test_majority_at_k_is_the_mean_over_all_draws(given: list[tuple[str, bool]], data: st.DataObject) -> None:
    samples = Samples(tuple(float(right) for _, right in given), tuple(answer for answer, _ in given))
    k = data.draw(st.integers(1, len(given)))
    draws = [voted(samples, draw) for draw in combinations(range(len(given)), k)]
    assert majority_at_k(samples, 1.0, k) == pytest.approx(np.mean(draws))


def test_a_majority_by_hand() -> None:
    samples = Samples((1.0, 1.0, 0.0, 0.0, 0.0), ("4", "4", "5", "6", ""))
    assert majority_at_k(samples, 1.0, 5) == 1.0
    tied = Samples((1.0, 0.0), ("4", "5"))
    assert majority_at_k(tied, 1.0, 2) == 0.5
    assert majority_at_k(Samples((1.0,), ("",)), 1.0, 1) == 0.0


def test_the_numbers_of_a_task() -> None:
    told = metrics(Samples((1.0, 0.5, 0.0, 1.0 - 1e-12), ("4", "4", "5", "4")), 1.0, powers(8))
    assert told["mean"] == pytest.approx(0.625)
    assert (told["pass@1"], told["pass@4"], math.isnan(told["pass@8"])) == (0.5, 1.0, True)
    assert told["majority@4"] == pytest.approx(2 / 3)
    assert "majority@2" not in told


def test_powers() -> None:
    assert [powers(longest) for longest in (0, 1, 4, 6)] == [[], [1], [1, 2, 4], [1, 2, 4, 6]]


def test_an_interval_covers_the_mean_of_its_tasks_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(60):
        values = generator.beta(0.5, 0.5, (80, 1))
        (found,) = estimates(values, seed)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert hits >= 51


def test_values_that_are_not_there_are_left_out() -> None:
    first, second = estimates(np.array([[0.0, math.nan], [1.0, 1.0], [1.0, math.nan]]))
    assert (first.tasks, second.tasks) == (3, 1)
    assert second.mean == 1.0
    assert estimates(np.zeros((0, 1)))[0].tasks == 0


def test_equal_tasks_get_wilsons_interval_if_they_can() -> None:
    one, large = estimates(np.array([[1.0, 7.0]] * 10))
    assert (one.low, one.high) == (pytest.approx(0.7225, abs=1e-3), pytest.approx(1.0))
    assert (large.mean, large.low, large.high) == (7.0, None, None)
    assert wilson(0.5, 20) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7))
def test_p_is_the_share_of_all_signs_that_reach_as_far(given: list[int]) -> None:
    apart = np.array(given, np.float64)
    sums = [abs(float(np.dot(signs, apart))) for signs in product((1, -1), repeat=len(given))]
    assert sign_flip_p(apart) == pytest.approx(np.mean([reached >= abs(sum(given)) for reached in sums]))


def test_two_runs() -> None:
    generator = np.random.default_rng(0)
    before = generator.uniform(size=200)
    better = np.where(generator.uniform(size=200) < 0.3, before + 0.2, before)
    found = difference(before, better)
    assert found is not None and found.low is not None
    assert 0 < found.low < found.mean
    assert (found.p < 0.001, found.worse) == (True, 0)
    noisy = difference(before, before + generator.permutation(np.repeat([-0.1, 0.1], 100)))
    assert noisy is not None
    assert noisy.p > 0.5
    assert difference(before[:0], before[:0]) is None
    same = difference(before, before)
    assert same is not None
    assert (same.mean, same.low, same.p) == (0.0, None, 1.0)
