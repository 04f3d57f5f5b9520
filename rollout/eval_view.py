"""What `rollout eval` prints: the evaluation of one run, or of two beside each other, from their rows.

Whatever has a reward counts. A row without one (failed, dropped before it was scored) is not a reward of 0: it is left
out of its task's samples, and how many were is told. The answer that a sample votes for is the content of the policy's
last message, of a pipeline that of the run.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import msgspec
import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rollout.database import opened
from rollout.episode_view import visible
from rollout.errors import UserError
from rollout.evaluation import Difference, Estimate, Samples, difference, estimates, metrics, powers
from rollout.mixture import LANE_TASKS
from rollout.run_folder import environment_names
from rollout.storage import Place

Key = tuple[str, str]
"""Resource and task id: what a task is in every run."""
_ROWS = """
SELECT resource, task_index, task_id, status, reward, task, num_turns > 0 OR answer IS NOT NULL AS spoke,
    CASE WHEN num_turns > 0 THEN [m.content FOR m IN messages IF m.role = 'assistant'][-1] ELSE answer END AS said
FROM episodes ORDER BY task_index, sample_index"""


@dataclass(slots=True)
class Played:
    """One task's scored samples, as they are read."""

    task: str
    rewards: list[float] = field(default_factory=list[float])
    answers: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A run's tasks with the numbers of each."""

    tasks: Mapping[Key, Mapping[str, float]]
    given: Mapping[Key, str]
    """The tasks as they were given, in JSON."""
    names: Sequence[str]
    """The metrics."""
    scored: int
    left_out: Mapping[str, int]
    """Rows without a reward, by status."""
    unscored_tasks: int
    """Tasks that have no other rows."""

    def table(self, keys: Iterable[Key]) -> dict[str, Estimate]:
        """The metrics over some of the tasks."""
        chosen = [[self.tasks[key][name] for name in self.names] for key in keys]
        told = estimates(np.array(chosen, np.float64).reshape(len(chosen), len(self.names)))
        return {name: estimate for name, estimate in zip(self.names, told, strict=True) if estimate.tasks}

    def parts(self) -> dict[str, list[Key]]:
        """Tasks by resource and by tag, where there are several of either."""
        resources: dict[str, list[Key]] = {}
        tagged: dict[str, list[Key]] = {}
        for key in self.tasks:
            resources.setdefault(f"resource {key[0]}", []).append(key)
            for tag in tags(self.given[key]):
                tagged.setdefault(f"tag {tag}", []).append(key)
        return {**(dict(sorted(resources.items())) if len(resources) > 1 else {}), **dict(sorted(tagged.items()))}


def evaluate(
    runs: Sequence[Place],
    threshold: float = 1.0,
    answer: str | None = None,
    as_json: bool = False,
    console: Console | None = None,
    score: str | None = None,
) -> None:
    """Prints the evaluation of a run, and of a second one beside it with a paired test on the tasks of both.

    A reward of at least `threshold` is a pass. `answer` is a regular expression whose last match in a message is the
    vote (its first group, if it has one). `score` names the scores that count instead of the recorded ones. Raises
    UserError for one that is none and when there is no run.
    """
    console = console or Console(highlight=False)
    pattern = _pattern(answer)
    evaluated = [read(run, threshold, pattern, score) for run in runs]
    values = _values(runs, evaluated)
    if as_json:
        console.out(msgspec.json.format(msgspec.json.encode(values)).decode(), highlight=False)
    else:
        console.print(_render(runs, evaluated, values))


def read(run: Place, threshold: float, pattern: re.Pattern[str] | None = None, score: str | None = None) -> Evaluated:
    """The numbers of a run's tasks. Raises UserError when there is no run at `run`."""
    names: list[str] = environment_names(run)
    played: dict[Key, Played] = {}
    left_out: Counter[str] = Counter()
    with opened(run, score) as database:
        for row in database.rows(_ROWS):
            lane: int = row["task_index"] // LANE_TASKS
            resource = names[lane] if names else str(row["resource"])
            task = played.setdefault((resource, row["task_id"]), Played(row["task"]))
            if row["reward"] is None:
                left_out[row["status"]] += 1
                continue
            task.rewards.append(row["reward"])
            task.answers.append(vote(row["said"] or "", pattern) if row["spoke"] else "")
    scored = {key: task for key, task in played.items() if task.rewards}
    ks = powers(max((len(task.rewards) for task in scored.values()), default=0))
    told = {
        key: metrics(Samples(tuple(task.rewards), tuple(task.answers)), threshold, ks) for key, task in scored.items()
    }
    columns = list(next(iter(told.values()), ()))
    total = sum(len(task.rewards) for task in scored.values())
    given = {key: task.task for key, task in scored.items()}
    return Evaluated(told, given, columns, total, dict(left_out), len(played) - len(scored))


def vote(said: str, pattern: re.Pattern[str] | None) -> str:
    """What a message votes for, spaces made one; empty when the pattern is not in it."""
    if pattern is not None:
        found = [match[1] if match.re.groups else match[0] for match in pattern.finditer(said)]
        said = (found[-1] or "") if found else ""
    return " ".join(said.split())


def tags(task: str) -> list[str]:
    """The `tags` in a task's data: a list of texts, one text, or names with values."""
    if '"tags"' not in task:
        return []
    given: Any = cast(dict[str, Any], json.loads(task))["data"]
    told = cast(dict[str, Any], given).get("tags") if isinstance(given, dict) else None
    if isinstance(told, dict):
        return sorted(f"{name}={value}" for name, value in cast(dict[str, Any], told).items())
    entries = cast(list[Any], told) if isinstance(told, list) else [told]
    return sorted({entry for entry in entries if isinstance(entry, str)})


def compared(first: Evaluated, second: Evaluated) -> tuple[dict[str, Difference], list[Key], int]:
    """The second run against the first by metric, the tasks of both, and how many of one id are another task in each.

    Tasks are paired by resource and id, and only where they were given with the same messages and data.
    """
    both = [key for key in first.tasks if key in second.tasks]
    shared = [key for key in both if first.given[key] == second.given[key]]
    told: dict[str, Difference] = {}
    for name in first.names:
        if name in second.names:
            before, after = (np.array([run.tasks[key][name] for key in shared], np.float64) for run in (first, second))
            if (found := difference(before, after)) is not None:
                told[name] = found
    return told, shared, len(both) - len(shared)


def _pattern(answer: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(answer) if answer is not None else None
    except re.error as error:
        raise UserError(f"--answer: {answer}: is no regular expression: {error}") from None


def _values(runs: Sequence[Place], evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    values: dict[str, Any] = {"runs": [_run(run, told) for run, told in zip(runs, evaluated, strict=True)]}
    if len(evaluated) == 2:
        found, shared, other = compared(*evaluated)
        values["paired"] = {
            "tasks": len(shared),
            "only_first": len(evaluated[0].tasks) - len(shared) - other,
            "only_second": len(evaluated[1].tasks) - len(shared) - other,
            "given_otherwise": other,
            "metrics": {name: asdict(one) for name, one in found.items()},
        }
    return values


def _run(run: Place, told: Evaluated) -> dict[str, Any]:
    parts = {name: told.table(keys) for name, keys in told.parts().items()}
    return {
        "run": str(run),
        "tasks": len(told.tasks),
        "scored": told.scored,
        "left_out": dict(told.left_out),
        "unscored_tasks": told.unscored_tasks,
        "metrics": _plain(told.table(told.tasks)),
        "parts": {name: _plain(table) for name, table in parts.items()},
    }


def _plain(table: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in table.items()}


def _render(runs: Sequence[Place], evaluated: Sequence[Evaluated], values: Mapping[str, Any]) -> RenderableType:
    shown: list[RenderableType] = [Text(line) for line in _counts(values["runs"])]
    table = _table("metric", *(["first", "second"] if len(runs) == 2 else ["mean, 95 % of tasks"]), "tasks")
    for name in dict.fromkeys(name for told in values["runs"] for name in told["metrics"]):
        found = [told["metrics"].get(name) for told in values["runs"]]
        table.add_row(name, *(_cell(one) for one in found), " / ".join(f"{one['tasks']:,}" for one in found if one))
    shown += [Text(), table]
    names = list(dict.fromkeys(name for told in values["runs"] for name in told["parts"]))
    if names:
        columns = [name for name in dict.fromkeys(name for told in evaluated for name in told.names)]
        brief = [name for name in columns if name in ("mean", "pass@1", columns[-1])]
        parts = _table("part", *([] if len(runs) == 1 else ["run"]), "tasks", *brief)
        for name in names:
            for place, told in zip(("first", "second"), values["runs"], strict=False):
                found = told["parts"].get(name, {})
                cells = [_cell(found.get(metric)) for metric in brief]
                count = f"{found['mean']['tasks']:,}" if found else "0"
                parts.add_row(Text(visible(name)), *([] if len(runs) == 1 else [place]), count, *cells)
        shown += [Text(), parts]
    if "paired" in values:
        shown += [Text(), *_paired(values["paired"])]
    return Group(*shown)


def _counts(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for run in runs:
        left_out = ", ".join(f"{name} {count:,}" for name, count in run["left_out"].items())
        told = f"; left out without a reward: {left_out}" if left_out else ""
        bare = f"; {run['unscored_tasks']:,} tasks without any" if run["unscored_tasks"] else ""
        yield f"{visible(run['run'])}: {run['scored']:,} scored samples of {run['tasks']:,} tasks{told}{bare}"


def _paired(paired: Mapping[str, Any]) -> Iterator[RenderableType]:
    alone = f"{paired['only_first']:,} only in the first run, {paired['only_second']:,} only in the second"
    other = f", {paired['given_otherwise']:,} given otherwise" if paired["given_otherwise"] else ""
    yield Text(f"second minus first, on {paired['tasks']:,} shared tasks ({alone}{other})")
    table = _table("metric", "difference, 95 % of tasks", "p", "better", "worse")
    for name, found in paired["metrics"].items():
        table.add_row(name, _cell(found), f"{found['p']:.4f}", f"{found['better']:,}", f"{found['worse']:,}")
    yield table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    reach = f" [{found['low']:.3f}, {found['high']:.3f}]" if found["low"] is not None else ""
    return f"{found['mean']:.3f}{reach}"
