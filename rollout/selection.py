"""Selection bias: whether the episodes that are missing from training are others than those that are there.

Who drops what is slow, stale or broken drops what is long or hard more often; then the policy learns from short and
easy episodes. Rows of all of them are kept, so the shares can be told.
"""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table

from rollout.database import Database

Numbers = dict[str, Any]
_COUNTS = """count(*) AS episodes, count(*) FILTER (status = 'dropped') AS dropped,
    count(*) FILTER (status = 'failed') AS failed, count(*) FILTER (status = 'truncated') AS truncated"""
# Quarters of the episodes; where many are equal, fewer parts than four.
_QUARTERS = """
WITH tasks AS (SELECT group_id, avg(reward) AS mean FROM episodes GROUP BY group_id),
valued AS (SELECT status, {value} AS value FROM episodes JOIN tasks USING (group_id)),
edges AS (SELECT quantile_disc(value, [0.25, 0.5, 0.75]) AS edge FROM valued)
SELECT CASE WHEN value IS NOT NULL
    THEN (value > edge[1])::INT + (value > edge[2])::INT + (value > edge[3])::INT END AS part,
    min(value)::DOUBLE AS lowest, max(value)::DOUBLE AS highest, {counts}
FROM valued, edges GROUP BY part ORDER BY part NULLS LAST"""
_RESOURCES = "SELECT {environment} AS resource, {counts} FROM episodes GROUP BY ALL ORDER BY 1"


def selection(database: Database, environment: str) -> Numbers | None:
    """How many episodes were dropped, failed and were truncated, as JSON values; None when none was.

    By `length` (sampled tokens; of one that was broken off, as far as it came), by `difficulty` (mean reward of the
    task's scored episodes; null: none was) and by `resource`, which the SQL expression `environment` tells.
    """
    resources = database.rows(_RESOURCES.format(environment=environment, counts=_COUNTS))
    if not any(part["dropped"] or part["failed"] or part["truncated"] for part in resources):
        return None
    return {
        "length": [_bounds(part) for part in _quarters(database, "completion_tokens")],
        "difficulty": [_bounds(part) for part in _quarters(database, "mean")],
        "resource": resources,
    }


def render_selection(values: Numbers) -> RenderableType:
    """The shares for a terminal."""
    table = Table(box=None, pad_edge=False)
    for name in ("missing from", "episodes", "dropped", "failed", "truncated"):
        table.add_column(name, justify="left" if name == "missing from" else "right")
    for part in values["length"]:
        _add(table, f"sampled tokens {part['lowest']:,.0f} to {part['highest']:,.0f}", part)
    for part in values["difficulty"]:
        known = part["lowest"] is not None
        _add(table, f"mean reward {part['lowest']:.3g} to {part['highest']:.3g}" if known else "no reward", part)
    for part in values["resource"]:
        _add(table, str(part["resource"]), part)
    return table


def _quarters(database: Database, value: str) -> list[Numbers]:
    return database.rows(_QUARTERS.format(value=value, counts=_COUNTS))


def _bounds(part: Numbers) -> Numbers:
    return {name: value for name, value in part.items() if name != "part"}


def _add(table: Table, name: str, part: Numbers) -> None:
    shares = (f"{part[cause] / part['episodes']:.1%}" for cause in ("dropped", "failed", "truncated"))
    table.add_row(name, f"{part['episodes']:,}", *shares)
