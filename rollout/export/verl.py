"""verl: the fields of AgentLoopOutput, which verl pads itself (prompts left, responses right).

verl's V1 trainer gives the reward of an episode's last output to the others; its DataProto path counts each row as a
member of the group, so that siblings would weigh more than other episodes: hence one sample an episode here, unless
`keep` is chosen.
"""

from __future__ import annotations

from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.export.sample import ROLLOUT, Sample
from rollout.export.trl import version_number

pa = cast(Any, pyarrow)

SCHEMA = pa.schema(
    [
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("response_mask", pa.list_(pa.int8())),
        ("response_logprobs", pa.list_(pa.float32())),
        ("reward_score", pa.float64()),
        ("num_turns", pa.int32()),
        ("metrics", pa.struct([("num_preempted", pa.int32())])),
        ("extra_fields", pa.struct([("min_global_steps", pa.int64()), ("max_global_steps", pa.int64())])),
        ("uid", pa.string()),
        ("rollout", ROLLOUT),
    ]
)


def agent_loop_output(sample: Sample) -> dict[str, Any]:
    """One output. `uid` is the group; times are not told, which verl writes as -1 preemptions and no seconds."""
    return {
        "prompt_ids": sample.prompt_ids,
        "response_ids": sample.response_ids,
        "response_mask": sample.response_mask,
        "response_logprobs": sample.response_logprobs,
        "reward_score": sample.reward,
        "num_turns": len(sample.runs()),
        "metrics": {"num_preempted": -1},
        "extra_fields": {
            "min_global_steps": version_number(sample.version_min),
            "max_global_steps": version_number(sample.version_max),
        },
        "uid": sample.group_id,
        "rollout": sample.rollout(),
    }
