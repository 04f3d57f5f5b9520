"""What a trainer has read of a run: a small Delta table RUN/reads/TRAINER, the truth that a cursor points into.

Rows are only added. A group's last row says what became of it; a group without one is still to be read. What a pull
gives is written down before the trainer has it. A cursor is the number of a pull: who comes back with one has trained
what was read until then and gets again what was read after it; who comes back without one gets again what it had not
acknowledged.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from rollout.errors import RolloutError, UserError
from rollout.shelf import Ready, Verdict
from rollout.storage import Place, absolute, inside

pa = cast(Any, pyarrow)
"""It has no types."""

READS = pa.schema(
    [
        pa.field("number", pa.int64()),  # of the row in this table, from 0
        pa.field("group_id", pa.string()),
        pa.field("task_index", pa.int64()),
        pa.field("verdict", pa.string()),
        pa.field("version", pa.int64()),  # of the weights when it was given
        pa.field("behind", pa.int64()),  # how many versions old the group was then
        pa.field("pull", pa.int64()),  # number of the last pull by then, from 1
        pa.field("time", pa.timestamp("us", tz="UTC")),
    ]
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_MANY_FILES = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One verdict."""

    group: Ready
    verdict: Verdict
    version: int
    pull: int


class Reads:
    """The reads of one trainer. One process writes: the one that holds the run."""

    def __init__(self, run: Place, trainer: str) -> None:
        """Opens the table, making it when there is none. Raises UserError for a name that can be no folder."""
        if not _NAME.fullmatch(trainer):
            raise UserError(f"trainer: '{trainer}': expected letters, digits, - and _ that begin with a letter")
        self.trainer = trainer
        self.place = absolute(inside(inside(run, "reads"), trainer))
        self.pull = 0
        """Number of the last pull that has a verdict."""
        self._next = 0
        self._last: dict[int, tuple[str, str, int]] = {}
        try:
            DeltaTable.create(self.place, READS, mode="ignore", name="reads")
            table = DeltaTable(self.place)
            if len(table.file_uris()) > _MANY_FILES:
                table.optimize.compact()
            rows = cast(Any, table).to_pyarrow_dataset().to_table().sort_by("number").to_pylist()
        except (DeltaError, OSError) as error:
            raise RolloutError(f"{self.place}: cannot be used: {error}") from error
        for row in rows:
            self._last[row["task_index"]] = row["verdict"], row["group_id"], row["pull"]
            self.pull, self._next = max(self.pull, row["pull"]), row["number"] + 1

    def cursor(self, pull: int) -> str:
        """What a checkpoint stores: everything that was read up to this pull is in it."""
        return f"{self.trainer}/{pull}"

    def come_back(self, cursor: str | None, version: int) -> int:
        """Decides about what a trainer of before was given; how many groups are to be read again.

        Raises UserError for a cursor that this table never gave.
        """
        trained = None if cursor is None else self._number(cursor)
        entries: list[Entry] = []
        for index, (verdict, group_id, pull) in self._last.items():
            if verdict == Verdict.GIVEN or (verdict == Verdict.TRAINED and trained is not None and pull > trained):
                kept = trained is not None and pull <= trained
                now = Verdict.TRAINED if kept else Verdict.RETURNED
                entries.append(Entry(Ready(index, group_id), now, version, pull))
        self.write(entries)
        for entry in entries:
            self._last[entry.group.task_index] = entry.verdict.value, entry.group.group_id, entry.pull
        return sum(entry.verdict is Verdict.RETURNED for entry in entries)

    def _number(self, cursor: str) -> int:
        trainer, _, number = cursor.rpartition("/")
        if trainer != self.trainer or not number.isdecimal() or int(number) > self.pull:
            known = f"{self.cursor(0)} to {self.cursor(self.pull)}"
            raise UserError(f"resume: '{cursor}': no cursor of this run and trainer; there are {known}")
        return int(number)

    def settled(self) -> set[int]:
        """Task indexes of the groups that are not to be read any more. Forgets them: ask once."""
        last, self._last = self._last, {}
        return {index for index, (verdict, _, _) in last.items() if verdict != Verdict.RETURNED}

    def write(self, entries: Sequence[Entry]) -> None:
        """Adds verdicts, all or none. Raises RolloutError when they cannot be kept. Blocks for a disk."""
        if not entries:
            return
        rows = list(self._rows(entries))
        try:
            write_deltalake(self.place, pa.Table.from_pylist(rows, schema=READS), mode="append")
        except (DeltaError, OSError) as error:
            raise RolloutError(f"{self.place}: cannot write: {error}") from error
        self._next += len(rows)
        for entry in entries:
            self.pull = max(self.pull, entry.pull)

    def _rows(self, entries: Iterable[Entry]) -> Iterable[dict[str, Any]]:
        now = int(time.time() * 1e6)
        for number, entry in enumerate(entries, self._next):
            yield {
                "number": number,
                "group_id": entry.group.group_id,
                "task_index": entry.group.task_index,
                "verdict": entry.verdict.value,
                "version": entry.version,
                "behind": entry.group.behind(entry.version),
                "pull": entry.pull,
                "time": now,
            }
