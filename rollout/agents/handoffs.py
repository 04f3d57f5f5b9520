"""Handoffs: one agent of a run gives the conversation over to another, by calling a tool.

A state machine without IO. `Handoffs.take` looks through a turn's calls: the first handoff that can be read wins, it
and the other calls of the turn get their results here, and nothing else of the turn runs. `conversation` is what the
next agent begins with, in a new segment under its own system message. The call's tokens are the sender's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import msgspec
from pydantic import Field

from rollout.agents.context import safe_cuts
from rollout.agents.replies import answered, refused, skipped
from rollout.errors import UserError, nearest
from rollout.references import load_function
from rollout.sections import Section
from rollout.trajectory import Message, ToolCall, ToolSpec, ToolUse

PREFIX = "handoff_to_"
HistoryFilter = Callable[[Sequence[Message]], Sequence[Message]]
"""What the next agent sees of the conversation so far, which has no system message here."""
_LAST = re.compile(r"last_n\((\d+)\)")
_KINDS = ("all", "none", "strip_tools", "last_n(10)", "module:function")


class HandoffsConfig(Section):
    """How a run goes on when one of its agents hands it over."""

    follow: bool = True
    """Whether the other agent takes over; the run ends with the handoff when not."""
    max_handoffs: Annotated[int, Field(ge=0)] = 10
    """Handoffs that are followed in a run; the next one ends it."""
    history_filter: str = "all"
    """What the next agent sees of the conversation: `all`, `none`, `strip_tools`, `last_n(N)` or `module:function`."""

    def filter(self, key: str) -> HistoryFilter:
        """The filter, loaded. Raises UserError that begins with `key`, the section's place."""
        return load_filter(self.history_filter, f"{key}.history_filter")


@dataclass(frozen=True, slots=True)
class Handoff:
    """One agent gave over to another. An empty `message` leaves the old input standing."""

    sender: str
    target: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a turn's calls came to.

    `go_on`: the calls without a result in `uses` are tools' to run; `follow`: the target takes over; `end`: the run
    ends with the handoff, which is not followed.
    """

    kind: Literal["go_on", "follow", "end"]
    state: Handoffs
    uses: tuple[ToolUse | None, ...]
    """One for each call, in order."""
    handoff: Handoff | None = None
    """None as long as the run goes on."""
    limited: bool = False
    """It ends because so many handoffs were followed already."""


@dataclass(frozen=True, slots=True)
class Handoffs:
    """Where a run stands: how many handoffs were followed, and how many may be."""

    limit: int = 10
    follow: bool = True
    followed: int = 0

    def take(self, agent: str, targets: Mapping[str, str], calls: Sequence[ToolCall]) -> Taken:
        """What the calls of `agent`'s turn come to; `targets` are agents by the name of the tool that leads there.

        A handoff whose arguments cannot be read is told so, and is none.
        """
        uses: list[ToolUse | None] = []
        won: tuple[int, Handoff] | None = None
        for at, call in enumerate(calls):
            message = _message(call) if call.name in targets else None
            if message is not None and won is None:
                won = at, Handoff(agent, targets[call.name], message)
            wrong = call.name in targets and message is None
            uses.append(refused(call, "expected a JSON object with the text `message`") if wrong else None)
        if won is None:
            return Taken("go_on", self, tuple(uses))
        at, handoff = won
        limited = self.follow and self.followed >= self.limit
        kind = "follow" if self.follow and not limited else "end"
        told = f"not handed over: {self.limit} handoffs were followed already" if limited else ""
        for other, call in enumerate(calls):
            if other == at:
                uses[other] = skipped(call, told) if limited else answered(call, f"handed over to {handoff.target}")
            elif uses[other] is None:
                uses[other] = skipped(call, f"not run: the turn handed over to {handoff.target}")
        after = replace(self, followed=self.followed + (kind == "follow"))
        return Taken(kind, after, tuple(uses), handoff, limited)


def handoff_tools(sub_agents: Mapping[str, str], key: str) -> tuple[tuple[ToolSpec, ...], dict[str, str]]:
    """The tools that lead to these agents (name -> what it is for), and the agents by the name of their tool.

    Characters that tool names cannot have become `_`. Raises UserError that begins with `key` when two agents get the
    same tool by that.
    """
    specs: list[ToolSpec] = []
    targets: dict[str, str] = {}
    for agent, purpose in sub_agents.items():
        name = PREFIX + re.sub(r"[^A-Za-z0-9_-]", "_", agent)
        if name in targets:
            raise UserError(f"{key}: '{targets[name]}' and '{agent}' are both called by {name}; rename one of them")
        targets[name] = agent
        about = f"Hands the conversation over to {agent}. {purpose}".strip()
        told = {"type": "string", "description": "What it is to do; what was asked before stands when this is empty."}
        specs.append(ToolSpec(name, about, {"type": "object", "properties": {"message": told}, "required": []}))
    return tuple(specs), targets


def conversation(
    handoff: Handoff, system: Sequence[Message], history: Sequence[Message], old_input: str, kept: HistoryFilter
) -> tuple[Message, ...]:
    """What the target begins with: its own system message, what the filter `kept` leaves of the history (which ends
    with the results of the handoff's turn), and its input: the handoff's message, or the old one where that is empty.

    An old input that is still to be seen in the history is not said again. Raises what a filter of the user's raises,
    and TypeError when it gives no messages.
    """
    spoken = [message for message in history if message["role"] != "system"]
    seen = _messages(kept(deepcopy(spoken)))
    said = handoff.message.strip() or old_input
    stands = not handoff.message.strip() and any(
        message["role"] == "user" and message["content"] == old_input for message in seen
    )
    asked: tuple[Message, ...] = () if stands else ({"role": "user", "content": said},)
    return (*system, *seen, *asked)


def load_filter(text: str, key: str) -> HistoryFilter:
    """The filter that a configuration's `key` names. Raises UserError, one line that begins with the key."""
    if text == "all":
        return list
    if text == "none":
        return lambda history: []
    if text == "strip_tools":
        return without_tools
    if found := _LAST.fullmatch(text):
        number = int(found.group(1))
        return lambda history: last(history, number)
    if ":" not in text:
        raise UserError(f"{key}: {text!r}: no such filter{nearest(text, _KINDS)}")
    return load_function(text, key)


def without_tools(history: Sequence[Message]) -> list[Message]:
    """The history without calls, without results, and without turns that had nothing but calls."""
    kept: list[Message] = []
    for message in history:
        plain = cast(Message, {name: value for name, value in message.items() if name != "tool_calls"})
        if message["role"] != "tool" and (message["content"].strip() or "tool_calls" not in message):
            kept.append(plain)
    return kept


def last(history: Sequence[Message], number: int) -> list[Message]:
    """The last `number` messages, fewer where a result would stand without its call."""
    first = next(at for at in safe_cuts(history) if at >= len(history) - number)
    return list(history[first:])


class _Arguments(msgspec.Struct):
    message: str = ""


def _message(call: ToolCall) -> str | None:
    """The call's message; None when its arguments cannot be read."""
    try:
        return msgspec.json.decode(call.arguments or "{}", type=_Arguments).message
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def _messages(given: Any) -> list[Message]:
    """What a filter gave, if it is messages."""
    if isinstance(given, list | tuple):
        messages = cast(Sequence[Any], given)
        if all(isinstance(one, dict) and {"role", "content"} <= cast(dict[str, Any], one).keys() for one in messages):
            return list(messages)
    raise TypeError("history_filter: expected a list of messages")
