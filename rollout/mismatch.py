"""How far the logprobs that an engine recorded are from those of a plain forward pass of the same weights.

With recorded logprobs q and recomputed p of sampled tokens, the importance ratio is exp(p - q): its mean is 1 when q is
what the tokens were drawn from. `k3` is the estimator mean(ratio - 1 - log ratio) of KL(engine || forward pass)
(Schulman, Approximating KL Divergence, 2020): never negative, with little variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MEAN_BOUND = 0.02
"""Nats a token. Kernels of an engine and of transformers differ by a fraction of it in bfloat16."""
SHARE_BOUND = 0.1
"""Of the mean |logprob|: a model that is nearly certain of most tokens meets any bound in nats, whatever is wrong."""
LEAST_SURE = 0.01
"""The mean |logprob| that the share is taken of at least: below it rounding is all there is."""
OUTSIDE_BOUND = 0.01
"""Share of tokens that top_k or top_p of the forward pass would have cut off. At the edge a few are, by rounding."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Of sampled tokens; nats, except for ratios, shares and counts. None where no token was compared."""

    tokens: int
    outside: int
    """Tokens that the forward pass would not have sampled at all; they are in none of the means."""
    mean_abs: float | None = None
    p99_abs: float | None = None
    max_abs: float | None = None
    mean_logprob: float | None = None
    """Mean |recorded logprob|: what the difference is to be held against."""
    ratio_mean: float | None = None
    ratio_std: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    k3: float | None = None

    @property
    def share(self) -> float | None:
        """The mean difference as a part of the mean |logprob|."""
        if self.mean_abs is None or self.mean_logprob is None:
            return None
        return self.mean_abs / max(self.mean_logprob, LEAST_SURE)


def compare(recorded: npt.NDArray[np.float64], recomputed: npt.NDArray[np.float64]) -> Mismatch:
    """The difference of two arrays of logprobs of the same tokens; -inf in `recomputed` is a token cut off there."""
    inside = np.isfinite(recomputed)
    outside = len(recomputed) - int(inside.sum())
    if not inside.any():
        return Mismatch(0, outside)
    engine = recorded[inside]
    difference = recomputed[inside] - engine
    ratio = np.exp(difference)
    apart = np.abs(difference)
    return Mismatch(
        tokens=len(engine),
        outside=outside,
        mean_abs=float(apart.mean()),
        p99_abs=float(np.quantile(apart, 0.99)),
        max_abs=float(apart.max()),
        mean_logprob=float(np.abs(engine).mean()),
        ratio_mean=float(ratio.mean()),
        ratio_std=float(ratio.std()),
        ratio_min=float(ratio.min()),
        ratio_max=float(ratio.max()),
        k3=float((ratio - 1 - difference).mean()),
    )


def excesses(mismatch: Mismatch, mean_bound: float = MEAN_BOUND, share_bound: float = SHARE_BOUND) -> Sequence[str]:
    """Why the recorded logprobs are not those of the weights, a line each; empty when they are."""
    told: list[str] = []
    if mismatch.mean_abs is not None and not mismatch.mean_abs <= mean_bound:
        told.append(f"the mean difference is {mismatch.mean_abs:.4g}, the bound {mean_bound:g}")
    if mismatch.share is not None and not mismatch.share <= share_bound:
        told.append(f"the mean difference is {mismatch.share:.1%} of the mean |logprob|, the bound {share_bound:.0%}")
    if mismatch.outside > OUTSIDE_BOUND * (mismatch.tokens + mismatch.outside):
        told.append(f"{mismatch.outside:,} tokens would not have been sampled at all: top_k or top_p cuts them off")
    return told
