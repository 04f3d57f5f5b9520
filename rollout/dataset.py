"""The dataset of a run: a Delta table of Parquet files that is written, resumed from and read at the same time.

Runners write files; one committer (the driver) makes them part of the table. A file that is not committed does not
exist for any reader, so a dead runner's half-done work disappears by itself, and a runner that was given up but
still lives cannot add rows: nobody commits its files. Each commit carries the run's application transaction number:
committing the same number twice is refused by the table, whoever tries.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

from rollout.errors import RolloutError, UserError
from rollout.progress import Done
from rollout.rows import SCHEMA


class Fenced(RolloutError):
    """Another driver has taken the run over: this one must not commit any more."""


@dataclass(frozen=True, slots=True)
class RowFile:
    """A Parquet file that is written but not yet part of the table."""

    path: str
    """Relative to the table."""
    size: int
    rows: int


def write_file(table: str, rows: pa.Table) -> RowFile:
    """Writes rows as one zstd Parquet file into the table's folder and flushes it to the disk.

    Raises OSError when the disk is full; whatever it raises, no partial file stays behind.
    """
    name = f"part-{uuid4().hex}.parquet"
    path = Path(table) / name
    try:
        with path.open("wb") as file:
            pq.write_table(rows, file, compression="zstd")  # pyright: ignore[reportUnknownMemberType]
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return RowFile(name, path.stat().st_size, rows.num_rows)


class Committer:
    """The one writer of a run's table."""

    def __init__(self, folder: str, run_id: str) -> None:
        """Opens the table at `folder`, creating it when there is none.

        Raises UserError when the folder can hold none (Delta reads %20 and the like in a path as one character),
        RolloutError when the disk is full.
        """
        self.folder = folder
        self._run_id = run_id
        try:
            DeltaTable.create(folder, schema=SCHEMA, mode="ignore", name="episodes")
            self._table = DeltaTable(folder)
        except (DeltaError, OSError) as error:
            line = f"{folder}: cannot hold the dataset: {_one_line(error)}"
            if "No space left" in line:  # which no other run.dir would mend; delta-rs gives no errno
                raise RolloutError(line) from error
            raise UserError(f"run.dir: {line}") from error
        self._last = self._table.transaction_version(run_id) or 0

    @property
    def last(self) -> int:
        """Number of the last commit of this run."""
        return self._last

    def commit(self, files: Sequence[RowFile]) -> None:
        """Makes the files part of the table, all or none.

        Raises Fenced when another driver has committed since, OSError when the disk is full, RolloutError when the
        table is damaged or gone.
        """
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            AddAction(file.path, file.size, {}, now, True, json.dumps({"numRecords": file.rows})) for file in files
        ]
        number = self._last + 1
        properties = CommitProperties(app_transactions=[Transaction(self._run_id, number)])
        try:
            self._table.create_write_transaction(actions, "append", self._table.schema(), commit_properties=properties)
        except CommitFailedError as error:
            raise Fenced(f"{self.folder}: another driver commits to this run: {_one_line(error)}") from error
        except DeltaError as error:
            raise RolloutError(f"{self.folder}: cannot commit: {_one_line(error)}") from error
        except OSError as error:
            raise OSError(_one_line(error)) from error
        self._last = number
        self._table.update_incremental()

    def done(self, samples_per_task: int) -> Done:
        """Which samples have a row, from the table itself."""
        rows = cast(Any, self._table).to_pyarrow_dataset()
        done = Done()
        for batch in rows.to_batches(columns=["task_index", "sample_index"]):
            tasks, samples = batch["task_index"].to_numpy(), batch["sample_index"].to_numpy()
            kept = samples < samples_per_task  # a run that was forced to another number of samples has others too
            done |= Done.of(tasks[kept] * samples_per_task + samples[kept])
        return done

    def discard_uncommitted(self) -> int:
        """Deletes files no commit names: what a driver or runner that died left behind. How many there were.

        Only for a run that is locked: nobody else may be writing.
        """
        kept = {Path(uri).name for uri in self._table.file_uris()}
        stray = [path for path in Path(self.folder).glob("part-*.parquet") if path.name not in kept]
        for path in stray:
            path.unlink()
        return len(stray)


def open_table(folder: Path) -> DeltaTable:
    """The table of a run for reading. Raises UserError when `folder` is no run."""
    try:
        return DeltaTable(str(folder / "episodes"))
    except TableNotFoundError:
        raise UserError(f"{folder}: no run here: expected {folder}/episodes") from None


def _one_line(error: Exception) -> str:
    """delta-rs writes a small coloured tree; the last branch is what happened."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).replace("↳", " ").splitlines()
    return ": ".join(stripped for line in lines if (stripped := line.strip())) or type(error).__name__
