"""Rewards by token, for trainers that estimate advantages a token at a time (PPO with GAE, arXiv 1506.02438).

The actions of an episode are its tokens with mask 1, in order, from the first sibling to the last: what an environment
answered in between is no action, and a sibling goes on where the one before it ended.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from rollout.errors import UserError, nearest
from rollout.flat_turns import Ints

pa = cast(Any, pyarrow)
"""It has no types."""
Steps = Literal["within", "added", "ignored"]
"""What step rewards are to the episode's reward. within: it counts them already, the last token gets what is missing to
it (as for a Gymnasium environment, whose reward is the sum of the steps). added: both are given whole. ignored: the
last token gets the reward, and that is all."""
STEPS: tuple[Steps, ...] = ("within", "added", "ignored")


def token_rewards(samples: Any, steps: Steps = "within") -> Any:
    """A list of float32 a sample, as long as its `token_ids`: 0 but at the last sampled token of a turn with a step
    reward, and at the last sampled token of an episode's last sibling.

    `samples` holds all siblings of each of its episodes, in any order. With "within" the values of an episode add up
    to its reward. An episode without a reward has only its steps; one that is masked has no token to give a reward to.
    Raises UserError for a choice there is not.
    """
    if steps not in STEPS:
        raise UserError(f"steps: there is no {steps!r}{nearest(steps, STEPS)}")
    lengths, mask = _flat(samples["loss_mask"])
    sample = np.repeat(np.arange(len(lengths)), lengths)
    values = np.zeros(len(mask))
    has = samples["step_rewards"].is_valid().to_numpy()
    if steps != "ignored":
        values[has[sample]] = _flat(samples["step_rewards"])[1]
        values *= mask
    episode = _episodes(samples)
    action = _actions(samples, episode, sample, mask)
    last = np.append(np.diff(episode[sample[action]]) != 0, True)[: len(action)]
    ends = action[last]
    of = sample[ends]
    reward = samples["reward"].to_numpy()[of]
    if steps == "within":
        reward = reward - np.bincount(episode[sample], values)[episode[of]]
    values[ends] += np.nan_to_num(reward)
    return _as_lists(lengths, values)


def returns(samples: Any, rewards: Any, gamma: float = 1.0) -> Any:
    """Discounted sums of rewards to come, a list of float32 a sample: G(t) = r(t) + gamma G(t + 1) over the actions of
    an episode, 0 at other tokens.

    `rewards` is what `token_rewards` gives; `gamma` is by action, from 0 to 1. Time is n log n.
    """
    lengths, mask = _flat(samples["loss_mask"])
    sample = np.repeat(np.arange(len(lengths)), lengths)
    episode = _episodes(samples)
    action = _actions(samples, episode, sample, mask)
    whose = episode[sample[action]]
    sums = _flat(rewards)[1].astype(np.float64)[action]
    reach, factor = 1, gamma
    longest = int(np.bincount(whose).max(initial=0))
    while reach < longest:  # sums of `reach` rewards each become sums of twice as many
        sums[:-reach] = sums[:-reach] + factor * np.where(whose[reach:] == whose[:-reach], sums[reach:], 0.0)
        reach, factor = 2 * reach, factor * factor
    values = np.zeros(len(mask))
    values[action] = sums
    return _as_lists(lengths, values)


def _episodes(samples: Any) -> Ints:
    """A number for the episode of each sample."""
    return np.asarray(samples["episode_id"].combine_chunks().dictionary_encode().indices, np.int64)


def _actions(samples: Any, episode: Ints, sample: Ints, mask: NDArray[Any]) -> Ints:
    """Places of the tokens with mask 1, ordered by episode and then as they were sampled."""
    order = np.lexsort((samples["segment"].to_numpy(), episode))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    places = np.flatnonzero(mask)
    return places[np.argsort(rank[sample[places]], kind="stable")]


def _flat(lists: Any) -> tuple[Ints, NDArray[Any]]:
    """Length of each list, 0 for null, and all values."""
    whole = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lengths = np.asarray(whole.value_lengths().fill_null(0), np.int64)
    return lengths, whole.flatten().to_numpy(zero_copy_only=False)


def _as_lists(lengths: Ints, values: NDArray[np.float64]) -> Any:
    ends = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(values.astype(np.float32)))
