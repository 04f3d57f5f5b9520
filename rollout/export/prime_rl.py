"""prime-rl: the fields of TrainingSample.

Lists of one length and no split into prompt and completion. prime-rl takes advantages, by token; its loss is a mean
over tokens, in which each sampled token stands once however an episode was split.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.export.sample import ROLLOUT, Sample

pa = cast(Any, pyarrow)

SCHEMA = pa.schema(
    [
        ("token_ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.bool_())),
        ("logprobs", pa.list_(pa.float32())),
        ("temperatures", pa.list_(pa.float32())),
        ("env_name", pa.string()),
        ("advantages", pa.list_(pa.float32())),
        ("rollout", ROLLOUT),
    ]
)


def training_sample(sample: Sample) -> dict[str, Any]:
    """One sample."""
    return {
        "token_ids": sample.token_ids,
        "mask": sample.loss_mask.astype(np.bool_),
        "logprobs": sample.logprobs,
        "temperatures": np.full(len(sample.token_ids), sample.temperature, np.float32),
        "env_name": sample.resource,
        "advantages": sample.token_advantages(),
        "rollout": sample.rollout(),
    }
