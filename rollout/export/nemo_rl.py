"""NeMo RL: the fields of DatumSpec, a message log whose token ids joined are the sequence.

NeMo RL has no mask: it trains on assistant messages that have `generation_logprobs`. So a message is a run of tokens
that the policy sampled, or one that it did not, whatever roles the chat had. Baselines are computed over equal prompts,
which siblings have not: one sample an episode.
"""

from __future__ import annotations

from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.export.sample import ROLLOUT, Sample

pa = cast(Any, pyarrow)
_MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("token_ids", pa.list_(pa.int64())),
        ("generation_logprobs", pa.list_(pa.float32())),
    ]
)

SCHEMA = pa.schema(
    [
        ("message_log", pa.list_(_MESSAGE)),
        ("length", pa.int64()),
        ("loss_multiplier", pa.float64()),
        ("idx", pa.int64()),
        ("task_name", pa.string()),
        ("extra_env_info", ROLLOUT),
        ("total_reward", pa.float64()),
        ("truncated", pa.bool_()),
    ]
)


def datum_spec(sample: Sample) -> dict[str, Any]:
    """One datum with its reward. Texts stay empty: the tokens are what counts."""
    return {
        "message_log": [_message(sample, start, end, mine) for start, end, mine in sample.runs()],
        "length": len(sample.token_ids),
        "loss_multiplier": 1.0,
        "idx": sample.number,
        "task_name": sample.resource,
        "extra_env_info": sample.rollout(),
        "total_reward": sample.reward,
        "truncated": sample.truncated,
    }


def _message(sample: Sample, start: int, end: int, mine: bool) -> dict[str, Any]:
    role = "assistant" if mine else "environment" if start else "user"
    return {
        "role": role,
        "content": "",
        "token_ids": sample.token_ids[start:end],
        "generation_logprobs": sample.logprobs[start:end] if mine else None,
    }
