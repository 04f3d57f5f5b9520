"""Groups on their way to a trainer: rows come in as they are committed, whole groups go out, the oldest first.

Only what decides about a group is kept, never its turns; of a group that was read or set aside nothing is kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, cast

import pyarrow as arrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.dataset as arrow_dataset  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as parquet  # pyright: ignore[reportMissingTypeStubs]
from deltalake import DeltaTable

from rollout.rows import task_group
from rollout.storage import folder

pa, pq, dataset = cast(Any, arrow), cast(Any, parquet), cast(Any, arrow_dataset)
"""They have no types."""

_HEAD = ("task_index", "group_id", "reward", "step", "version_min", "parent_episode_id")
By = Literal["start", "token"]
"""What a group's age is counted from: the weights when the oldest of its episodes began, or its oldest token."""


class Verdict(StrEnum):
    """What became of a group."""

    GIVEN = "given"
    """A trainer has it."""
    TRAINED = "trained"
    """The trainer that had it has asked for more, published, or said so."""
    STALE = "stale"
    """Too many versions old when it could have been read."""
    FILTERED = "filtered"
    """All its rewards are equal: it would teach nothing."""
    INCOMPLETE = "incomplete"
    """Fewer of its episodes have a reward than a group is to have."""
    RETURNED = "returned"
    """The trainer died with it, or came back with a checkpoint of before: it is to be read again."""


@dataclass(frozen=True, slots=True)
class Head:
    """What of a row decides about its group."""

    task_index: int
    group_id: str
    reward: float | None
    """None for rows that no trainer can use: failed, dropped."""
    step: int | None
    version: int | None
    """Of its oldest token."""
    child: bool = False
    """No sample of its own: its tokens are as old as they are, and nothing else counts."""


@dataclass(slots=True)
class Ready:
    """A group that has all its rows, or is getting them."""

    task_index: int
    group_id: str
    files: set[str] = field(default_factory=set[str])
    rows: int = 0
    rewards: list[float] = field(default_factory=list[float])
    oldest: int | None = None
    """Version its age is counted from; None where no row tells one."""

    def behind(self, version: int) -> int:
        """How many versions old it is."""
        return 0 if self.oldest is None else version - self.oldest


@dataclass(slots=True)
class Shelf:
    """The groups of a run that no trainer has got yet."""

    size: int
    """Rows of a group,"""
    wanted: int
    """of which so many must have a reward."""
    by: By
    keeps_equal: bool = False
    """Groups whose rewards are all equal are for trainers too."""
    _open: dict[int, Ready] = field(default_factory=dict[int, Ready])
    _ready: dict[int, Ready] = field(default_factory=dict[int, Ready])

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, file: str, heads: Iterable[Head]) -> list[tuple[Ready, Verdict]]:
        """Takes in the rows of a committed file. Groups that are whole now and for no trainer come back."""
        aside: list[tuple[Ready, Verdict]] = []
        for head in heads:
            group = self._open.setdefault(head.task_index, Ready(head.task_index, head.group_id))
            group.files.add(file)
            group.rows += not head.child
            if head.reward is not None:
                group.rewards += () if head.child else (head.reward,)
                age = head.step if self.by == "start" else head.version
                known = [one for one in (group.oldest, age) if one is not None]
                group.oldest = min(known, default=None)
            if group.rows == self.size:
                del self._open[head.task_index]
                if (verdict := self._judge(group)) is None:
                    self._ready[head.task_index] = group
                else:
                    aside.append((group, verdict))
        return aside

    def stale(self, version: int, max_behind: int) -> list[Ready]:
        """Takes out the groups that are too old for a trainer whose weights have this version."""
        old = [group for group in self._ready.values() if group.behind(version) > max_behind]
        for group in old:
            del self._ready[group.task_index]
        return old

    def first(self, groups: int) -> list[Ready]:
        """The groups of the oldest weights, of equals those that were whole first; they stay on the shelf."""
        return heapq.nsmallest(groups, self._ready.values(), key=lambda group: group.oldest or 0)

    def take(self, groups: Sequence[Ready]) -> None:
        """They have been read."""
        for group in groups:
            del self._ready[group.task_index]

    def _judge(self, group: Ready) -> Verdict | None:
        if len(group.rewards) < self.wanted:
            return Verdict.INCOMPLETE
        equal = self.wanted > 1 and min(group.rewards) == max(group.rewards)
        return Verdict.FILTERED if equal and not self.keeps_equal else None


def read_heads(table: str, file: str) -> list[Head]:
    """Heads of the rows of one file of a run's table, children first: their parents may make a group whole. Raises
    OSError."""
    with folder(table).open(file) as source:
        rows = pq.read_table(source, columns=list(_HEAD))
    return sorted(map(_head, rows.to_pylist()), key=lambda head: not head.child)


def _head(row: dict[str, Any]) -> Head:
    parent = row["parent_episode_id"]
    group, version = task_group(row["group_id"], parent), _number(row["version_min"])
    return Head(row["task_index"], group, row["reward"], row["step"], version, parent is not None)


def _number(version: str | None) -> int | None:
    return int(version) if version is not None and version.isdecimal() else None


def read_groups(table: str, groups: Sequence[Ready]) -> Any:
    """All rows of these groups as a table: group after group, samples in order. Raises OSError.

    From the files that held the rows when they were committed; where a merge has replaced those since and they are
    deleted, from the run's table.
    """
    wanted = pa.array([group.task_index for group in groups])
    chosen = dataset.field("task_index").isin(wanted)
    try:
        parts = [_rows_of(table, file, chosen) for file in sorted({file for group in groups for file in group.files})]
    except OSError:
        parts = [cast(Any, DeltaTable(table)).to_pyarrow_dataset().to_table(filter=chosen)]
    rows = pa.concat_tables(parts)
    place = {group.task_index: number for number, group in enumerate(groups)}
    indexes, samples = rows["task_index"].to_pylist(), rows["sample_index"].to_pylist()
    order = sorted(range(rows.num_rows), key=lambda row: (place[indexes[row]], samples[row]))
    return rows.take(pa.array(order, pa.int64()))


def _rows_of(table: str, file: str, chosen: Any) -> Any:
    with folder(table).open(file) as source:
        return pq.read_table(source, filters=chosen)
