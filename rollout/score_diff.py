"""What differs between two versions of a run's scores: how many rewards, which way, by component, and the largest."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollout.database import opened
from rollout.episode_view import visible
from rollout.scores import RECORDED, Version
from rollout.storage import Place

SHOWN = 10
"""Episodes whose rewards changed most."""
_PAIRS = """
CREATE VIEW pairs AS SELECT a.episode_id, a.task_id, a.task_index, a.sample_index, a.reward AS before,
    b.reward AS after, a.reward_components AS parts_before, b.reward_components AS parts_after
FROM before a JOIN after b USING (episode_id)"""
_TOTALS = """
SELECT count(before) AS judged_before, count(after) AS judged_after, avg(before) AS mean_before,
    avg(after) AS mean_after, count(*) FILTER (after > before) AS up, count(*) FILTER (after < before) AS down,
    count(*) FILTER (after = before) AS same, count(*) FILTER (before IS NULL AND after IS NOT NULL) AS gained,
    count(*) FILTER (before IS NOT NULL AND after IS NULL) AS lost FROM pairs"""
_PARTS = """
WITH a AS (SELECT episode_id, unnest(map_entries(parts_before), recursive := true) FROM pairs),
b AS (SELECT episode_id, unnest(map_entries(parts_after), recursive := true) FROM pairs)
SELECT coalesce(a.key, b.key) AS component, avg(a.value) AS mean_before, avg(b.value) AS mean_after,
    count(*) FILTER (b.value > a.value) AS up, count(*) FILTER (b.value < a.value) AS down,
    count(*) FILTER (a.value IS NULL) AS gained, count(*) FILTER (b.value IS NULL) AS lost
FROM a FULL JOIN b ON a.episode_id = b.episode_id AND a.key = b.key GROUP BY 1 ORDER BY 1"""
_LARGEST = f"""
SELECT episode_id, task_id, before, after FROM pairs WHERE after IS DISTINCT FROM before
ORDER BY abs(after - before) DESC NULLS FIRST, task_index, sample_index LIMIT {SHOWN}"""
_COUNT = """
SELECT count(reward) AS judged, avg(reward) AS mean, 0 AS failed FROM episodes"""
_COMPONENTS = "SELECT DISTINCT unnest(map_keys(reward_components)) AS name FROM episodes ORDER BY 1"

Numbers = dict[str, Any]


def difference(run: Place, first: str, second: str) -> Numbers:
    """Counts of rewards that are higher (`up`), lower, equal, new (`gained`) or null now (`lost`), the same by
    component, and the episodes that changed most; rewards that are null now stand first among those.

    Raises UserError when there is no run, or no version of its scores of that name.
    """
    with opened(run) as database:
        database.scored("before", first)
        database.scored("after", second)
        database.execute(_PAIRS)
        return {
            **database.rows(_TOTALS)[0],
            "components": database.rows(_PARTS),
            "largest": database.rows(_LARGEST),
        }


def print_diff(console: Console, run: Place, first: str, second: str) -> None:
    """Prints `difference` for people. Raises as it does."""
    found = difference(run, first, second)
    changed = found["up"] + found["down"] + found["gained"] + found["lost"]
    means = f"mean {_number(found['mean_before'])} -> {_number(found['mean_after'])}"
    console.print(f"{first} -> {second}: {changed:,} rewards changed, {found['same']:,} did not; {means}")
    console.print(f"  {_ways(found)}")
    if found["components"]:
        table = Table(box=None, pad_edge=False)
        for name in ("component", "before", "after", "changed"):
            table.add_column(name, justify="left" if name in ("component", "changed") else "right")
        for part in found["components"]:
            means = (_number(part["mean_before"]), _number(part["mean_after"]))
            table.add_row(Text(visible(part["component"])), *means, _ways(part))
        console.print(table)
    for row in found["largest"]:
        line = f"  {row['episode_id']}  {row['task_id']}  {_number(row['before'])} -> {_number(row['after'])}"
        console.print(Text(visible(line)), soft_wrap=True)


def count_judged(run: Place, version: Version | None, components: bool = False) -> Numbers:
    """How many episodes a version has `judged` and `failed` to judge, their `mean` reward, and the names of the
    `components` where they are wanted."""
    with opened(run, RECORDED if version is None else version.name) as database:
        found = database.rows(_COUNT)[0]
        if version is not None:
            found["failed"] = database.rows("SELECT count(failure) AS n FROM scores")[0]["n"]
        names = [row["name"] for row in database.rows(_COMPONENTS)] if components else []
        return found | {"components": names}


def _ways(counts: Numbers) -> str:
    words = {"up": "up", "down": "down", "gained": "new", "lost": "null now"}
    return ", ".join(f"{counts[key]:,} {word}" for key, word in words.items() if counts[key]) or "none"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
