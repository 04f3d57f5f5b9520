"""SkyRL: the columns of GeneratorOutput.

Siblings are the steps of one trajectory (`generator.step_wise_trajectories=true`): together, in order, the last one
marked. The trainer computes advantages on the last ones and gives them to the others, so the reward stands there
alone: on the last token of the last sibling.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.export.sample import ROLLOUT, Sample

pa = cast(Any, pyarrow)

SCHEMA = pa.schema(
    [
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("rewards", pa.list_(pa.float32())),
        ("loss_masks", pa.list_(pa.int8())),
        ("stop_reasons", pa.string()),
        ("rollout_logprobs", pa.list_(pa.float32())),
        ("trajectory_ids", pa.struct([("instance_id", pa.string()), ("repetition_id", pa.int32())])),
        ("is_last_step", pa.bool_()),
        ("rollout", ROLLOUT),
    ]
)


def generator_output(sample: Sample) -> dict[str, Any]:
    """One entry of each column. SkyRL knows `stop`, and `length` for what a limit ended."""
    rewards = np.zeros(len(sample.response_ids), np.float32)
    if sample.is_last and len(rewards):
        rewards[-1] = sample.reward
    own = sample.parent_episode_id is None
    repetition = sample.sample_index if own else sample.episode_number  # of a child: a sample may have several
    return {
        "prompt_token_ids": sample.prompt_ids,
        "response_ids": sample.response_ids,
        "rewards": rewards,
        "loss_masks": sample.response_mask,
        "stop_reasons": "length" if sample.truncated else "stop",
        "rollout_logprobs": sample.response_logprobs,
        "trajectory_ids": {"instance_id": sample.group_id, "repetition_id": repetition},
        "is_last_step": sample.is_last,
        "rollout": sample.rollout(),
    }
