"""How long an episode of a task takes, from what episodes of an earlier run took."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rollout.dataset import open_table
from rollout.errors import UserError
from rollout.storage import Place
from rollout.trajectory import Status

_COLUMNS = ["resource", "task_id", "status", "started_at", "finished_at", "parent_episode_id"]
_BY_TASK = ["resource", "task_id"]


@dataclass(frozen=True, slots=True)
class History:
    """Mean seconds of an episode by task: 12 bytes a task, whatever the tasks are called.

    Two tasks whose 8-byte digests are equal would share a mean: less than one chance in a million for a million tasks,
    and it would cost an order, never a row.
    """

    keys: npt.NDArray[np.uint64]
    """Digests of (resource, task id), sorted."""
    seconds: npt.NDArray[np.float32]
    usual: float
    """For a task that is not known: the median, so that it comes neither first nor last."""

    @staticmethod
    def of(keys: npt.NDArray[np.uint64], totals: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> History:
        """From sums of seconds over so many episodes; a key may come several times."""
        unique, place = np.unique(keys, return_inverse=True)
        seconds = np.bincount(place, totals, len(unique)) / np.bincount(place, counts, len(unique))
        return History(unique, seconds.astype(np.float32), float(np.median(seconds)) if len(unique) else 0.0)

    def __len__(self) -> int:
        return len(self.keys)

    def expected(self, resource: str, task_id: str) -> float:
        """Seconds an episode of the task took in the mean; what is usual for a task that is not known."""
        key = np.uint64(task_key(resource, task_id))
        at = int(np.searchsorted(self.keys, key))
        return float(self.seconds[at]) if at < len(self.keys) and self.keys[at] == key else self.usual


def task_key(resource: str, task_id: str) -> int:
    """Eight bytes for a task; ids of different environments may be the same."""
    digest = hashlib.blake2b(f"{resource}\0{task_id}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def read_history(run: Place) -> History:
    """What the episodes of a run took, from five of its columns and a batch at a time.

    A failed episode says nothing about its task. One that was broken off took at least so long: it counts, or a task
    that is always too slow would pass for a quick one. Raises UserError when there is no run or no such episode.
    """
    try:
        dataset = cast(Any, open_table(run)).to_pyarrow_dataset()
    except UserError as error:
        raise UserError(f"scheduler.history: {error}") from None
    parts = [_by_task(batch) for batch in dataset.to_batches(columns=_COLUMNS)]
    keys = np.concatenate([np.zeros(0, np.uint64), *(part[0] for part in parts)])
    if not len(keys):
        raise UserError(f"scheduler.history: {run}: holds no episode that has ended; expected a run with some")
    totals = np.concatenate([part[1] for part in parts])
    return History.of(keys, totals, np.concatenate([part[2] for part in parts]))


def _by_task(
    batch: pa.RecordBatch,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Digest, sum of seconds and number of episodes of every task in a batch."""
    compute = cast(Any, pc)
    table = cast(Any, pa.Table.from_batches([batch]))
    table = table.filter(compute.is_null(table["parent_episode_id"]))
    table = table.filter(compute.not_equal(table["status"], Status.FAILED.value))
    took = compute.cast(compute.subtract(table["finished_at"], table["started_at"]), pa.int64())
    table = table.append_column("took", took).filter(compute.greater(took, 0))
    sums = table.group_by(_BY_TASK).aggregate([("took", "sum"), ("took", "count")])
    names: Sequence[tuple[str, str]] = list(zip(sums["resource"].to_pylist(), sums["task_id"].to_pylist(), strict=True))
    keys = np.array([task_key(resource, task_id) for resource, task_id in names], np.uint64)
    return keys, sums["took_sum"].to_numpy() / 1e6, sums["took_count"].to_numpy()
