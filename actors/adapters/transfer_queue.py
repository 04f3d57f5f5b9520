"""TransferQueue: samples put where trainers that read from it (verl, ROLL, Relax, ...) look.

Call `transfer_queue.init()` first, as its own users do. Names of fields, keys and tags are those of verl's own
agent loop for TransferQueue, so that its trainer reads them.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa
import torch

from actors.foreign import imported
from rollout.errors import RolloutError
from rollout.feeding import WHOLE, Share, whole_groups
from rollout.samples import COLUMNS, to_samples
from rollout.storage import Place
from rollout.thread import threaded

PUT_SECONDS = 300.0
"""What one put, or one list of keys, may take."""
LOOK_SECONDS = 1.0
"""How often a full partition is looked at."""


async def put_samples(samples: pa.Table, partition: str = "train") -> list[str]:
    """Puts a table of SAMPLES into a partition; the keys it has there: `GROUP_SAMPLE_SEGMENT`, for children
    `EPISODE_SEGMENT`.

    A key that is there already is written again. Fields, jagged tensors over samples: `input_ids, position_ids,
    prompts, responses` (int64), `response_mask, loss_mask` (int64, over responses), `rollout_log_probs, rm_scores`
    (float32, over responses; the reward stands at the last of them). Raises UserError without TransferQueue,
    RolloutError when it does not answer.
    """
    tq, tensordict = imported("transfer_queue", "TransferQueue"), imported("tensordict", "tensordict")
    entries = [_entry(sample) for sample in samples.to_pylist()]
    if not entries:
        return []
    keys, tags = [key for key, _, _ in entries], [tag for _, _, tag in entries]
    fields = {name: _jagged([one[name] for _, one, _ in entries]) for name in entries[0][1]}
    batch = tensordict.TensorDict(fields, batch_size=[len(keys)])
    await _answered(lambda: tq.kv_batch_put(keys=keys, partition_id=partition, fields=batch, tags=tags))
    return keys


async def feed(
    run: Place,
    partition: str = "train",
    *,
    at_most: int = 4096,
    share: Share = WHOLE,
    follow_seconds: float | None = None,
) -> int:
    """Puts a run's samples, whole groups at a time, in the order in which these got complete; how many there were.

    With `follow_seconds` it goes on while the run is written (`rollout.feeding.whole_groups`). It waits while the
    partition holds `at_most` samples that nobody has cleared: TransferQueue keeps them in memory. A feed that starts
    again begins at the start, under the same keys; what has to be read once and only once is read from the run.
    """
    count = 0
    groups = whole_groups(run, share, follow_seconds, columns=COLUMNS)
    seconds = (follow_seconds or 0.0) + PUT_SECONDS  # the silence that is waited for, and a read
    while (rows := await threaded(lambda: next(groups, None), seconds, str(run))) is not None:
        while await _held(partition) >= at_most:  # noqa: ASYNC110 - who clears it tells nobody
            await asyncio.sleep(LOOK_SECONDS)
        count += len(await put_samples(to_samples(rows), partition))
    return count


async def _held(partition: str) -> int:
    tq = imported("transfer_queue", "TransferQueue")
    return len((await _answered(lambda: tq.kv_list(partition_id=partition))).get(partition, {}))


async def _answered(call: Any) -> Any:
    try:
        return await threaded(call, PUT_SECONDS, "TransferQueue")
    except TimeoutError as error:
        raise RolloutError(str(error)) from error


def _entry(sample: dict[str, Any]) -> tuple[str, dict[str, torch.Tensor], dict[str, Any]]:
    """Key, fields and tag of a sample."""
    split, ids = sample["prompt_length"], torch.tensor(sample["token_ids"], dtype=torch.int64)
    mask = torch.tensor(sample["loss_mask"][split:], dtype=torch.int64)
    scores = torch.zeros(len(mask), dtype=torch.float32)
    scores[-1] = sample["reward"]
    fields = {
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)),
        "prompts": ids[:split],
        "responses": ids[split:],
        "response_mask": mask,
        "loss_mask": mask,
        "rollout_log_probs": torch.tensor(sample["logprobs"][split:], dtype=torch.float32),
        "rm_scores": scores,
    }
    tag = {
        "status": "success",
        "prompt_len": split,
        "response_len": len(mask),
        "seq_len": len(ids),
        "uid": sample["group_id"],
        "episode_id": sample["episode_id"],
        "num_segments": sample["num_segments"],
        "min_global_steps": _step(sample["version_min"]),
        "max_global_steps": _step(sample["version_max"]),
    }
    own = f"{sample['group_id']}_{sample['sample_index']}"
    name = own if sample["parent_episode_id"] is None else sample["episode_id"]
    return f"{name}_{sample['segment']}", fields, tag


def _step(version: str | None) -> int | None:
    """A version's number, where it is one."""
    return int(version) if version is not None and version.isdecimal() else None


def _jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)
