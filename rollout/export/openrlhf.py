"""OpenRLHF: what an agent executor returns, from which OpenRLHF makes its Experience.

`rollout_log_probs` has the length of all tokens and the mask is given as ranges; OpenRLHF shifts both by one itself. It
takes one sequence a prompt and sample.
"""

from __future__ import annotations

from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.export.sample import ROLLOUT, Sample

pa = cast(Any, pyarrow)

SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("label", pa.string()),
        ("observation_tokens", pa.list_(pa.int32())),
        ("action_ranges", pa.list_(pa.list_(pa.int32()))),
        ("rollout_log_probs", pa.list_(pa.float32())),
        ("reward", pa.float64()),
        ("scores", pa.float64()),
        ("truncated", pa.bool_()),
        ("rollout", ROLLOUT),
    ]
)


def agent_response(sample: Sample) -> dict[str, Any]:
    """One response. `prompt` and `label`, which OpenRLHF only logs, are the ids of the task and the episode."""
    return {
        "prompt": sample.task_id,
        "label": sample.episode_id,
        "observation_tokens": sample.token_ids,
        "action_ranges": [[start, end] for start, end, mine in sample.runs() if mine],
        "rollout_log_probs": sample.logprobs,
        "reward": sample.reward,
        "scores": sample.reward,
        "truncated": sample.truncated,
        "rollout": sample.rollout(),
    }
