"""What an agent has used: totals and turns, of an episode or a conversation, and how they look on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rollout.agents.conversations import Conversation, TurnSummary, UsedTool
from rollout.episode_view import visible
from rollout.trajectory import Trajectory, Turn

Price = Callable[[Turn, int | None], float | None]
"""What a turn's model call costs in USD, by the turn and how many tokens its prompt has; None: no price is known."""

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Trace:
    """Totals over turns. A total is None when one of its parts is: a sum that leaves something out looks like less."""

    name: str
    turns: tuple[TurnSummary, ...]

    @property
    def input_tokens(self) -> int | None:
        """Of all prompts, each counted whole."""
        return _total(turn.input_tokens for turn in self.turns)

    @property
    def output_tokens(self) -> int | None:
        """Sampled."""
        return _total(turn.output_tokens for turn in self.turns)

    @property
    def cached_tokens(self) -> int | None:
        """Of the prompts, those that a prefix cache had."""
        return _total(turn.cached_tokens for turn in self.turns)

    @property
    def cost(self) -> float | None:
        """In USD."""
        costs = [turn.cost for turn in self.turns]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if len(known) == len(costs) else None

    @property
    def model_calls(self) -> int:
        """Model calls."""
        return sum(turn.model_calls for turn in self.turns)

    @property
    def tool_calls(self) -> int:
        """Tool calls, run or not."""
        return sum(len(turn.tools) for turn in self.turns)

    @property
    def seconds(self) -> float:
        """Time the turns took, one after the other."""
        return sum(turn.seconds for turn in self.turns)

    @property
    def agents(self) -> tuple[str, ...]:
        """Whoever had a turn, in the order of their first."""
        return tuple(dict.fromkeys(turn.agent for turn in self.turns))

    @classmethod
    def of_conversation(cls, conversation: Conversation) -> Trace:
        """Of a stored conversation: the turns that were summed up in it."""
        return cls(conversation.id, conversation.turns)

    @classmethod
    def of_trajectory(cls, trajectory: Trajectory, price: Price | None = None) -> Trace:
        """Of an episode: a turn for each model call and what the tools answered to it."""
        return cls(trajectory.lease.episode_id, summaries(trajectory.turns, trajectory.model, price))


def summaries(turns: Iterable[Turn], model: str, price: Price | None = None) -> tuple[TurnSummary, ...]:
    """Summaries of an episode's turns, one each. Input is left empty: it is what the turn before was told."""
    summed: list[TurnSummary] = []
    before: int | None = 0
    segment = 0
    for turn in turns:
        if turn.segment != segment:
            before, segment = 0, turn.segment
        told = turn.completion.prompt_tokens
        added = None if turn.prompt_ids is None or before is None else before + len(turn.prompt_ids)
        prompt = told if told is not None else added
        before = None if added is None else added + turn.completion.num_sampled
        summed.append(_summary(turn, model, prompt, None if price is None else price(turn, prompt)))
    return tuple(summed)


def summed_up(turns: Iterable[TurnSummary], input: str, at: float = 0.0) -> TurnSummary:
    """Several turns as one: from what the agent was told to what it answered in the last.

    Raises ValueError without turns.
    """
    kept = tuple(turns)
    if not kept:
        raise ValueError("no turns to sum up")
    trace, last = Trace("", kept), kept[-1]
    return TurnSummary(
        agent=last.agent,
        model=last.model,
        input=input,
        output=last.output,
        tools=tuple(tool for turn in kept for tool in turn.tools),
        model_calls=trace.model_calls,
        input_tokens=trace.input_tokens,
        output_tokens=trace.output_tokens,
        cached_tokens=trace.cached_tokens,
        cost=trace.cost,
        seconds=trace.seconds,
        at=at,
    )


def trace_view(trace: Trace) -> Iterator[RenderableType]:
    """A trace to be printed: a line of totals, then a row a turn."""
    yield Text.assemble((visible(trace.name), "bold"), f"  {', '.join(map(visible, trace.agents))}")
    cached = f" ({trace.cached_tokens:,} cached)" if trace.cached_tokens else ""
    yield Text(
        f"{len(trace.turns)} turns · {trace.model_calls} model calls · {trace.tool_calls} tool calls · "
        f"{counted(trace.input_tokens)} in{cached} · {counted(trace.output_tokens)} out · {money(trace.cost)} · "
        f"{trace.seconds:.2f} s"
    )
    yield turn_table(trace.turns)


def turn_table(turns: Iterable[TurnSummary]) -> Table:
    """A row a turn."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("turn", "agent", "tools", "said"):
        table.add_column(name)
    for name in ("in", "out", "cost", "seconds"):
        table.add_column(name, justify="right")
    for number, turn in enumerate(turns):
        tools = ", ".join(f"{tool.name}{' (error)' if tool.error is not None else ''}" for tool in turn.tools)
        cells = (str(number), turn.agent, tools, _short(turn.output))
        cost = "-" if turn.cost is None else money(turn.cost)
        counts = (counted(turn.input_tokens), counted(turn.output_tokens), cost, f"{turn.seconds:.2f}")
        table.add_row(*(Text(visible(cell)) for cell in (*cells, *counts)))
    return table


def _summary(turn: Turn, model: str, prompt: int | None, cost: float | None) -> TurnSummary:
    uses = turn.tool_uses
    counted = turn.completion.ids is not None or turn.completion.sampled_tokens is not None
    return TurnSummary(
        agent=turn.agent,
        model=model,
        input="",
        output=turn.text,
        tools=tuple(UsedTool(use.call.name, use.call.arguments, use.result.content, use.result.error) for use in uses),
        input_tokens=prompt,
        output_tokens=turn.completion.num_sampled if counted else None,
        cached_tokens=turn.completion.cached_tokens,
        cost=cost,
        # Tools of a turn run at once.
        seconds=turn.model_seconds + max((use.result.seconds for use in uses), default=0.0),
    )


def _total(parts: Iterable[int | None]) -> int | None:
    kept = list(parts)
    known = [part for part in kept if part is not None]
    return sum(known) if len(known) == len(kept) else None


def counted(value: int | None) -> str:
    """A number as it is shown; ? where nobody knows it."""
    return "?" if value is None else f"{value:,}"


def money(value: float | None) -> str:
    """USD as they are shown."""
    return "no price" if value is None else f"${value:.4f}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
