"""A run's rows as SQL sees them: DuckDB over the files that the table names.

Always through the table's own list, never a glob: what is written but not committed does not exist here, and what is
committed while somebody reads does not disturb them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import duckdb
import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.dataset import open_table
from rollout.errors import UserError
from rollout.rows import SCHEMA  # pyright: ignore[reportUnknownVariableType]
from rollout.storage import Place, folder, inside, is_remote

pa = cast(Any, pyarrow)
"""It has no types."""
_VIEWS = """
CREATE VIEW turns AS
    SELECT episode_id, task_id, sample_index, turn, unnest(entry) FROM (
        SELECT episode_id, task_id, sample_index, generate_subscripts(turns, 1) - 1 AS turn, unnest(turns) AS entry
        FROM episodes);
CREATE VIEW tool_calls AS
    SELECT episode_id, task_id, sample_index, turn, call, unnest(entry) FROM (
        SELECT episode_id, task_id, sample_index, turn, generate_subscripts(tool_calls, 1) - 1 AS call,
            unnest(tool_calls) AS entry
        FROM turns);
"""


class Database:
    """The views `episodes` (a row an episode), `turns` and `tool_calls` of what was committed when it was opened."""

    def __init__(self, run: Place) -> None:
        """Raises UserError when there is no run at `run`."""
        table = open_table(run)
        # Paths of the actions, not the table's URIs: those write a space as %20.
        self._paths: list[str] = pa.table(table.get_add_actions(flatten=True))["path"].to_pylist()
        self._folder = folder(inside(run, "episodes"))
        # Names that are no table are an error, not a variable of ours.
        self._duck = duckdb.connect(config={"python_enable_replacements": "false"})
        self._duck.execute("SET TimeZone = 'UTC'")
        if is_remote(run):  # DuckDB alone reaches no object store
            self._duck.register("episodes", cast(Any, table).to_pyarrow_dataset())
        elif self._paths:
            files = [inside(self._folder.place, path) for path in self._paths]
            self._duck.read_parquet(files, union_by_name=True).create_view("episodes")
        else:
            self._duck.register("episodes", cast(Any, SCHEMA).empty_table())
        self._duck.execute(_VIEWS)

    def files(self) -> Iterator[Any]:
        """The Parquet files, each open until the next."""
        for path in self._paths:
            with self._folder.open(path) as file:
                yield file

    def register(self, name: str, batches: Any) -> None:
        """Makes a reader of Arrow batches a view, which can be read once."""
        self._duck.register(name, batches)

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """All rows of a query of ours."""
        return [row for batch in self._reader(sql, values) for row in _dicts(batch)]

    @contextmanager
    def asked(self, sql: str) -> Generator[tuple[list[str], Iterator[dict[str, Any]]]]:
        """Column names and rows of a person's query. Raises UserError with DuckDB's message, also while rows come."""
        try:
            reader = self._reader(sql, ())
            yield list(reader.schema.names), (row for batch in reader for row in _dicts(batch))
        except (duckdb.Error, pa.ArrowException) as error:
            raise UserError(f"query: {_one_line(error)}") from None

    def close(self) -> None:
        """Frees what the queries hold."""
        self._duck.close()

    def _reader(self, sql: str, values: Sequence[Any]) -> Any:
        relation = self._duck.sql(sql, params=list(values)) if values else self._duck.sql(sql)
        nothing = cast(Any, relation) is None  # so for statements before DuckDB 2
        return pa.table({}).to_reader() if nothing else pa.RecordBatchReader.from_stream(relation)


@contextmanager
def opened(run: Place) -> Generator[Database]:
    """The rows of a run. Raises UserError when there is no run at `run`."""
    database = Database(run)
    try:
        yield database
    finally:
        database.close()


def _dicts(batch: Any) -> list[dict[str, Any]]:
    return batch.to_pylist(maps_as_pydicts="lossy")


def _one_line(error: Exception) -> str:
    """DuckDB's message without its drawing of the place."""
    message, _, _ = str(error).partition("\n\nLINE ")
    return " ".join(message.split())
