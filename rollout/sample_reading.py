"""A run as training samples, in whole groups and in bounded memory, also while it is being written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.breaks import DRIFT, Breaks
from rollout.database import opened
from rollout.flat_turns import FIELDS
from rollout.leaves import leaves
from rollout.rows import task_group
from rollout.samples import COLUMNS, Choice, to_samples
from rollout.scores import find, overlaid
from rollout.storage import Place

pa = cast(Any, pyarrow)
"""It has no types."""
ROWS = 1024
_BATCH = 256
_WANTED = [*((name,) for name in COLUMNS if name != "turns"), *(("turns", *field) for field in FIELDS)]


def read_samples(
    run: Place,
    breaks: Breaks = "fork",
    *,
    drift: int = DRIFT,
    truncated: Choice = "keep",
    failed: Choice = "drop",
    dropped: Choice = "drop",
    group_rows: int | None = None,
    rows: int = ROWS,
    score: str | None = None,
) -> Iterator[Any]:
    """Tables of SAMPLES, each of whole groups. The choices are those of `to_samples`; each table has its `left_out`.
    `score` names a version of the scores (`rollout.scores`) that stands in for the recorded ones.

    What was committed when the reading began is read once, groups in the order in which they became complete. A group
    is whole with all the rows it has then, and comes with the groups of its children; with `group_rows`, smaller ones
    (of a run that goes on, say) are passed over. Held in memory are the groups that are begun and not complete, and
    about `rows` rows more. Raises UserError when there is no run at `run` and no such version.
    """
    choices: Any = {"drift": drift, "truncated": truncated, "failed": failed, "dropped": dropped}
    version = None if score is None else find(run, score)
    for table in read_groups(run, group_rows, rows, also=() if version is None else ("task_index",)):
        yield to_samples(overlaid(run, table, version), breaks, **choices)


def read_groups(run: Place, group_rows: int | None = None, rows: int = ROWS, also: Sequence[str] = ()) -> Iterator[Any]:
    """The rows behind `read_samples`: tables of COLUMNS and those in `also`, of whole groups that lie together, their
    samples in order."""
    with opened(run) as database:
        missing: Counter[str] = Counter()
        own: Counter[str] = Counter()
        for batch in leaves(database.files(), [("group_id",), ("parent_episode_id",)]):
            missing.update(_task_groups(batch))
            own.update(_counted(batch.filter(batch["parent_episode_id"].is_null())["group_id"]))
        if group_rows is not None:
            missing = Counter({group: count for group, count in missing.items() if own[group] >= group_rows})
        held: list[Any] = []
        whole = 0
        sizes = dict(missing)
        for batch in leaves(database.files(), [*_WANTED, *((name,) for name in also)], _BATCH):
            there = batch.filter(pa.array([group in sizes for group in _task_groups(batch)], pa.bool_()))
            held.append(there)
            for group, count in Counter(_task_groups(there)).items():
                missing[group] -= count
                whole += sizes[group] if not missing[group] else 0
            if whole >= rows:
                done, held = _split(held, missing)
                yield done
                whole = 0
        if whole:
            yield _split(held, missing)[0]


def _task_groups(rows: Any) -> list[str]:
    """The group of each row's task: of a child that of the sample it belongs to."""
    pairs = zip(rows["group_id"].to_pylist(), rows["parent_episode_id"].to_pylist(), strict=True)
    return [task_group(group, parent) for group, parent in pairs]


def _counted(groups: Any) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in groups.value_counts().to_pylist()}


def _split(held: list[Any], missing: Counter[str]) -> tuple[Any, list[Any]]:
    """The rows of groups of which none is missing, and the others."""
    table = pa.Table.from_batches(held)
    groups = table["group_id"].combine_chunks().dictionary_encode()
    whole = np.array([not missing[name] for name in _task_groups(table)], bool)
    places = np.flatnonzero(whole)
    order = np.lexsort((table["sample_index"].to_numpy()[places], np.asarray(groups.indices)[places]))
    return table.take(pa.array(places[order])), table.take(pa.array(np.flatnonzero(~whole))).to_batches()
