"""Tinker: the lists of a Datum, already shifted: position i of the input predicts position i of the targets.

All five lists have one token less than the sequence. Tinker takes advantages, by token; its losses sum over tokens, in
which each sampled token stands once however an episode was split.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.export.sample import ROLLOUT, Sample

pa = cast(Any, pyarrow)

SCHEMA = pa.schema(
    [
        ("model_input", pa.list_(pa.int32())),
        ("target_tokens", pa.list_(pa.int64())),
        ("logprobs", pa.list_(pa.float32())),
        ("advantages", pa.list_(pa.float32())),
        ("mask", pa.list_(pa.float32())),
        ("rollout", ROLLOUT),
    ]
)


def datum(sample: Sample) -> dict[str, Any]:
    """One datum."""
    return {
        "model_input": sample.token_ids[:-1],
        "target_tokens": sample.token_ids[1:],
        "logprobs": sample.logprobs[1:],
        "advantages": sample.token_advantages()[1:],
        "mask": sample.loss_mask[1:].astype(np.float32),
        "rollout": sample.rollout(),
    }
