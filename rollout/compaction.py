"""Small files of the table into large ones: which, and how; `Committer.replace` puts them in place.

A run that commits every few seconds leaves tens of thousands of small files, and every commit, reader and resume pays
for each. Merging is done a step at a time while the run goes on. A step that breaks off, or whose process is killed,
has changed nothing: its file is named by no commit.

The plan is that of log-structured merge trees (O'Neil et al. 1996) with two levels, so that a row is rewritten a few
times at most and files keep the order of their commits.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, cast
from uuid import uuid4

import pyarrow.parquet
from pyarrow import Table

from rollout.dataset import RowFile
from rollout.rows import SCHEMA
from rollout.storage import folder

ROW_GROUP_BYTES = 16 << 20
"""Of a row group in memory, not in the file: large enough to read fast, small enough for reader and driver,
however well the rows compress."""
_FIRST_LEVEL = 16
"""Files are merged up to this fraction of the largest size first: only so much is rewritten again and again."""
_BATCH_ROWS = 256
_LARGE_BYTES = 1 << 20
"""A smaller merge takes less memory and time than a process of its own. With 8 MiB the driver of 100,000 episodes went
from 195 to 263 MiB and once to 350, with 1 it stays at 202."""
_LOOK_SECONDS = 0.2
_parquet = cast(Any, pyarrow.parquet)
"""Its types are partial."""


def due(files: Sequence[RowFile], largest: int, count: int) -> Sequence[RowFile]:
    """Neighbours that should be one file now; none when there are fewer than `count` small ones in a row.

    `files` are in the order of their commits, `largest` is in bytes: a file that has reached it is left alone, and
    a step reads less than twice as much.
    """
    for limit in (largest // _FIRST_LEVEL, largest):
        for run in _small(files, limit):
            enough = limit < largest or sum(file.size for file in run) >= largest  # a large file is made only once
            if len(run) >= max(count, 2) and enough:
                return _first(run, limit)
    return ()


def merge(table: str, files: Sequence[RowFile], go_on: Callable[[], bool] = lambda: True) -> RowFile | None:
    """Writes the rows of the files, in order, as one file that is not yet part of the table.

    None when `go_on` said no in between. Raises OSError when the disk is full or a file is gone, ArrowException when
    one is damaged; whatever comes of it, no partial file stays behind.
    """
    name, here = f"part-{uuid4().hex}.parquet", folder(table)
    rows = sum(file.rows for file in files)
    try:
        with here.write(name) as file:
            with _parquet.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
                for group in _groups(_batches(here, files, go_on)):
                    writer.write_table(group, row_group_size=group.num_rows)
            size = file.tell()
    except _Stopped:
        return None
    finally:
        pyarrow.default_memory_pool().release_unused()  # the driver's memory follows what is in flight
    return RowFile(name, size, rows)


def merge_apart(
    table: str, files: Sequence[RowFile], go_on: Callable[[], bool], large: int = _LARGE_BYTES
) -> RowFile | None:
    """`merge`, in a process of its own where the files have `large` bytes: what it takes of memory is gone with it.

    Raises as `merge` does, and OSError with what the process said last when it ended otherwise.
    """
    if sum(file.size for file in files) < large:
        return merge(table, files, go_on)
    command, pipe = [sys.executable, "-m", "rollout.compaction"], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        assert child.stdin and child.stdout and child.stderr
        child.stdin.write(json.dumps([table, [asdict(file) for file in files]]) + "\n")
        child.stdin.flush()
        while child.poll() is None:
            if not go_on():
                child.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_LOOK_SECONDS)
        said, complaint = child.stdout.read(), child.stderr.read()
    if child.returncode:
        raise OSError((complaint.strip().splitlines() or [f"a merge ended with {child.returncode}"])[-1])
    made = json.loads(said)
    return None if made is None else RowFile(**made)


def _apart() -> None:
    """The process of `merge_apart`: one line in, one out. It gives up when its input is closed, by a driver that stops
    or by the end of a driver that was killed."""
    table, files = json.loads(sys.stdin.readline())
    made = merge(table, [RowFile(**file) for file in files], lambda: not select.select([sys.stdin], [], [], 0)[0])
    print(json.dumps(None if made is None else asdict(made)))


class _Stopped(Exception):
    """Somebody wants the step to end."""


def _small(files: Sequence[RowFile], limit: int) -> Iterator[list[RowFile]]:
    """Runs of neighbours that are all smaller than `limit`."""
    run: list[RowFile] = []
    for file in files:
        if file.size < limit:
            run.append(file)
        else:
            yield run
            run = []
    yield run


def _first(run: Sequence[RowFile], limit: int) -> Sequence[RowFile]:
    """So many from the start that together they reach `limit`."""
    total = 0
    for number, file in enumerate(run, 1):
        total += file.size
        if total >= limit and number > 1:
            return run[:number]
    return run


def _batches(here: Any, files: Sequence[RowFile], go_on: Callable[[], bool]) -> Iterator[Any]:
    for file in files:
        with here.open(file.path) as source:
            for batch in _parquet.ParquetFile(source).iter_batches(_BATCH_ROWS, use_threads=False):
                if not go_on():
                    raise _Stopped
                yield batch


def _groups(batches: Iterator[Any]) -> Iterator[Any]:
    """Batches gathered to row groups: a group that ended where a file did would be as small as the file."""
    waiting: list[Any] = []
    held = 0
    for batch in batches:
        waiting.append(batch)
        held += batch.nbytes
        if held >= ROW_GROUP_BYTES:
            yield cast(Any, Table).from_batches(waiting)
            waiting, held = [], 0
    if waiting:
        yield cast(Any, Table).from_batches(waiting)


if __name__ == "__main__":
    _apart()
