"""Context management in the middle of a run: what the model sees gets shorter, the record keeps all of it.

Pure: no model is called here. `due` says whether the next prompt, whose real length in tokens the caller knows, is
so long that the view must change, and plans it; `compacted` makes the new view. In between the caller has the policy,
or another model, answer `Plan.request` where the strategy is a summary. The first `head` messages always stand (the
system message, and the task where the caller says so). A cut never parts a tool call from its result. A changed view
opens a new segment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Annotated, Any, Literal, cast

from pydantic import Field, PositiveInt

from rollout.sections import Section
from rollout.trajectory import Message

Strategy = Literal["summary", "trim", "edit"]
Count = Callable[[Sequence[Message]], int]
"""Tokens of the prompt that these messages make, with tools and the header of the policy's turn."""
CLEARED = "[this tool result was cleared to save room]"
_SUMMARISE = (
    "You compress the earlier part of an agent's conversation, which it will no longer see. Write what it needs to go "
    "on: the task, decisions, facts with their exact names and numbers, which tools were called with what outcome, "
    "and what is still to be done. Use the third person and the past tense. Add nothing that is not there."
)


class ContextConfig(Section):
    """What happens when a conversation gets long."""

    context_window: PositiveInt | None = None
    """Tokens that the model reaches; the served model's own length when not given."""
    compact_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the window from which on a prompt is too long."""
    keep_last: PositiveInt = 20
    """So many messages at least stay as they are."""
    strategy: Literal["summary", "trim", "edit", "none"] = "summary"
    """Old messages become a `summary` or are left out (`trim`), or old tool results are cleared (`edit`)."""
    train_summaries: bool = False
    """Whether summaries that the policy wrote are trained on."""
    when: tuple[Literal["run_start", "before_call"], ...] = ("run_start", "before_call")
    """Looked at when a run starts, before every model call, or both."""
    on_failure: Literal["stop", "trim"] = "stop"
    """After a summary that could not be had: the run stops, or old messages are left out instead."""
    max_segments: PositiveInt | None = None
    """A run that has so many segments is compacted no more."""

    def value(self, window: int) -> ContextRule | None:
        """As a run takes it, for a model that reaches `window` tokens; None when nothing is ever to be done."""
        if self.strategy == "none":
            return None
        limit = floor(Fraction(str(self.compact_threshold)) * (self.context_window or window))
        return ContextRule(limit, self.keep_last, self.strategy, self.on_failure, self.max_segments)


@dataclass(frozen=True, slots=True)
class ContextRule:
    """When a view is compacted and how. `limit` is in tokens: a prompt of that length is too long already."""

    limit: int
    keep_last: int = 20
    strategy: Strategy = "summary"
    on_failure: Literal["stop", "trim"] = "stop"
    max_segments: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A compaction that is due: messages [head, cut) of the view give way. `tokens` is the prompt's length now."""

    view: tuple[Message, ...]
    head: int
    cut: int
    tokens: int
    rule: ContextRule

    @property
    def request(self) -> tuple[Message, ...]:
        """The conversation that asks for the summary: tool names and arguments are in it."""
        told = "\n\n".join(_told(message) for message in self.view[self.head : self.cut])
        return ({"role": "system", "content": _SUMMARISE}, {"role": "user", "content": told})


@dataclass(frozen=True, slots=True)
class Compaction:
    """What goes on the record. `cut_index` counts messages of the view before; the lengths are of whole prompts."""

    strategy: Strategy
    tokens_before: int
    tokens_after: int
    cut_index: int
    num_messages: int
    """Messages that gave way or were cleared."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """The view from here on, and the record of how it came about."""

    view: tuple[Message, ...]
    record: Compaction


def due(view: Sequence[Message], head: int, tokens: int, rule: ContextRule, segments: int = 1) -> Plan | None:
    """The compaction that a view whose prompt has `tokens` tokens needs; None below the limit, with at most
    `keep_last` messages behind the head, when nothing before them can give way, and when the run has its segments.

    A head that ends in the middle of calls and their results grows to hold them all.
    """
    safe = safe_cuts(view)
    head = next(at for at in safe if at >= head)
    if tokens < rule.limit or len(view) - head <= rule.keep_last:
        return None
    if rule.max_segments is not None and segments >= rule.max_segments:
        return None
    cut = len(view) - rule.keep_last
    if rule.strategy != "edit":
        cut = max((at for at in safe if at <= cut), default=head)
    elif not any(_clearable(message) for message in view[head:cut]):
        return None
    return Plan(tuple(view), head, cut, tokens, rule) if cut > head else None


def compacted(plan: Plan, count: Count, summary: str | None = None) -> Compacted | None:
    """The new view. `summary` is what the model answered to `Plan.request`; None or blank when it could not be had.

    None when the run must stop: the view does not become shorter, and the rule does not say to trim instead.
    """
    strategy = plan.rule.strategy
    if strategy != "summary" or (summary is not None and summary.strip()):
        made = _made(plan, strategy, count, (summary or "").strip())
        if made is not None or strategy == "trim":
            return made
    return _made(plan, "trim", count, "") if plan.rule.on_failure == "trim" else None


def safe_cuts(messages: Sequence[Message]) -> list[int]:
    """Indices, from 0 to the length, where a cut parts no call from its result.

    A result belongs to the last call of its id that has none yet, for some endpoints give the same ids again; one
    whose call is nowhere belongs to the message before it.
    """
    waiting: dict[str, list[int]] = {}
    parted = [0] * (len(messages) + 2)
    for at, message in enumerate(messages):
        for call in message.get("tool_calls", []):
            waiting.setdefault(str(call.get("id", "")), []).append(at)
        if message["role"] == "tool":
            callers = waiting.get(message.get("tool_call_id", ""))
            parted[(callers.pop() if callers else max(at - 1, 0)) + 1] += 1
            parted[at + 1] -= 1
    cuts: list[int] = []
    across = 0
    for at in range(len(messages) + 1):
        across += parted[at]
        if not across:
            cuts.append(at)
    return cuts


def leading_system(messages: Sequence[Message]) -> int:
    """How many messages at the start are system messages: the least head there is."""
    return next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))


def _made(plan: Plan, strategy: Strategy, count: Count, summary: str) -> Compacted | None:
    """The view by one strategy; None when its prompt is no shorter."""
    head, old, tail = plan.view[: plan.head], plan.view[plan.head : plan.cut], plan.view[plan.cut :]
    number = len(old)
    middle: tuple[Message, ...] = ()
    if strategy == "summary":
        middle = ({"role": "user", "content": f"[Summary of {number} earlier messages]\n{summary}"},)
    elif strategy == "edit":
        middle = tuple(_cleared(message) for message in old)
        number = sum(_clearable(message) for message in old)
    elif plan.cut not in safe_cuts(plan.view):  # an edit needs no safe cut, what is trimmed in its place does
        cut = max((at for at in safe_cuts(plan.view) if at <= plan.cut), default=plan.head)
        old, tail = plan.view[plan.head : cut], plan.view[cut:]
        number = len(old)
    view = (*head, *middle, *tail)
    after = count(view)
    if after >= plan.tokens:
        return None
    return Compacted(view, Compaction(strategy, plan.tokens, after, len(plan.view) - len(tail), number))


def _clearable(message: Message) -> bool:
    return message["role"] == "tool" and len(message["content"]) > len(CLEARED)


def _cleared(message: Message) -> Message:
    return cast(Message, {**message, "content": CLEARED}) if _clearable(message) else message


def _told(message: Message) -> str:
    """A message as the one who writes the summary reads it."""
    name = f" {message['name']}" if "name" in message else ""
    lines = [f"{message['role']}{name}: {message['content']}".rstrip()]
    lines += [_call(call) for call in message.get("tool_calls", [])]
    return "\n".join(lines)


def _call(call: Mapping[str, Any]) -> str:
    function = cast(Mapping[str, Any], call.get("function", {}))
    arguments = function.get("arguments", "")
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"calls {function.get('name', '')}({written})"
