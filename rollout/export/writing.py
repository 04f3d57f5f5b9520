"""Writes projected rows as they come, into one file that is there whole or not at all, in bounded memory."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as pq

from rollout.storage import Place, folder, is_remote

pa = cast(Any, pyarrow)
_ROWS = 32
"""Rows that are Python objects at once."""
_GROUP = 32 << 20
"""Bytes of Arrow memory after which a row group is written."""


def write_parquet(path: Place, rows: Iterable[dict[str, Any]], schema: Any) -> None:
    """Writes rows as a zstd Parquet file. Raises OSError, and whatever `rows` raises."""
    with _whole(path) as file, cast(Any, pq).ParquetWriter(file, schema, compression="zstd") as writer:
        for table in _tables(iter(rows), schema):
            writer.write_table(table)


def write_jsonl(path: Place, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as JSON lines. Raises OSError, and whatever `rows` raises."""
    encode = msgspec.json.Encoder(enc_hook=_plain).encode
    with _whole(path) as file:
        for row in rows:
            file.write(encode(row) + b"\n")


def _tables(rows: Iterator[dict[str, Any]], schema: Any) -> Iterator[Any]:
    held: list[Any] = []
    while some := list(islice(rows, _ROWS)):
        held.append(pa.Table.from_pylist(some, schema=schema))
        if sum(table.nbytes for table in held) >= _GROUP:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _plain(value: Any) -> Any:
    """float32 becomes the double of the same value, so that nothing is lost."""
    if isinstance(value, np.ndarray):
        return cast(Any, value).tolist()
    raise TypeError(f"{type(value).__name__} has no JSON")


@contextmanager
def _whole(path: Place) -> Generator[IO[bytes]]:
    """A file that takes its name when it is complete: what stood there before stays until then."""
    if is_remote(path):
        place, _, name = str(path).rpartition("/")
        with folder(place).write(name) as file:
            yield file
        return
    target = Path(path)
    draft = target.with_name(f".{target.name}.new")
    with folder(target.parent).write(draft.name) as file:
        yield file
    draft.replace(target)
