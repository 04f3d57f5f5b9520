"""`rollout export`: from the rows of a run to the file of a trainer, as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.dataset import open_table
from rollout.errors import UserError
from rollout.export.chat import COLUMNS, Row
from rollout.export.forks import Chosen, Forks
from rollout.export.formats import ChatFormat, TokenFormat, find
from rollout.export.sample import samples_of
from rollout.export.writing import write_jsonl, write_parquet
from rollout.samples import to_samples
from rollout.storage import Place, inside

pa = cast(Any, pyarrow)
_SUFFIXES = (".parquet", ".jsonl")
_ROWS = 64
"""Episodes that are Python objects at once."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person chose; None: what the format says."""

    to: str
    out: Place | None = None
    forks: Forks | None = None
    min_reward: float | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, for the person to read."""

    path: str
    size: int
    lines: tuple[tuple[str, str], ...]


def export(run: Place, asked: Asked) -> Exported:
    """Writes what `asked` says of a run. Raises UserError for choices that do not fit, and when there is no run."""
    form = find(asked.to)
    path = asked.out or inside(run, f"export/{asked.to}{form.suffix}")
    if not str(path).endswith(_SUFFIXES):
        raise UserError(f"--out {path}: expected a name that ends in {' or '.join(_SUFFIXES)}")
    if isinstance(form, TokenFormat):
        return _samples(run, asked, form, path)
    return _chats(run, asked, form, path)


def _samples(run: Place, asked: Asked, form: TokenFormat, path: Place) -> Exported:
    if asked.min_reward is not None:
        raise UserError("--min-reward: only for formats of chats: it would take groups apart")
    forks = asked.forks or ("keep" if form.forks else "error")
    table = to_samples(cast(Any, open_table(run)).to_pyarrow_table())
    chosen = Chosen(samples_of([table]), forks, asked.to)
    size = _write(path, map(form.project, chosen), form.schema)
    return Exported(str(path), size, (("samples", f"{chosen.samples}"),))


def _chats(run: Place, asked: Asked, form: ChatFormat, path: Place) -> Exported:
    counts = {"written": 0, "unscored": 0, "below": 0, "empty": 0}

    def kept() -> Iterator[Row]:
        for row in _rows(run):
            if row["reward"] is None and not form.unscored:
                counts["unscored"] += 1
            elif asked.min_reward is not None and (row["reward"] is None or row["reward"] < asked.min_reward):
                counts["below"] += 1
            elif not row["messages"]:
                counts["empty"] += 1
            else:
                counts["written"] += 1
                yield form.project(row)

    size = _write(path, kept(), form.schema)
    return Exported(str(path), size, tuple((name, f"{count:,}") for name, count in counts.items() if count))


def _write(path: Place, rows: Iterator[Row], schema: Any) -> int:
    if str(path).endswith(".jsonl"):
        return write_jsonl(path, rows)
    if schema is None:
        raise UserError(f"--out {path}: expected a name that ends in .jsonl")
    return write_parquet(path, rows, schema)


def _rows(run: Place) -> Iterator[Row]:
    dataset = cast(Any, open_table(run)).to_pyarrow_dataset()
    for batch in dataset.to_batches(columns=list(COLUMNS), batch_size=_ROWS, batch_readahead=1, fragment_readahead=1):
        yield from batch.to_pylist(maps_as_pydicts="lossy")
