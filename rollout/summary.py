"""The numbers of a run: as values for programs and as lines for people.

All of them come from the committed rows. Tokens are read only where segments broke: what Parquet keeps in columns of
its own stays there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
from rich.console import Console, Group, RenderableType
from rich.table import Table

from rollout.database import Database, opened
from rollout.drift import drift, render_drift
from rollout.leaves import leaves
from rollout.live import duration
from rollout.mixture import LANE_TASKS
from rollout.run_folder import environment_names
from rollout.selection import render_selection, selection
from rollout.storage import Place

pa = cast(Any, pyarrow)
"""It has no types."""
Numbers = dict[str, Any]

# Tokens and cost are those of children as well: somebody generated and paid them.
_OVERALL = """
SELECT count(*) AS episodes, count(DISTINCT task_index) AS tasks, coalesce(sum(attempt - 1), 0)::BIGINT AS retries,
    avg(num_turns) AS mean_turns, coalesce(sum(num_turns), 0)::BIGINT AS turns,
    (SELECT coalesce(sum(prompt_tokens), 0)::BIGINT FROM all_rows) AS prompt_tokens,
    (SELECT coalesce(sum(cached_tokens), 0)::BIGINT FROM all_rows) AS cached_tokens,
    (SELECT coalesce(sum(completion_tokens), 0)::BIGINT FROM all_rows) AS completion_tokens,
    (SELECT count(*) FROM children) AS children,
    coalesce(sum(tool_calls), 0)::BIGINT AS tool_calls, coalesce(sum(tool_errors), 0)::BIGINT AS tool_errors,
    count(*) FILTER (restored_turns > 0) AS restored, coalesce(sum(restored_turns), 0)::BIGINT AS restored_turns,
    coalesce(sum(restored_tokens), 0)::BIGINT AS restored_tokens,
    count(*) FILTER (restored_turns = 0) AS started_again,
    (SELECT sum(cost) FROM all_rows) AS cost, epoch(max(finished_at) - min(started_at)) AS wall_seconds
FROM episodes"""

_SECONDS = """
SELECT avg(seconds.queue) AS queue, avg(seconds.model) AS model, avg(seconds.tool) AS tool,
    avg(seconds.verify) AS verify, avg(seconds.idle) AS idle
FROM episodes"""

# The samples of a task are no independent draws: deviations are summed up within a group before they are squared.
_REWARDS = """
WITH chosen AS (SELECT {by} AS part, group_id, reward, num_turns, status FROM episodes),
centred AS (SELECT part, group_id, reward - avg(reward) OVER (PARTITION BY part) AS off FROM chosen),
grouped AS (SELECT part, group_id, sum(off) AS off FROM centred WHERE off IS NOT NULL GROUP BY part, group_id),
spread AS (SELECT part, count(*) AS groups, sum(off * off) AS squares FROM grouped GROUP BY part)
SELECT part AS resource, count(*) AS episodes, count(reward) AS scored, avg(reward) AS mean,
    CASE WHEN any_value(groups) > 1
        THEN sqrt(any_value(squares) * any_value(groups) / (any_value(groups) - 1)) / count(reward) END AS error,
    min(reward) AS lowest, max(reward) AS highest, avg(num_turns) AS mean_turns,
    count(*) FILTER (status = 'failed') AS failed
FROM chosen LEFT JOIN spread USING (part) GROUP BY part ORDER BY part"""

_CALLS = """
SELECT coalesce(sum(written), 0)::BIGINT AS written, coalesce(sum(unclosed) + sum(unnamed), 0)::BIGINT AS unread
FROM (SELECT unnest(turns) AS turn FROM written_calls), LATERAL (
    SELECT count(*) FILTER (kind = 'tool_call') AS written,
        count(*) FILTER (kind = 'tool_call' AND call_id IS NULL) AS unclosed
    FROM (SELECT unnest(turn.segments, recursive := true))
), LATERAL (SELECT count(*) FILTER (name = '') AS unnamed FROM (SELECT unnest(turn.tool_calls, recursive := true)))"""
_CALL_LEAVES = (("turns", "segments", "kind"), ("turns", "segments", "call_id"), ("turns", "tool_calls", "name"))


def summary(run: Place) -> str:
    """What is printed at a run's end, as plain text. Raises UserError when there is no run at `run`."""
    console = Console(width=100, color_system=None)
    with console.capture() as captured, opened(run) as database:
        console.print(render(_overview(database, _environment(run))))
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").splitlines())


def numbers(run: Place, score: str | None = None) -> Numbers:
    """The numbers of a run as JSON values, rewards as a version of its scores has them. Seconds are means an episode.

    Raises UserError when there is no run or no such version.
    """
    with opened(run, score) as database:
        environment = _environment(run)
        details = {"drift": drift(database), "selection": selection(database, environment)}
        return _overview(database, environment) | details


def _overview(database: Database, environment: str) -> Numbers:
    overall = database.rows(_OVERALL)[0]
    rewards = database.rows(_REWARDS.format(by="''"))
    written = _calls(database)
    return {
        **overall,
        "status": _counts(database, "status"),
        "stop_reason": _counts(database, "stop_reason"),
        "failures": _counts(database, "failure.kind"),
        "drops": _counts(database, "drop_reason"),
        "reward": {key: rewards[0][key] for key in ("mean", "error", "lowest", "highest", "scored")}
        if rewards
        else {"mean": None, "error": None, "lowest": None, "highest": None, "scored": 0},
        "cached_share": _share(overall["cached_tokens"], overall["prompt_tokens"]),
        "parse_rate": _share(written["written"] - written["unread"], written["written"]),
        "tool_error_rate": _share(overall["tool_errors"], overall["tool_calls"]),
        "seconds": database.rows(_SECONDS)[0],
        "resources": database.rows(_REWARDS.format(by=environment)),
    }


def render(values: Numbers) -> RenderableType:
    """The numbers as a table for a terminal, and a line for each resource when there are several."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for name, text in _lines(values):
        table.add_row(name, text)
    return table if len(values["resources"]) < 2 else Group(table, "", _resources(values["resources"]))


def render_details(values: Numbers) -> Iterator[RenderableType]:
    """Segment breaks, and what is missing from training, for a terminal; nothing where there is none."""
    if values["drift"] is not None:
        yield from ("", render_drift(values["drift"]))
    if values["selection"] is not None:
        yield from ("", render_selection(values["selection"]))


def _lines(values: Numbers) -> Iterator[tuple[str, str]]:
    episodes = values["episodes"]
    yield "episodes", f"{episodes:,}" + (f"   {_listed(values['status'])}" if episodes else "   none yet")
    if not episodes:
        return
    reward = values["reward"]
    if reward["scored"]:
        reach = f"{reward['lowest']:.3g} to {reward['highest']:.3g}"
        yield "reward", f"{_reward(reward)}   {reach}, {reward['scored']:,} scored"
    yield "stopped", _listed(values["stop_reason"])
    if values["failures"]:
        yield "failed", _listed(values["failures"])
    if values["drops"]:
        yield "dropped", _listed(values["drops"])
    if values["retries"]:
        yield "retries", f"{values['retries']:,}"
    if values["restored"] or values["started_again"]:
        yield "continued", _continued(values)
    yield "turns", f"{values['mean_turns']:.2f} an episode, {values['turns']:,} in all"
    if values["children"]:
        yield "children", f"{values['children']:,} runs that agents began; in tokens and cost, in nothing else here"
    cached = f" ({values['cached_share']:.0%} cached)" if values["cached_share"] is not None else ""
    yield "tokens", f"{values['prompt_tokens']:,} prompt{cached}, {values['completion_tokens']:,} sampled"
    if values["tool_calls"]:
        parsed = f", {values['parse_rate']:.1%} parsed" if values["parse_rate"] is not None else ""
        errors = f"{values['tool_errors']:,} errors ({values['tool_error_rate']:.1%})"
        yield "tool calls", f"{values['tool_calls']:,}{parsed}, {errors}"
    yield "seconds", ", ".join(f"{cause} {mean:.2f}" for cause, mean in values["seconds"].items()) + " an episode"
    if values["cost"] is not None:
        yield "cost", f"{values['cost']:.2f}"
    if (wall := values["wall_seconds"]) and wall > 0:
        rates = f"{episodes / wall:,.1f} episodes/s, {values['completion_tokens'] / wall:,.0f} tokens/s"
        yield "took", f"{duration(wall)}, {rates}"


def _environment(run: Place) -> str:
    """What tells the environment of a row: the name a job with several has for it, else its reference."""
    names = ", ".join(f"'{name}'" for name in environment_names(run))
    return f"list_extract([{names}], task_index // {LANE_TASKS} + 1)" if names else "resource"


def _resources(parts: Sequence[Numbers]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("resource", "episodes", "reward", "turns", "failed"):
        table.add_column(name, justify="left" if name == "resource" else "right")
    for part in parts:
        reward = _reward(part) if part["scored"] else "-"
        turns, failed = f"{part['mean_turns']:.2f}", f"{part['failed']:,}"
        table.add_row(part["resource"], f"{part['episodes']:,}", reward, turns, failed)
    return table


def _calls(database: Database) -> Numbers:
    """Tool calls the policy began to write, and those of them that could not be read."""
    batches = leaves(database.files(), _CALL_LEAVES)
    if (first := next(batches, None)) is None:
        return {"written": 0, "unread": 0}
    whole = (batch for part in ([first], batches) for batch in part)
    database.register("written_calls", pa.RecordBatchReader.from_batches(first.schema, whole))
    return database.rows(_CALLS)[0]


def _counts(database: Database, column: str) -> dict[str, int]:
    counted = f"SELECT {column} AS name, count(*) AS n FROM episodes GROUP BY 1 ORDER BY n DESC, name"
    return {row["name"]: row["n"] for row in database.rows(counted) if row["name"] is not None}


def _continued(values: Numbers) -> str:
    """What was not lost with the runners that died, and what was all the same."""
    kept = f"{values['restored_turns']:,} turns and {values['restored_tokens']:,} sampled tokens not played again"
    again = f"; {values['started_again']:,} started again" if values["started_again"] else ""
    return f"{values['restored']:,} episodes, {kept}{again}"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _reward(part: Numbers) -> str:
    """`0.613 ± 0.012`: the mean and its standard error over tasks."""
    return f"{part['mean']:.3f}" + (f" ± {part['error']:.3f}" if part["error"] is not None else "")
