"""TRL: GRPOTrainer's `rollout_func` (trl) and the samples of its asynchronous trainer (trl-async).

`rollout_func` returns columns of one length, a completion a prompt: an episode of several samples has no place in it.
`env_mask` is 1 on the model's tokens. Keys that TRL does not know go to the reward functions.
"""

from __future__ import annotations

from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.export.sample import ROLLOUT, Sample

pa = cast(Any, pyarrow)
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

ROLLOUT_FUNC = pa.schema(
    [
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("env_mask", pa.list_(pa.int8())),
        ("reward", pa.float64()),
        ("rollout", ROLLOUT),
    ]
)
ROLLOUT_SAMPLE = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("completion", _MESSAGES),
        ("input_ids", pa.list_(pa.int32())),
        ("completion_mask", pa.list_(pa.int8())),
        ("old_log_probs", pa.list_(pa.float32())),
        ("advantage", pa.float64()),
        ("model_version", pa.int64()),
        ("group_id", pa.int64()),
        ("metrics", pa.struct([("reward", pa.float64()), ("weight", pa.float64())])),
        ("rollout", ROLLOUT),
    ]
)


def rollout_func(sample: Sample) -> dict[str, Any]:
    """One completion. `prompt` is the task's id: what the dataset given to the trainer has in that column."""
    return {
        "prompt": sample.task_id,
        "prompt_ids": sample.prompt_ids,
        "completion_ids": sample.response_ids,
        "logprobs": sample.response_logprobs,
        "env_mask": sample.response_mask,
        "reward": sample.reward,
        "rollout": sample.rollout(),
    }


def rollout_sample(sample: Sample) -> dict[str, Any]:
    """The fields of RolloutSample. Its messages, which are only logged, stay empty; `model_version` is the oldest."""
    return {
        "prompt": [],
        "completion": [],
        "input_ids": sample.token_ids,
        "completion_mask": sample.loss_mask,
        "old_log_probs": sample.logprobs,
        "advantage": sample.advantage,
        "model_version": version_number(sample.version_min),
        "group_id": sample.group_number,
        "metrics": {"reward": sample.reward, "weight": sample.weight},
        "rollout": sample.rollout(),
    }


def version_number(version: str | None) -> int:
    """`v12` and `12` are 12; a version that is no number is 0: the weights before any update."""
    digits = (version or "").lstrip("v")
    return int(digits) if digits.isdecimal() else 0
