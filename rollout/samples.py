"""Training samples: what a trainer reads, derived from rows and never stored as a second truth.

A sample is one sequence of tokens that the policy saw or wrote, in the order of the engine: `token_ids`, `loss_mask`,
`logprobs` and `versions` talk about the same positions. An episode without a segment break is one sample; what
becomes of breaks is chosen here (docs/design.md, The dataset).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

pa = cast(Any, pyarrow)
"""It has no types."""

SAMPLES = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("episode_id", pa.string()),
        pa.field("task_id", pa.string()),
        pa.field("group_id", pa.string()),  # all episodes of a task
        pa.field("sample_index", pa.int32()),  # of the episode in its group
        pa.field("resource", pa.string()),
        pa.field("agent", pa.string()),
        pa.field("model", pa.string()),
        pa.field("segment", pa.int32()),  # of the sample among the siblings of its episode, from 0
        pa.field("num_segments", pa.int32()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("loss_mask", pa.list_(pa.int8())),  # 1 on exactly the tokens that the policy sampled
        pa.field("logprobs", pa.list_(pa.float32())),  # processed, natural log; 0.0 where the mask is 0
        pa.field(
            "versions", pa.list_(pa.struct([("version", pa.string()), ("start", pa.int32()), ("end", pa.int32())]))
        ),
        pa.field("prompt_length", pa.int32()),  # tokens before the first sampled one
        pa.field("temperature", pa.float64()),
        pa.field("reward", pa.float64()),  # of the episode: equal in all siblings
        pa.field("step_rewards", pa.list_(pa.float32())),  # by token, at the last sampled one of a turn; null: none
        pa.field("weight", pa.float64()),  # of the sample in a mean over episodes: siblings add up to 1
        pa.field("advantage", pa.float64()),  # null until chosen
        pa.field("status", pa.string()),
        pa.field("stop_reason", pa.string()),
        pa.field("version_min", pa.string()),
        pa.field("version_max", pa.string()),
    ]
)


def to_samples(rows: Any) -> Any:
    """Rows (a table with the dataset's columns) as a table of SAMPLES: one sample a segment.

    Rows that have no reward (failed, dropped) and turns without ids give none.
    """
    wanted = [row for row in rows.to_pylist() if row["reward"] is not None]
    return pa.Table.from_pylist([sample for row in wanted for sample in _segments(row)], schema=SAMPLES)


def _segments(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    turns = [turn for turn in row["turns"] if turn["completion_ids"] and turn["logprobs"] is not None]
    segments = [
        [turn for turn in turns if turn["segment"] == number] for number in sorted({t["segment"] for t in turns})
    ]
    kept = {name: row[name] for name in SAMPLES.names if name in row}
    for number, segment in enumerate(segments):
        ids, mask, logprobs, versions = [], [], [], []
        for turn in segment:
            ids += turn["prompt_ids"]
            first = len(ids)
            ids += turn["completion_ids"]
            mask += [0] * len(turn["prompt_ids"]) + [1] * len(turn["completion_ids"])
            logprobs += [0.0] * len(turn["prompt_ids"]) + turn["logprobs"]
            versions += [
                span | {"start": first + span["start"], "end": first + span["end"]} for span in turn["versions"]
            ]
        yield kept | {
            "segment": number,
            "num_segments": len(segments),
            "token_ids": np.asarray(ids, np.int32),
            "loss_mask": np.asarray(mask, np.int8),
            "logprobs": np.asarray(logprobs, np.float32),
            "versions": versions,
            "prompt_length": len(segment[0]["prompt_ids"]),
            "temperature": segment[0]["sampling"]["temperature"],
            "weight": 1 / len(segments),
        }
