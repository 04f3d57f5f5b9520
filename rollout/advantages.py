"""Advantages: how much better an episode was than others, by the estimators that trainers of language models use.

They are computed over episodes, each of which counts once, and then given to all siblings as they are: `weight` is for
the loss, never for the baseline. What a trainer does a token at a time starts from `rollout.token_rewards`.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from rollout.errors import UserError, nearest
from rollout.flat_turns import Bools, Ints
from rollout.samples import also_left_out

pa, pc = cast(Any, pyarrow), cast(Any, pyarrow.compute)
"""They have no types."""
Floats = NDArray[np.float64]
Estimator = Literal["grpo", "grpo_no_std", "rloo", "reinforce++", "reinforce++_baseline"]
ESTIMATORS: tuple[Estimator, ...] = ("grpo", "grpo_no_std", "rloo", "reinforce++", "reinforce++_baseline")
GroupChoice = Literal["keep", "drop", "error"]
"""keep: as any other group. drop: its episodes are left out, before anything is computed. error: UserError."""
GROUP_CHOICES: tuple[GroupChoice, ...] = ("keep", "drop", "error")
EPSILON = 1e-6
"""Added to a standard deviation that is divided by."""


def with_advantages(
    samples: Any,
    estimator: Estimator = "grpo",
    *,
    zero_variance: GroupChoice = "keep",
    single: GroupChoice = "keep",
    incomplete: GroupChoice = "keep",
    group_size: int | None = None,
) -> Any:
    """The table of SAMPLES with the column `advantage`; null where there is no reward.

    The table is the batch: it holds whole groups (as `read_samples` gives them). A group whose rewards are all equal
    has zero variance; one with a single scored episode is `single`; one with fewer scored episodes than `group_size`
    is incomplete, unless it is of children, of whom there are as many as their parents began. Kept, the first two have
    advantage 0, except under "reinforce++", which knows no groups. What is dropped is in `left_out`, under
    zero_variance, single_group and incomplete_group. Raises UserError for a choice there is not, for a group that is to
    be an error, and when `incomplete` is chosen without a `group_size`.
    """
    if estimator not in ESTIMATORS:
        raise UserError(f"advantage: there is no {estimator!r}{nearest(estimator, ESTIMATORS)}")
    if incomplete != "keep" and group_size is None:
        raise UserError(f"group_size: expected a number, to tell which groups are incomplete ({incomplete})")
    scored = samples["reward"].is_valid().to_numpy()
    episode, first = _numbered(samples["episode_id"].filter(scored))
    group, _ = _numbered(samples["group_id"].filter(scored).take(first))
    rewards = samples["reward"].filter(scored).take(first).to_numpy()
    size = np.bincount(group)
    own = np.zeros(len(size), bool)
    own[group] = samples["parent_episode_id"].filter(scored).take(first).is_null().to_numpy()
    causes = (
        ("incomplete_group", incomplete, own & (size < (group_size or 0))),
        ("single_group", single, size == 1),
        ("zero_variance", zero_variance, (size > 1) & _equal(rewards, group)),
    )
    names = samples["group_id"].filter(scored).take(first)
    gone, lost = np.zeros(len(size), bool), dict[str, Bools]()
    for cause, choice, groups in causes:
        if choice not in GROUP_CHOICES:
            raise UserError(f"{cause}: there is no {choice!r}{nearest(choice, GROUP_CHOICES)}")
        if choice == "error" and groups.any():
            name = names[int(np.argmax(groups[group]))].as_py()
            raise UserError(f"group {name}: {_SAID[cause]} ({int(groups.sum())} such groups)")
        if choice == "drop":
            lost[cause] = groups & ~gone
            gone |= groups
    kept = ~gone[group]
    values = np.full(len(rewards), np.nan)
    values[kept] = advantages(rewards[kept], group[kept], estimator)
    whole = np.full(samples.num_rows, np.nan)
    whole[scored] = values[episode]
    leaving = np.zeros(samples.num_rows, bool)
    leaving[scored] = gone[group][episode]
    column = samples.schema.get_field_index("advantage")
    made = samples.set_column(column, samples.schema.field(column), pa.array(whole, from_pandas=True))
    found = {cause: _cost(samples, scored, groups[group][episode]) for cause, groups in lost.items() if groups.any()}
    return also_left_out(made.filter(pa.array(~leaving)), found)


def advantages(rewards: Floats, group: Ints, estimator: Estimator) -> Floats:
    """The advantage of each of E episodes from their rewards and their group numbers (any from 0 on).

    With r the reward, m and s the mean and the standard deviation of its group, n the group's size:

        grpo                  (r - m) / (s + EPSILON)               DeepSeekMath, arXiv 2402.03300
        grpo_no_std           r - m                                 Dr. GRPO, arXiv 2503.20783
        rloo                  r - mean of the n - 1 others          arXiv 2402.14740
        reinforce++           (r - M) / (S + EPSILON)               arXiv 2501.03262; M and S are of all E rewards
        reinforce++_baseline  (r - m) / (S + EPSILON)               the same; S is of all E differences r - m

    Standard deviations divide by n - 1, as those of TRL and verl do. REINFORCE++ is given there by token: here each
    episode counts once, however long. Where all rewards of the group (or batch) are equal, the advantage is exactly 0.
    """
    if estimator == "reinforce++":
        whole = np.zeros_like(group)
        return _off(rewards, whole) / (_deviations(_off(rewards, whole), whole) + EPSILON)
    off = _off(rewards, group)
    if estimator == "grpo":
        return off / (_deviations(off, group) + EPSILON)
    if estimator == "rloo":
        size = np.bincount(group)[group]
        return off * (size / np.maximum(size - 1, 1))
    if estimator == "reinforce++_baseline":
        return off / (_deviations(off, np.zeros_like(group)) + EPSILON)
    return off


_SAID = {
    "incomplete_group": "has fewer scored episodes than group_size",
    "single_group": "has a single scored episode",
    "zero_variance": "all its rewards are equal",
}


def _off(rewards: Floats, group: Ints) -> Floats:
    """Differences to the group's mean; exactly 0 where all of a group are equal, which rounding would not give."""
    size = np.maximum(np.bincount(group), 1)
    return np.where(_equal(rewards, group)[group], 0.0, rewards - (np.bincount(group, rewards) / size)[group])


def _deviations(off: Floats, group: Ints) -> Floats:
    """For each episode the standard deviation of its group, from differences whose mean in it is 0."""
    size = np.bincount(group)
    return np.sqrt(np.bincount(group, off * off) / np.maximum(size - 1, 1))[group]


def _equal(rewards: Floats, group: Ints) -> Bools:
    """By group: whether all its rewards are equal."""
    highest = np.full(int(group.max(initial=-1)) + 1, -np.inf)
    lowest = -highest
    np.maximum.at(highest, group, rewards)
    np.minimum.at(lowest, group, rewards)
    return highest <= lowest


def _numbered(names: Any) -> tuple[Ints, Ints]:
    """Each name as a number from 0 on, in the order they come, and where each comes first."""
    codes = np.asarray(names.combine_chunks().dictionary_encode().indices, np.int64)
    return codes, np.unique(codes, return_index=True)[1].astype(np.int64)


def _cost(samples: Any, scored: Bools, leaving: Bools) -> dict[str, int]:
    out = samples.filter(pa.array(scored)).filter(pa.array(leaving))
    tokens = pc.sum(pc.list_flatten(out["loss_mask"])).as_py() or 0
    return {"episodes": pc.count_distinct(out["episode_id"]).as_py(), "tokens": tokens}
