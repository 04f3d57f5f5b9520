"""Parts of nested columns, read from Parquet files without what lies beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import pyarrow.parquet as parquet  # pyright: ignore[reportMissingTypeStubs]

pq = cast(Any, parquet)
"""It has no types."""
Leaf = tuple[str, ...]
"""A column, or the path of a field in it; all that lies below is meant."""
_WRAPPERS = ("list", "element", "item")
"""What Parquet puts into the path of a nested column."""


def leaves(files: Iterable[Any], wanted: Sequence[Leaf], rows: int | None = None) -> Iterator[Any]:
    """Record batches of only these leaves: a row group each, or at most `rows` rows. A column of the same nested
    shape comes with fewer fields."""
    for file in files:
        opened = pq.ParquetFile(file)
        schema = opened.schema
        paths: list[str] = [schema.column(place).path for place in range(len(schema))]
        columns = [path for path in paths if any(_below(path, leaf) for leaf in wanted)]
        if rows is not None:
            yield from opened.iter_batches(rows, columns=columns, use_threads=False)
        else:
            yield from opened.read(columns=columns).to_batches()


def _below(path: str, leaf: Leaf) -> bool:
    return tuple(part for part in path.split(".") if part not in _WRAPPERS)[: len(leaf)] == leaf
