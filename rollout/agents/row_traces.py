"""What an episode used, read from its row and those of its children: `rollout show RUN EPISODE --trace`.

A view and no second truth: totals are the row's own columns. A total is not known where a row does not tell it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from rollout.agents.conversations import TurnSummary, UsedTool
from rollout.agents.traces import counted, money, turn_table
from rollout.episode_view import Row, status_text, visible

_CAUSES = ("queue", "model", "tool", "verify", "idle")


@dataclass(frozen=True, slots=True)
class RowTrace:
    """An episode and its children."""

    row: Row
    children: tuple[RowTrace, ...] = ()

    @property
    def episodes(self) -> int:
        """This one and all below it."""
        return 1 + sum(child.episodes for child in self.children)

    @property
    def seconds(self) -> float:
        """Wall time of the episode; its children's is within it or beside it."""
        times: Mapping[str, float] = self.row["seconds"] or {}
        return sum(times.get(cause) or 0.0 for cause in _CAUSES)

    def total(self, column: str) -> float | None:
        """A number of the row, and of the rows below it; None where one of them does not tell it."""
        parts: list[float | None] = [self.row[column], *(child.total(column) for child in self.children)]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


def row_trace(rows: Sequence[Row], episode: str) -> RowTrace:
    """The trace of `episode`; `rows` are it and all that descend from it, children in the order in which they are to
    be told."""
    below: dict[str | None, list[Row]] = {}
    for row in rows:
        below.setdefault(row["parent_episode_id"], []).append(row)

    def of(row: Row) -> RowTrace:
        children = below.pop(row["episode_id"], [])  # a row that is its own ancestor has them once
        return RowTrace(row, tuple(of(child) for child in children))

    return of(next(row for row in rows if row["episode_id"] == episode))


def row_trace_view(trace: RowTrace) -> Iterator[RenderableType]:
    """A trace to be printed: the tree of agents and children, what all of it took, then a row a turn."""
    yield _tree(trace)
    if trace.children:
        yield Text(f"in all {trace.episodes} episodes · {_totals(trace, trace.total)}")
    yield turn_table(row_summaries(trace.row))


def row_summaries(row: Row) -> tuple[TurnSummary, ...]:
    """The turns of a row, one summary each. Rows tell the cost of an episode, not of its turns."""
    summed: list[TurnSummary] = []
    before, segment = 0, 0
    for turn in row["turns"] or ():
        if turn["segment"] != segment:
            before, segment = 0, turn["segment"]
        added, sampled = turn["prompt_ids"], turn["completion_ids"]
        prompt = None if added is None else before + len(added)
        before = (prompt or 0) + len(sampled or ())
        calls = turn["tool_calls"] or ()
        said = (part["text"] for part in turn["segments"] or () if part["kind"] == "content")
        summed.append(
            TurnSummary(
                agent=turn["agent"],
                model=row["model"],
                input="",
                output="".join(said).strip(),
                tools=tuple(_used(call) for call in calls),
                input_tokens=prompt,
                output_tokens=None if sampled is None else len(sampled),
                cached_tokens=turn["cached_tokens"],
                seconds=turn["model_seconds"] + max((call["seconds"] or 0.0 for call in calls), default=0.0),
            )
        )
    return tuple(summed)


def _used(call: Row) -> UsedTool:
    return UsedTool(call["name"], call["arguments"], call["result"] or "", call["error"])


def _tree(trace: RowTrace) -> Tree:
    row = trace.row
    reward = "no reward" if row["reward"] is None else f"reward {row['reward']:g}"
    head = Text.assemble((visible(row["episode_id"]), "bold"), "  ", status_text(row["status"]))
    head.append(f"  {visible(row['stop_reason'])} · {reward}")
    tree = Tree(Group(head, Text(f"{_totals(trace, row.get)} · {trace.seconds:.2f} s", style="dim")))
    first = 0
    for _, turns in groupby(row["turns"] or (), key=lambda turn: turn["agent"]):
        stretch = list(turns)
        tree.add(_stretch(first, stretch))
        first += len(stretch)
    for child in trace.children:
        tree.add(_tree(child))
    return tree


def _stretch(first: int, turns: Sequence[Row]) -> Text:
    """Turns that one agent had in a row, from number `first` on, and what it called."""
    names = Counter(call["name"] or "not a call" for turn in turns for call in turn["tool_calls"] or ())
    called = "".join(f" · {name}{f' x{times}' if times > 1 else ''}" for name, times in names.items())
    span = f"turn {first}" if len(turns) == 1 else f"turns {first}-{first + len(turns) - 1}"
    return Text.assemble((visible(turns[0]["agent"]), "green"), f"  {span}{visible(called)}")


def _totals(trace: RowTrace, tell: Any) -> str:
    cached = tell("cached_tokens")
    return (
        f"{counted(tell('num_turns'))} model calls · {counted(tell('tool_calls'))} tool calls · "
        f"{counted(tell('prompt_tokens'))} in{f' ({cached:,} cached)' if cached else ''} · "
        f"{counted(tell('completion_tokens'))} out · {money(tell('cost'))}"
    )
