"""slime: what `Sample.from_dict` reads.

Siblings share `rollout_id`, by which slime averages the loss within an episode before it averages over episodes.
"""

from __future__ import annotations

from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.export.sample import ROLLOUT, Sample

pa = cast(Any, pyarrow)

SCHEMA = pa.schema(
    [
        ("group_index", pa.int64()),
        ("index", pa.int64()),
        ("rollout_id", pa.int64()),
        ("prompt", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("response", pa.string()),
        ("response_length", pa.int32()),
        ("loss_mask", pa.list_(pa.int8())),
        ("rollout_log_probs", pa.list_(pa.float32())),
        ("reward", pa.float64()),
        ("weight_versions", pa.list_(pa.string())),
        ("status", pa.string()),
        ("metadata", ROLLOUT),
    ]
)


def slime_sample(sample: Sample) -> dict[str, Any]:
    """One sample. Its texts stay empty: slime trains on the tokens."""
    return {
        "group_index": sample.group_number,
        "index": sample.number,
        "rollout_id": sample.episode_number,
        "prompt": "",
        "tokens": sample.token_ids,
        "response": "",
        "response_length": len(sample.response_ids),
        "loss_mask": sample.response_mask,
        "rollout_log_probs": sample.response_logprobs,
        "reward": sample.reward,
        "weight_versions": list(dict.fromkeys(span["version"] for span in sample.versions)),
        "status": "truncated" if sample.truncated else "completed",
        "metadata": sample.rollout(),
    }
