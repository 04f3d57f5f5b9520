"""Evaluation from rewards and answers: pass@k, mean@k, majority@k, their intervals, and two runs compared.

A task's number is an expectation over all draws of k of its n samples without replacement, computed exactly. Tasks, not
samples, are what is drawn at random: intervals and tests are over tasks, whatever the number of samples of each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 2_000
FLIPS = 10_000
CONFIDENCE = 0.95
_Z = 1.959963984540054
"""The normal quantile of CONFIDENCE."""
MOST_VOTES = 256
"""Samples of a task up to which majority@k is computed: its exact sum grows with their fourth power."""
_EXACT = 12
"""Tasks up to which all signs are tried instead of FLIPS of them."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The scored samples of one task."""

    rewards: tuple[float, ...]
    answers: tuple[str, ...]
    """What each votes for; an empty one votes for nothing."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tasks with its interval; None where there is nothing to tell it from."""

    mean: float
    low: float | None
    high: float | None
    tasks: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The second run minus the first, over the tasks of both."""

    mean: float
    low: float | None
    high: float | None
    p: float
    """Of a difference at least so large in either direction if the two runs were exchangeable in every task."""
    tasks: int
    better: int
    worse: int


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that of k samples, drawn of `samples` without replacement, at least one passed (Chen et al., Evaluating
    Large Language Models Trained on Code, 2021). Raises ValueError unless 0 < k <= samples."""
    _check(samples, k)
    failed = samples - passed
    return 1.0 - math.prod(max(0, failed - i) / (samples - i) for i in range(k))


def majority_at_k(samples: Samples, threshold: float, k: int) -> float:
    """Chance that the answer which most of k samples give, drawn without replacement, is right.

    A tie is broken by lot. An answer is as right as the samples that give it: the share of them with a reward of at
    least `threshold`. A draw in which nobody votes is wrong. Raises ValueError unless 0 < k <= samples.
    """
    total = len(samples.rewards)
    _check(total, k)
    votes = Counter(answer for answer in samples.answers if answer)
    right: Counter[str] = Counter()
    for answer, reward in zip(samples.answers, samples.rewards, strict=True):
        right[answer] += passes(reward, threshold)
    if k == 1:
        return sum(right[answer] for answer in votes) / total
    silent = total - votes.total()
    chance = 0.0
    for answer, count in votes.items():
        if right[answer]:
            others = [other for name, other in votes.items() if name != answer]
            won = sum(math.comb(count, m) * _ways(others, silent, k - m, m) for m in range(1, min(count, k) + 1))
            chance += right[answer] / count * won
    return chance / math.comb(total, k)


def _ways(others: Sequence[int], silent: int, draws: int, most: int) -> float:
    """Ways to draw so many samples of the other answers, none more often than `most` times, and of the silent; where t
    others come `most` times, too, each way counts 1 / (t + 1): the chance of winning the lot."""
    ties = min(len(others), draws // most)
    ways = np.zeros((draws + 1, ties + 1))
    ways[: silent + 1, 0] = [float(math.comb(silent, drawn)) for drawn in range(min(silent, draws) + 1)]
    for other in others:
        after = np.zeros_like(ways)
        for drawn in range(min(other, most, draws) + 1):
            moved = math.comb(other, drawn) * ways[: draws + 1 - drawn]
            if drawn < most:
                after[drawn:] += moved
            else:
                after[drawn:, 1:] += moved[:, :-1]
        ways = after
    return float((ways[draws] / np.arange(1, ties + 2)).sum())


def passes(reward: float, threshold: float) -> bool:
    """Whether a reward is a pass; sums of components may be below it by rounding."""
    return reward >= threshold - 1e-9


def powers(longest: int) -> list[int]:
    """The k of a table: powers of two up to `longest`, and that itself."""
    return sorted({*(2**power for power in range(longest.bit_length()) if 2**power <= longest), longest} - {0})


def metrics(samples: Samples, threshold: float, ks: Sequence[int]) -> dict[str, float]:
    """All numbers of one task by name; NaN for a k that is more than its samples, and for
    majority@k of more than MOST_VOTES. `mean` is mean@k for every k."""
    total = len(samples.rewards)
    passed = sum(passes(reward, threshold) for reward in samples.rewards)
    told = {"mean": float(np.mean(samples.rewards))}
    for k in ks:
        told[f"pass@{k}"] = pass_at_k(total, passed, k) if k <= total else math.nan
    for k in ks:
        if k > 2:  # one vote is pass@1, and of two that differ the lot decides
            told[f"majority@{k}"] = majority_at_k(samples, threshold, k) if k <= total <= MOST_VOTES else math.nan
    return told


def estimates(values: Floats, seed: int = 0) -> list[Estimate]:
    """Means over tasks of values (tasks, metrics), NaN left out, with 95 % intervals by the percentile bootstrap over
    tasks. Where all tasks are equal, which tells a bootstrap nothing, values from 0 to 1 get Wilson's interval."""
    drawn = _resampled(values, seed)
    return [_estimate(values[:, column], drawn[:, column]) for column in range(values.shape[1])]


def _estimate(values: Floats, drawn: Floats) -> Estimate:
    told = values[~np.isnan(values)]
    if not len(told):
        return Estimate(math.nan, None, None, 0)
    mean = float(told.mean())
    if np.ptp(told) > 0:
        low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
        return Estimate(mean, low, high, len(told))
    low, high = wilson(mean, len(told)) if 0 <= mean <= 1 else (None, None)
    return Estimate(mean, low, high, len(told))


def wilson(mean: float, count: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share: the variance of any value from 0 to 1 is at most that of a share."""
    shrunk = 1 + _Z**2 / count
    centre = (mean + _Z**2 / (2 * count)) / shrunk
    reach = _Z / shrunk * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def difference(first: Floats, second: Floats, seed: int = 0) -> Difference | None:
    """Two runs on the same tasks (one value a task each, NaN left out); None without a task.

    The interval is the paired bootstrap's; p is of a permutation test that swaps the runs within tasks at random: the
    signs of the differences.
    """
    apart = second - first
    apart = apart[~np.isnan(apart)]
    if not len(apart):
        return None
    low, high = None, None
    if np.ptp(apart) > 0:
        drawn = _resampled(apart[:, None], seed)
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    better, worse = int((apart > 0).sum()), int((apart < 0).sum())
    return Difference(float(apart.mean()), low, high, sign_flip_p(apart, seed), len(apart), better, worse)


def sign_flip_p(apart: Floats, seed: int = 0) -> float:
    """Share of all choices of signs (of FLIPS at random, and the one there is, where there are many) under which the
    sum of the differences is at least as far from 0."""
    told = apart[apart != 0]
    least = abs(told.sum()) - 1e-9 * np.abs(told).sum()
    if len(told) <= _EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(told)))).reshape(2 ** len(told), len(told))
        return float((np.abs(signs @ told) >= least).mean())
    generator = np.random.default_rng(seed)
    reached = sum(
        int((np.abs((1.0 - 2.0 * generator.integers(0, 2, (count, len(told)))) @ told) >= least).sum())
        for count in _parts(FLIPS, len(told))
    )
    return (1 + reached) / (1 + FLIPS)


def _resampled(values: Floats, seed: int) -> Floats:
    """Means (RESAMPLES, metrics) over tasks drawn with replacement; NaN where a draw has no value."""
    tasks = len(values)
    generator = np.random.default_rng(seed)
    told = ~np.isnan(values)
    filled = np.where(told, values, 0.0)
    means: list[Floats] = []
    for _ in range(RESAMPLES if tasks else 0):
        times = np.bincount(generator.integers(0, tasks, tasks), minlength=tasks).astype(np.float64)
        counts = times @ told
        means.append(np.divide(times @ filled, counts, out=np.full(counts.shape, np.nan), where=counts > 0))
    return np.array(means).reshape(-1, values.shape[1])


def _parts(count: int, width: int) -> Iterator[int]:
    """`count` in parts of at most about a million numbers each of `width`."""
    part = max(1, 2**20 // max(1, width))
    yield from (min(part, count - start) for start in range(0, count, part))


def _check(samples: int, k: int) -> None:
    if not 0 < k <= samples:
        raise ValueError(f"k is {k}, expected 1 to {samples}")
