"""Committed rows for whoever reads them as a stream: in order, group by group, shared out, while they are written.

What is committed is one sequence of rows that only grows (`rollout.dataset.files_of`), so a place in it is a number
and stays true when files are merged. Readers that share a run each go through the whole sequence and keep the groups
that are theirs: nobody has to talk to anybody, and a group is never torn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from zlib import crc32

import pyarrow
import pyarrow.parquet

from rollout.dataset import RowFile, files_of, open_table
from rollout.errors import RolloutError, UserError
from rollout.rows import task_group
from rollout.run_folder import read_run
from rollout.storage import Place, folder, inside

BATCH_ROWS = 64
"""Rows that are decoded at a time."""
LOOK_SECONDS = 1.0
"""How often a follower looks for a commit."""
_FORKED: list[int] = []
os.register_at_fork(after_in_child=lambda: _FORKED.append(os.getpid()))
pa = cast(Any, pyarrow)
_parquet = cast(Any, pyarrow.parquet)
"""Their types are partial."""


@dataclass(frozen=True, slots=True)
class Share:
    """The groups of some readers among `of`: those whose number, drawn from the group's id, is in `numbers`."""

    numbers: tuple[int, ...] = (0,)
    of: int = 1

    def __post_init__(self) -> None:
        """Raises UserError for numbers that no reader has."""
        if self.of < 1 or not all(0 <= number < self.of for number in self.numbers):
            told = ", ".join(map(str, self.numbers))
            raise UserError(f"reader {told} of {self.of}: expected numbers from 0 to {self.of - 1}")

    def holds(self, group_id: str) -> bool:
        """Whether the group is theirs: the same answer in every process."""
        return crc32(group_id.encode()) % self.of in self.numbers


WHOLE = Share()
"""All groups."""


def committed(run: Place, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Batches of the rows that are committed now, from number `start` on, in the order of their commits.

    Holds one batch, and on an object store the file it is from. Raises UserError when there is no run, RolloutError
    when a file of it is gone.
    """
    if _FORKED:
        raise UserError(f"{run}: the table cannot be read in a forked process: start workers with 'spawn'")
    here, at, missing, end = folder(inside(run, "episodes")), start, "", None
    while end is None or at < end:
        files = files_of(open_table(run))
        end = sum(file.rows for file in files) if end is None else end
        for file, skipped in _from(files, at):
            try:
                for batch in _batches(here, file.path, skipped, columns):
                    yield batch.slice(0, end - at)
                    at += batch.num_rows
                    if at >= end:
                        return
            except OSError as error:  # merged into another since we listed them: the rows are where they were
                if missing == file.path:
                    raise RolloutError(f"{inside(here.place, file.path)}: {error.strerror or error}") from error
                missing = file.path
                break


def one_file(run: Place, path: str, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Batches of one file of the table, which merging keeps for `dataset.keep_hours` after it was listed."""
    return _batches(folder(inside(run, "episodes")), path, 0, columns)


def whole_groups(
    run: Place,
    share: Share = WHOLE,
    follow_seconds: float | None = None,
    *,
    columns: Sequence[str] | None = None,
    partial: bool = False,
) -> Iterator[Any]:
    """Tables of rows, each of one or more groups with all their rows, in the order in which groups got complete.

    The rows of children come with those of the task they belong to. `columns` chooses some of the rows' columns,
    `group_id` and `parent_episode_id` among them.
    With `follow_seconds` it goes on with what is committed from now on, until nothing was for so long. With `partial`
    the groups that have not all their rows at the end come last; otherwise they are left out: the rest of them may
    still be played. Holds the rows of groups that have begun and are not complete, which are about as many as the run
    had in flight. Raises as `committed` does.
    """
    gathered = _Gathered(read_run(run).config["run"], share)
    at, news = 0, time.monotonic()
    while True:
        before = at
        for batch in committed(run, at, columns):
            at += batch.num_rows
            if (table := gathered.take(batch)) is not None:
                yield table
        if (table := gathered.settle()) is not None:
            yield table
        if at > before:
            news = time.monotonic()  # what the reader did with it meanwhile is no silence of the run
        if follow_seconds is None or time.monotonic() - news >= follow_seconds:
            break
        time.sleep(min(LOOK_SECONDS, follow_seconds))
    if partial and (table := gathered.rest()) is not None:
        yield table


@dataclass(slots=True)
class _Gathered:
    """Rows that wait for the others of their group."""

    config: dict[str, Any]
    share: Share
    waiting: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    held: str | None = None
    """The group at the end of the last batch: rows of its children may come with the next."""

    @property
    def size(self) -> int:
        """Rows of a group, without its children."""
        return self.config["samples_per_task"] + self.config["over_sample"]

    def take(self, batch: Any) -> Any:
        """The groups that the batch completes, as one table; None when it completes none."""
        if not batch.num_rows:
            return None
        places: dict[str, list[int]] = {}
        parents = batch["parent_episode_id"].to_pylist()
        for place, (group_id, parent) in enumerate(zip(batch["group_id"].to_pylist(), parents, strict=True)):
            if self.share.holds(group := task_group(group_id, parent)):
                places.setdefault(group, []).append(place)
        size = self.size
        complete: list[Any] = []
        last = task_group(batch["group_id"][-1].as_py(), parents[-1])
        if self.held is not None and self.held != last:
            places.setdefault(self.held, [])
        for group_id, own in places.items():
            parts = self.waiting.setdefault(group_id, [])
            if own:
                parts.append(batch.take(pa.array(own)))  # a copy: a view would hold the whole batch
            if group_id != last and sum(part["parent_episode_id"].null_count for part in parts) >= size:
                complete += self.waiting.pop(group_id)
        self.held = last if last in self.waiting else None
        return pa.Table.from_batches(complete) if complete else None

    def settle(self) -> Any:
        """The group that the last batch completed, if it did: what is committed ends with the last of its children."""
        held, self.held = self.held, None
        if held is None or sum(part["parent_episode_id"].null_count for part in self.waiting[held]) < self.size:
            return None
        return pa.Table.from_batches(self.waiting.pop(held))

    def rest(self) -> Any:
        """What has not become complete, group by group; None when there is nothing."""
        left = [part for parts in self.waiting.values() for part in parts]
        return pa.Table.from_batches(left) if left else None


def _from(files: list[RowFile], at: int) -> Iterator[tuple[RowFile, int]]:
    """The files that hold row `at` and those after it, each with how many of its rows come before."""
    passed = 0
    for file in files:
        if passed + file.rows > at:
            yield file, max(0, at - passed)
        passed += file.rows


def _batches(here: Any, path: str, skipped: int, columns: Sequence[str] | None) -> Iterator[Any]:
    wanted = None if columns is None else list(columns)
    with here.open(path) as source:
        for batch in _parquet.ParquetFile(source).iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
            if skipped < batch.num_rows:
                yield batch.slice(skipped)
            skipped = max(0, skipped - batch.num_rows)
