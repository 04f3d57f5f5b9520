"""A run as torch, Hugging Face datasets and Ray Data take it: finished or still being written, in a line each.

All of them give training samples (`rollout.samples.SAMPLES`), made where they are read; `samples` chooses how rows
become them. docs/feeding.md shows each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from actors.foreign import imported
from rollout.dataset import files_of, open_table
from rollout.feeding import Share, one_file, whole_groups
from rollout.rows import SCHEMA
from rollout.samples import COLUMNS, SAMPLES, to_samples
from rollout.storage import Place, absolute

ToSamples = Callable[[pa.Table], pa.Table]
_TENSORS = {name for name in SAMPLES.names if pa.types.is_list(SAMPLES.field(name).type)} - {"versions"}


class TorchSamples(IterableDataset[Any]):
    """See torch_samples."""

    def __init__(self, run: Place, follow_seconds: float | None, samples: ToSamples, rank: int, ranks: int) -> None:
        super().__init__()
        self._run = absolute(run)  # workers may be started elsewhere
        self._follow, self._samples = follow_seconds, samples
        self._rank, self._ranks = rank, ranks

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        # The groups of a rank are the same however many workers it or others have.
        share = Share((self._rank + self._ranks * number,), self._ranks * count)
        for table in _tables(self._run, share, self._follow, self._samples):
            yield from _with_tensors(table)


def torch_samples(
    run: Place,
    *,
    follow_seconds: float | None = None,
    samples: ToSamples = to_samples,
    rank: int | None = None,
    ranks: int | None = None,
) -> TorchSamples:
    """An IterableDataset of samples as dictionaries: per-token columns are tensors, the others plain values.

    The samples of a group follow one another and come from one DataLoader worker of one rank (torch.distributed's
    where it is initialised). Lengths differ, so a DataLoader needs `batch_size=None` or a `collate_fn`; its workers
    have to be spawned (`multiprocessing_context="spawn"`). With `follow_seconds` it goes on with what is committed
    until nothing was for so long. Ranks get different numbers of samples.
    """
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = (torch.distributed.get_rank() if joined else 0) if rank is None else rank
    ranks = (torch.distributed.get_world_size() if joined else 1) if ranks is None else ranks
    Share((rank,), ranks)  # a wrong number is told here, not in a worker
    return TorchSamples(run, follow_seconds, samples, rank, ranks)


def hf_samples(
    run: Place, *, shards: int = 8, follow_seconds: float | None = None, samples: ToSamples = to_samples
) -> Any:
    """A `datasets.IterableDataset` of samples. `split_dataset_by_node` and DataLoader workers divide its shards.

    A group is in one shard. Each reader goes through the whole run once, however many of the shards it has, so
    more of them cost nothing. Raises UserError when `datasets` is not installed.
    """
    datasets = imported("datasets", "datasets")
    return datasets.IterableDataset.from_generator(
        _shards,
        features=datasets.Features.from_arrow_schema(SAMPLES),
        gen_kwargs={
            "shards": list(range(shards)),
            "run": absolute(run),
            "of": shards,
            "follow_seconds": follow_seconds,
            "samples": samples,
        },
    )


def ray_samples(run: Place, *, samples: ToSamples = to_samples) -> Any:
    """A Ray Dataset of the samples of all rows that are committed now: a task a file, read where Ray likes.

    Groups are where their rows are, which may be in several files: `groupby("group_id")` brings them together.
    Raises UserError when Ray Data is not installed.
    """
    return ray_rows(run, _columns(samples)).map_batches(samples, batch_size=None, batch_format="pyarrow")


def ray_rows(run: Place, columns: Sequence[str] | None = None) -> Any:
    """The same of the rows themselves, or of some of their columns."""
    data = imported("ray.data", "'ray[data]'")
    files = [{"path": file.path} for file in files_of(open_table(run))]
    if not files:
        return data.from_arrow(cast(Any, SCHEMA).empty_table().select(list(columns or SCHEMA.names)))
    read = partial(_read, run=absolute(run), columns=columns)
    return data.from_items(files, override_num_blocks=len(files)).map_batches(read, batch_size=1)


def _shards(
    shards: list[int], run: str, of: int, follow_seconds: float | None, samples: ToSamples
) -> Iterator[dict[str, Any]]:
    for table in _tables(run, Share(tuple(shards), of), follow_seconds, samples):
        yield from table.to_pylist()


def _tables(run: str, share: Share, follow_seconds: float | None, samples: ToSamples) -> Iterator[pa.Table]:
    for rows in whole_groups(run, share, follow_seconds, columns=_columns(samples)):
        yield samples(rows)


def _columns(samples: ToSamples) -> tuple[str, ...] | None:
    """What of a row has to be read; a function of somebody else may want anything."""
    return COLUMNS if samples is to_samples else None


def _with_tensors(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Samples of a table; what there is of each token never becomes Python objects."""
    arrays = {name: table[name].combine_chunks() for name in table.column_names if name in _TENSORS}
    for number, sample in enumerate(table.drop_columns(list(arrays)).to_pylist()):
        yield sample | {name: _tensor(array[number]) for name, array in arrays.items()}


def _tensor(value: Any) -> torch.Tensor | None:
    return torch.tensor(value.values.to_numpy(zero_copy_only=False)) if value.is_valid else None


def _read(batch: dict[str, Any], run: str, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    for path in batch["path"]:
        for rows in one_file(run, str(path), columns):
            yield pa.Table.from_batches([rows])
