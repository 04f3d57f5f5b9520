"""Reasoning and calls between tags in one stream: two components, and the machine that owns the stream.

`ReasoningTags` says what opens and closes reasoning, `ToolTags` what opens a call and who reads it. Neither knows the
other: any of the first goes with any of the second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rollout.parsing.events import Event, Parts, Said
from rollout.parsing.markers import Head, held_back, pattern_of
from rollout.turn import ToolSpec


class Reader(Protocol):
    """Reads one call, or one list of them, and tells it to the parts it was made with."""

    def read(self, text: str) -> str | None:
        """More of it: None while it goes on, what follows it once it has ended."""
        ...

    def finish(self) -> None:
        """The completion is over."""
        ...


MakeReader = Callable[[Parts, Sequence[ToolSpec]], Reader]


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What stands around reasoning."""

    open: str
    close: str


@dataclass(frozen=True, slots=True)
class ToolTags:
    """What begins calls, and what reads them.

    `opens` are the markers that begin a call; one that `kept` names is left for the reader. `others` mean nothing
    outside of a call and are taken out of what is said. `bare` tells how calls begin without any marker, where nothing
    was said since the beginning, the last reasoning or the last call.
    """

    opens: tuple[str, ...]
    others: tuple[str, ...]
    reader: MakeReader
    kept: tuple[str, ...] = ()
    bare: tuple[Head, ...] = ()
    between: str = " \t\r\n"
    """Characters that may stand before a bare call."""


@dataclass(frozen=True, slots=True)
class TagGrammar:
    """One reasoning and one tool component; None reads no reasoning, or no calls."""

    reasoning: ReasoningTags | None
    calls: ToolTags | None
    markers: tuple[str, ...]
    """All that mean something outside of calls."""
    pattern: re.Pattern[str]

    @staticmethod
    def of(reasoning: ReasoningTags | None, calls: ToolTags | None) -> TagGrammar:
        """The two together."""
        markers = (reasoning.open, reasoning.close) if reasoning else ()
        markers += (*calls.opens, *calls.others) if calls else ()
        return TagGrammar(reasoning, calls, markers, pattern_of(markers))


class TagMachine:
    """One completion. Text in, events out; any chunking of a text gives the same parts."""

    def __init__(self, grammar: TagGrammar, turn: int, tools: Sequence[ToolSpec], in_reasoning: bool) -> None:
        self._parts = Parts(turn)
        self._reasoning = reasoning = grammar.reasoning
        self._calls = calls = grammar.calls
        self._markers, self._pattern = grammar.markers, grammar.pattern
        self._tools = tools
        self._kind: Said = "reasoning" if in_reasoning and reasoning else "content"
        self._rest = ""
        self._reader: Reader | None = None
        self._fresh = calls is not None and bool(calls.bare)
        """A call may begin here without a marker."""

    def feed(self, text: str) -> tuple[Event, ...]:
        """What `text` adds."""
        self._rest += text
        while self._step():
            pass
        return self._parts.take()

    def finish(self) -> tuple[Event, ...]:
        """What the end of the completion adds."""
        if self._reader is not None:
            self._reader.finish()
        else:
            self._fresh = False
            while self._step():
                pass
            self._parts.say(self._kind, self._rest)
            self._parts.cut()
        self._rest = ""
        return self._parts.take()

    def _step(self) -> bool:
        """One piece of the text that is there. False when more is needed."""
        if self._reader is not None:
            left = self._reader.read(self._rest)
            self._rest = left or ""
            if left is None:
                return False
            self._reader = None
            self._refresh()
        if self._fresh and self._kind == "content" and self._calls is not None:
            begin = self._rest.lstrip(self._calls.between)
            if not begin or any(head.may_come(begin) for head in self._calls.bare):
                return False
            if any(head.whole.match(begin) for head in self._calls.bare):
                self._rest = begin
                self._reader = self._calls.reader(self._parts, self._tools)
                return True
            self._fresh = False
        found = self._pattern.search(self._rest)
        if found is None:
            cut = held_back(self._rest, self._markers)
            if cut:
                self._parts.say(self._kind, self._rest[:cut])
                self._rest = self._rest[cut:]
            return False
        if found.start():
            self._parts.say(self._kind, self._rest[: found.start()])
        self._rest = self._rest[found.end() :]
        self._mark(found.group())
        return True

    def _mark(self, marker: str) -> None:
        """A marker ends what was said. One that is out of its place does no more than that."""
        if self._reasoning is not None and marker == self._reasoning.close:
            self._parts.reconsider()
        self._parts.cut()
        if self._reasoning is not None and marker == self._reasoning.open:
            self._kind = "reasoning"
        elif self._reasoning is not None and marker == self._reasoning.close:
            self._kind = "content"
            self._refresh()
        elif self._calls is not None and marker in self._calls.opens:
            if marker in self._calls.kept:
                self._rest = marker + self._rest
            self._kind = "content"
            self._reader = self._calls.reader(self._parts, self._tools)

    def _refresh(self) -> None:
        self._fresh = self._calls is not None and bool(self._calls.bare)
