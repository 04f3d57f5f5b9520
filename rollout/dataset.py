"""The dataset of a run: a Delta table of Parquet files that is written, resumed from and read at the same time.

Runners write files; one committer (the driver) makes them part of the table. A file that is not committed does not
exist for any reader, so a dead runner's half-done work disappears by itself, and a runner that was given up but
still lives cannot add rows: nobody commits its files. Each commit carries the run's application transaction number:
committing the same number twice is refused by the table, whoever tries. A driver that takes a run over commits the
next number before it deletes anything, so that no older driver can name a file any more that is gone.

What keeps commits as fast at the ten-thousandth as at the first is decided in decisions/0009.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, PostCommitHookProperties, RemoveAction, Transaction

from rollout.errors import RolloutError, UserError
from rollout.progress import Done
from rollout.rows import SCHEMA
from rollout.storage import Place, folder, inside

CHECKPOINT_COMMITS = 20
"""A commit replays what came after the last checkpoint: with delta-rs's own 100 that is most of what it costs."""
KEEP_HOURS = 2
_HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
"""Cleaning lists the whole log, which at every commit costs more than the commit: `sweep` does it."""


class Fenced(RolloutError):
    """Another driver has taken the run over: this one must not commit any more."""


@dataclass(frozen=True, slots=True)
class RowFile:
    """A Parquet file that is written but not yet part of the table."""

    path: str
    """Relative to the table."""
    size: int
    rows: int
    since: int = 0
    """For a file of the table: when its first row was committed, in milliseconds; files in this order are in the order
    of their commits."""


def write_file(table: str, rows: pa.Table) -> RowFile:
    """Writes rows as one zstd Parquet file into the table's folder, durably.

    Raises OSError when the disk is full; whatever it raises, no partial file stays behind.
    """
    name = f"part-{uuid4().hex}.parquet"
    with folder(table).write(name) as file:
        pq.write_table(rows, file, compression="zstd")  # pyright: ignore[reportUnknownMemberType]
        size = file.tell()
    return RowFile(name, size, rows.num_rows)


class Committer:
    """The one writer of a run's table, or of another that is written as it is."""

    def __init__(self, place: str, run_id: str, schema: pa.Schema = SCHEMA) -> None:
        """Opens the table at `place`, creating it when there is none. Transactions are numbered for `run_id`.

        Raises UserError when the folder can hold none (Delta reads %20 and the like in a path as one character),
        RolloutError when the disk is full.
        """
        self.folder = place
        self._run_id = run_id
        try:
            name = place.rstrip("/").rpartition("/")[2]
            DeltaTable.create(place, schema, mode="ignore", name=name, configuration=_properties(KEEP_HOURS))
            self._table = DeltaTable(place)
        except (DeltaError, OSError) as error:
            line = f"{place}: cannot hold the dataset: {_one_line(error)}"
            if "No space left" in line:  # which no other run.dir would mend; delta-rs gives no errno
                raise RolloutError(line) from error
            raise UserError(f"run.dir: {line}") from error
        self._last = self._table.transaction_version(run_id) or 0
        self._since = max((file.since for file in self.files()), default=0)

    @property
    def last(self) -> int:
        """Number of the last commit of this run."""
        return self._last

    def cost(self) -> float:
        """USD that the committed rows cost, as far as it is known."""
        rows = cast(Any, self._table).to_pyarrow_dataset().to_table(columns=["cost"])
        return float(np.nansum(rows["cost"].to_numpy()))

    def files(self) -> list[RowFile]:
        """The files of the table, in the order of their commits."""
        return files_of(self._table)

    def commit(self, files: Sequence[RowFile]) -> None:
        """Makes the files part of the table, all or none.

        Raises Fenced when another driver has committed since, OSError when the disk is full, RolloutError when the
        table is damaged or gone.
        """
        since = max(int(time.time() * 1000), self._since + 1)  # in order whatever the clock does
        # Each later than the one before: the order of rows is the same for whoever looks, also after a merge.
        self._write([_add(file, since + number, new=True) for number, file in enumerate(files)])
        self._since = since + max(len(files) - 1, 0)

    def replace(self, old: Sequence[RowFile], new: RowFile) -> None:
        """Puts one file that holds the same rows in the place of others, for every reader at once.

        The commit says that no data changed: who reads only what each commit added does not see the rows again. The
        old files stay where they are for those that opened the table before. Raises as `commit` does.
        """
        now = int(time.time() * 1000)
        assert sum(file.rows for file in old) == new.rows, "a rewrite keeps all rows"
        removed = [RemoveAction(file.path, False, now, file.size) for file in old]
        self._write([*removed, _add(new, min(file.since for file in old), new=False)])

    def take_over(self, keep_hours: int = KEEP_HOURS) -> int:
        """Makes this the run's only driver and deletes what others left uncommitted. How many files that were.

        Whoever drove the run until now is refused at its next commit; so may commit what it likes no more, and
        deleting is safe. Raises as `commit` does.
        """
        self._write([])
        properties = _properties(keep_hours)
        if self._table.metadata().configuration != properties:
            self._table.alter.set_table_properties(properties)
        return self.discard_uncommitted()

    def sweep(self, keep_hours: int) -> None:
        """Deletes files that were replaced, and entries of the table's log, longer than `keep_hours` ago.

        Needs no commit of the run: it can go on beside `commit` in another thread. Raises OSError or DeltaError.
        """
        table = DeltaTable(self.folder)
        table.vacuum(keep_hours, dry_run=False, enforce_retention_duration=False)
        table.cleanup_metadata()

    def done(self, samples_per_task: int) -> Done:
        """Which samples have a row, from the table itself. Children come and go with their parents' rows."""
        rows = cast(Any, self._table).to_pyarrow_dataset()
        done = Done()
        for batch in rows.to_batches(columns=["task_index", "sample_index"]):
            tasks, samples = batch["task_index"].to_numpy(), batch["sample_index"].to_numpy()
            kept = samples < samples_per_task  # a run that was forced to another number of samples has others too
            done |= Done.of(tasks[kept] * samples_per_task + samples[kept])
        return done

    def _write(self, actions: list[AddAction | RemoveAction]) -> None:
        number = self._last + 1
        properties = CommitProperties(app_transactions=[Transaction(self._run_id, number)])
        try:
            self._table.create_write_transaction(
                actions,
                "append",
                self._table.schema(),
                commit_properties=properties,
                post_commithook_properties=_HOOKS,
            )
        except CommitFailedError as error:
            raise Fenced(f"{self.folder}: another driver commits to this run: {_one_line(error)}") from error
        except DeltaError as error:
            raise RolloutError(f"{self.folder}: cannot commit: {_one_line(error)}") from error
        except OSError as error:
            raise OSError(_one_line(error)) from error
        self._last = number
        self._table.update_incremental()

    def discard_uncommitted(self) -> int:
        """Deletes files that nobody has committed or may still be reading. Only when nobody else writes. How many."""
        removed = self._table.vacuum(0, dry_run=True, enforce_retention_duration=False)  # lists, deletes nothing
        kept = {*removed, *(file.path for file in self.files())}
        here = folder(self.folder)
        stray = [name for name in here.names() if name.startswith("part-") and name not in kept]
        here.delete(stray)
        return len(stray)


def open_table(run: Place, name: str = "episodes") -> DeltaTable:
    """A table of a run for reading. Raises UserError when `run` has none of that name."""
    place = inside(run, name)
    try:
        return DeltaTable(place)
    except TableNotFoundError:
        raise UserError(f"{run}: no run here: expected {place}") from None
    except (DeltaError, OSError) as error:  # an object store that cannot be reached, say
        raise UserError(f"{run}: cannot be read: {_one_line(error)}") from error


def files_of(table: DeltaTable) -> list[RowFile]:
    """The files of a table, in the order of their commits.

    Files are merged with their neighbours only and keep the order of their rows: what is committed is one sequence of
    rows that grows at its end, whichever files hold it.
    """
    actions = cast(Any, pa).table(table.get_add_actions(flatten=True))
    columns = [actions[name].to_pylist() for name in ("path", "size_bytes", "num_records", "modification_time")]
    return sorted((RowFile(*values) for values in zip(*columns, strict=True)), key=lambda file: file.since)


def _properties(keep_hours: int) -> dict[str, str]:
    """Of the table. A replaced file is remembered longer than it is kept, or `sweep` would miss it."""
    return {
        "delta.checkpointInterval": str(CHECKPOINT_COMMITS),
        "delta.logRetentionDuration": f"interval {keep_hours} hours",
        "delta.deletedFileRetentionDuration": f"interval {keep_hours + 24} hours",
    }


def _add(file: RowFile, since: int, new: bool) -> AddAction:
    return AddAction(file.path, file.size, {}, since, new, json.dumps({"numRecords": file.rows}))


def _one_line(error: Exception) -> str:
    """delta-rs writes a small coloured tree; the last branch is what happened."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).replace("↳", " ").splitlines()
    return ": ".join(stripped for line in lines if (stripped := line.strip())) or type(error).__name__
