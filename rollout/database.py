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
from rollout.scores import COLUMNS, Version, covering, find
from rollout.storage import Place, folder, inside, is_remote

pa = cast(Any, pyarrow)
"""It has no types."""
_VIEWS = """
CREATE VIEW episodes AS SELECT * FROM all_rows WHERE parent_episode_id IS NULL;
CREATE VIEW children AS SELECT * FROM all_rows WHERE parent_episode_id IS NOT NULL;
CREATE VIEW turns AS
    SELECT episode_id, task_id, sample_index, turn, unnest(entry) FROM (
        SELECT episode_id, task_id, sample_index, generate_subscripts(turns, 1) - 1 AS turn, unnest(turns) AS entry
        FROM all_rows);
CREATE VIEW tool_calls AS
    SELECT episode_id, task_id, sample_index, turn, call, unnest(entry) FROM (
        SELECT episode_id, task_id, sample_index, turn, generate_subscripts(tool_calls, 1) - 1 AS call,
            unnest(tool_calls) AS entry
        FROM turns);
"""


class Database:
    """The views of what was committed when it was opened: `episodes` (a row a sample of the job), `children` (a row a
    run that an agent began), `all_rows` (both), `turns` and `tool_calls` (of both).

    With a version of the scores, they have its rewards, components and metrics; children have none in it. `recorded`
    has those of the rows, and `scores` the version's own rows, with their failures.
    """

    def __init__(self, run: Place, score: str | None = None) -> None:
        """Raises UserError when there is no run at `run`, or no version of its scores named `score`."""
        version = None if score is None else find(run, score)
        table = open_table(run)
        # Paths of the actions, not the table's URIs: those write a space as %20.
        self._paths: list[str] = pa.table(table.get_add_actions(flatten=True))["path"].to_pylist()
        self._folder = folder(inside(run, "episodes"))
        # Names that are no table are an error, not a variable of ours.
        self._duck = duckdb.connect(config={"python_enable_replacements": "false"})
        self._duck.execute("SET TimeZone = 'UTC'")
        self._run = run
        rows = "all_rows" if version is None else "recorded_rows"
        if is_remote(run):  # DuckDB alone reaches no object store
            self._duck.register(rows, cast(Any, table).to_pyarrow_dataset())
        elif self._paths:
            files = [inside(self._folder.place, path) for path in self._paths]
            self._duck.read_parquet(files, union_by_name=True).create_view(rows)
        else:
            self._duck.register(rows, cast(Any, SCHEMA).empty_table())
        if version is not None:
            self._overlay(version, rows, "all_rows", "scores")
            self._duck.execute(f"CREATE VIEW recorded AS SELECT * FROM {rows} WHERE parent_episode_id IS NULL")
        self._duck.execute(_VIEWS)

    def scored(self, view: str, score: str) -> None:
        """Makes a view of the episodes with another version's scores. Raises UserError when there is none."""
        if (version := find(self._run, score)) is None:
            self._duck.execute(f"CREATE VIEW {view} AS SELECT * FROM episodes")
        else:
            self._overlay(version, "episodes", view, f"{view}_scores")

    def _overlay(self, version: Version, rows: str, view: str, scores: str) -> None:
        """`view` is `rows` with the version's scores, which are `scores`; null where it has none."""
        self._duck.register(scores, cast(Any, open_table(self._run, version.table)).to_pyarrow_dataset())
        covered = covering(version).replace("task_index", "r.task_index")
        chosen = ", ".join(f"CASE WHEN {covered} THEN s.{name} ELSE r.{name} END AS {name}" for name in COLUMNS)
        joined = f"{rows} r LEFT JOIN {scores} s USING (episode_id)"
        self._duck.execute(f"CREATE VIEW {view} AS SELECT r.* REPLACE ({chosen}) FROM {joined}")

    def files(self) -> Iterator[Any]:
        """The Parquet files, each open until the next."""
        for path in self._paths:
            with self._folder.open(path) as file:
                yield file

    def register(self, name: str, batches: Any) -> None:
        """Makes a reader of Arrow batches a view, which can be read once."""
        self._duck.register(name, batches)

    def execute(self, sql: str) -> None:
        """A statement of ours, such as a view."""
        self._duck.execute(sql)

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
def opened(run: Place, score: str | None = None) -> Generator[Database]:
    """The rows of a run, with the scores of a version. Raises UserError when there is no run or no such version."""
    database = Database(run, score)
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
