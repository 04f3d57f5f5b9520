"""The commands that read a run: its episodes, its numbers, and any SQL over it. They work while it is being written."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from itertools import islice
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollout.agents.row_traces import row_trace, row_trace_view
from rollout.database import Database, opened
from rollout.episode_view import episode_view, status_text, visible
from rollout.errors import UserError
from rollout.storage import Place
from rollout.summary import numbers, render, render_details

SHOWN_ROWS = 50
"""Rows of a query on a terminal; the other formats give all."""
SHOWN_EPISODES = 20
_SHOWN_CELL = 400
_ORDER = "task_index, sample_index, episode_id"
_FAMILY = f"""
WITH RECURSIVE family AS (
    SELECT $1 AS episode_id
    UNION SELECT e.episode_id FROM all_rows e JOIN family f ON e.parent_episode_id = f.episode_id)
SELECT e.* FROM all_rows e JOIN family USING (episode_id) ORDER BY e.started_at, {_ORDER}
"""
"""An episode and all that descend from it."""
_encode = msgspec.json.Encoder(enc_hook=str, decimal_format="number").encode


def stats(run: Place, as_json: bool = False, console: Console | None = None, score: str | None = None) -> None:
    """Prints the numbers of a run, rewards as a version of its scores has them.

    Raises UserError when there is no run at `run` or no such version.
    """
    console = console or Console(highlight=False)
    values = numbers(run, score)
    if as_json:
        _plain(console, msgspec.json.format(_encode(values)).decode())
    else:
        console.print(render(values))
        for part in render_details(values):
            console.print(part)


def query(
    run: Place,
    sql: str,
    form: Literal["table", "json", "csv"] | str = "table",
    console: Console | None = None,
    score: str | None = None,
) -> None:
    """Prints what SQL over `episodes`, `turns` and `tool_calls` gives: a table, JSON lines or CSV.

    With a version of the scores, `episodes` has those; `recorded` and `scores` are there too. Raises UserError with
    DuckDB's message, and when there is no run at `run` or no such version.
    """
    console = console or Console(highlight=False)
    with opened(run, score) as database, database.asked(sql) as (columns, rows):
        if form == "json":
            for row in rows:
                _plain(console, _encode(row).decode())
        elif form == "csv":
            for line in _csv(columns, rows):
                _plain(console, line)
        elif columns:
            _print_table(console, columns, rows)


def show(
    run: Place,
    episode: str | None = None,
    console: Console | None = None,
    score: str | None = None,
    trace: bool = False,
) -> None:
    """Prints the first episodes of a run, or all of one that is named by its id, the start of it, its end
    (TASK-SAMPLE) or its number in the list, or of a child by its id; with a version's scores where one is named. A
    `trace` is what the episode and its children took, instead of what was said.

    Raises UserError naming the nearest when there is no such episode, and when there is no run at `run`.
    """
    console = console or Console(highlight=False)
    with opened(run, score) as database:
        if episode is None:
            if trace:
                raise UserError("--trace: expected an episode as well, by its number, its id or TASK-SAMPLE")
            _print_episodes(console, database)
            return
        found = _find(database, episode)
        if trace:
            for part in row_trace_view(row_trace(database.rows(_FAMILY, found), found)):
                console.print(part)
            return
        row = database.rows("SELECT * FROM all_rows WHERE episode_id = ?", found)[0]
    for part in episode_view(row):
        console.print(part)


def _print_episodes(console: Console, database: Database) -> None:
    count = database.rows("SELECT count(*) AS n FROM episodes")[0]["n"]
    if not count:
        console.print("no episodes yet")
        return
    columns = "episode_id, task_id, sample_index, status, reward, num_turns, stop_reason"
    rows = database.rows(f"SELECT {columns} FROM episodes ORDER BY {_ORDER} LIMIT {SHOWN_EPISODES}")
    table = Table(box=None, pad_edge=False)
    for name in ("#", "episode", "task", "sample", "status", "reward", "turns", "stopped"):
        table.add_column(name, justify="right" if name in ("#", "sample", "reward", "turns") else "left")
    for number, row in enumerate(rows):
        reward = "-" if row["reward"] is None else f"{row['reward']:g}"
        named = [Text(visible(row[key])) for key in ("episode_id", "task_id")]
        told = [str(row["sample_index"]), status_text(row["status"]), reward, str(row["num_turns"])]
        table.add_row(str(number), *named, *told, row["stop_reason"])
    console.print(table)
    if count > len(rows):
        console.print(f"... and {count - len(rows):,} more; a number, an id or TASK-SAMPLE shows one in full")


def _find(database: Database, wanted: str) -> str:
    """The id of the one episode that `wanted` names."""
    if rows := database.rows("SELECT episode_id FROM all_rows WHERE episode_id = ?", wanted):
        return rows[0]["episode_id"]
    if wanted.isdecimal():
        at = int(wanted)
        if rows := database.rows(f"SELECT episode_id FROM episodes ORDER BY {_ORDER} LIMIT 1 OFFSET {at}"):
            return rows[0]["episode_id"]
    fits = "starts_with(episode_id, $1) OR ends_with(episode_id, '-' || $1)"
    rows = database.rows(f"SELECT episode_id FROM episodes WHERE {fits} ORDER BY {_ORDER} LIMIT 4", wanted)
    if len(rows) == 1:
        return rows[0]["episode_id"]
    names = [row["episode_id"] for row in rows]
    if names:
        raise UserError(f"{wanted}: more than one episode: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    rows = database.rows("SELECT episode_id FROM episodes ORDER BY levenshtein(episode_id, ?), 1 LIMIT 3", wanted)
    names = [row["episode_id"] for row in rows]
    near = f"; nearest: {', '.join(names)}" if names else ": the run has none yet"
    raise UserError(f"{wanted}: no such episode{near}")


def _print_table(console: Console, columns: list[str], rows: Iterator[dict[str, Any]]) -> None:
    shown = list(islice(rows, SHOWN_ROWS))
    more = sum(1 for _ in rows)
    table = Table(box=None, pad_edge=False)
    for name in columns:
        numeric = all(isinstance(row[name], int | float | None) for row in shown)
        table.add_column(Text(visible(name)), justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        table.add_row(*(_cell(row[name]) for name in columns))
    console.print(table)
    if more:
        console.print(f"... and {more:,} more rows; --format json or csv gives all")


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, float):
        return Text(f"{value:.6g}")
    text = _encode(value).decode() if isinstance(value, list | dict) else str(value)
    return Text(visible(text if len(text) <= _SHOWN_CELL else text[:_SHOWN_CELL] + " ..."))


def _csv(columns: list[str], rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """CSV a line at a time; nested values are JSON."""
    line = StringIO()
    writer = csv.writer(line, lineterminator="")
    for values in _chain_header(columns, rows):
        line.seek(0)
        line.truncate()
        writer.writerow(values)
        yield line.getvalue()


def _chain_header(columns: list[str], rows: Iterator[dict[str, Any]]) -> Iterator[list[Any]]:
    yield columns
    for row in rows:
        yield [_encode(row[name]).decode() if isinstance(row[name], list | dict) else row[name] for name in columns]


def _plain(console: Console, line: str) -> None:
    """A line for programs: neither wrapped nor styled nor read as markup."""
    console.out(line, highlight=False)
