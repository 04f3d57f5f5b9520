"""Reads a completion into ordered segments: reasoning, content, tool calls, just as they were sampled.

One grammar serves the Hermes and Qwen formats: `<think>...</think>`, `<tool_call>{"name":..., "arguments":{...}}
</tool_call>`, content elsewhere, in any order and number. It is incremental: any chunking of a text gives the same
segments, and a marker cut in two by a chunk boundary never leaks into content.

What is not well-formed is read as it was meant: a call ends reasoning that was not closed; `</think>` without an
opener closes what was said since the last marker; a call that the completion ends in counts as called; one that
cannot be read has no name. Whether a call runs is for the episode to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, cast

from rollout.trajectory import Message, Segment, ToolCall

Parser = Callable[[str, int], tuple[Segment, ...]]
"""(text of a completion, turn number) -> its segments."""

Kind = Literal["reasoning", "content", "tool_call"]

_OPENERS: dict[str, Kind] = {"<think>": "reasoning", "<tool_call>": "tool_call"}
_MARKERS = (*_OPENERS, "</think>", "</tool_call>")


class Segmenter:
    """One completion. `feed` text as it comes, then `finish`; both give the segments that are complete by then."""

    def __init__(self, turn: int, in_reasoning: bool = False) -> None:
        self._turn = turn
        self._kind: Kind = "reasoning" if in_reasoning else "content"
        self._open: list[str] = []
        self._rest = ""
        self._calls = 0
        self._seen = 0
        """Pieces of the open stretch that `under_way` has given."""

    def feed(self, text: str) -> list[Segment]:
        """Segments that `text` completes."""
        self._rest += text
        done: list[Segment] = []
        while (found := self._next_marker()) is not None:
            at, marker = found
            self._open.append(self._rest[:at])
            self._rest = self._rest[at + len(marker) :]
            if marker == "</think>":
                self._kind = "reasoning"
            done += self._close()
            self._kind = _OPENERS.get(marker, "content")
        held = _partial_marker(self._rest)
        cut = len(self._rest) - held
        self._open.append(self._rest[:cut])
        self._rest = self._rest[cut:]
        return done

    def under_way(self) -> tuple[Kind, str]:
        """The kind of the stretch that is open, and what has come of it since this was asked last."""
        fresh = "".join(self._open[self._seen :])
        self._seen = len(self._open)
        return self._kind, fresh

    def finish(self) -> list[Segment]:
        """The last segment."""
        self._open.append(self._rest)
        self._rest = ""
        return self._close()

    def _next_marker(self) -> tuple[int, str] | None:
        """The first marker that means something here: inside a call or reasoning only what can end it does."""
        hits = [(at, marker) for marker in self._meaningful() if (at := self._rest.find(marker)) >= 0]
        return min(hits) if hits else None

    def _meaningful(self) -> tuple[str, ...]:
        if self._kind == "tool_call":
            return ("</tool_call>",)
        if self._kind == "reasoning":
            return ("</think>", "<tool_call>")
        return _MARKERS

    def _close(self) -> list[Segment]:
        text = "".join(self._open).strip()
        self._open, self._seen = [], 0
        if self._kind != "tool_call":
            return [Segment(self._kind, text)] if text else []
        call = _read_call(text, f"call_{self._turn}_{self._calls}")
        self._calls += 1
        return [Segment("tool_call", text, call)]


def hermes(text: str, turn: int, in_reasoning: bool = False) -> tuple[Segment, ...]:
    """All segments of a finished completion."""
    segmenter = Segmenter(turn, in_reasoning)
    return (*segmenter.feed(text), *segmenter.finish())


def as_message(segments: tuple[Segment, ...]) -> Message:
    """The completion as a chat message in OpenAI's shape."""
    message: Message = {
        "role": "assistant",
        "content": "\n".join(part.text for part in segments if part.kind == "content"),
    }
    if reasoning := "\n".join(part.text for part in segments if part.kind == "reasoning"):
        message["reasoning_content"] = reasoning
    if calls := [part.call for part in segments if part.call is not None]:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def _read_call(text: str, call_id: str) -> ToolCall:
    """A call from its JSON; one that cannot be read keeps its text as arguments and has no name.

    Python's json takes more than JSON: NaN, and half a surrogate pair, which no tokenizer and no file could hold.
    """
    malformed = ToolCall(call_id, "", text)
    try:
        value: Any = json.loads(text)
        if not isinstance(value, dict):
            return malformed
        entries = cast(dict[str, Any], value)
        name, arguments = entries.get("name"), entries.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return malformed
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + written).encode()
    except (ValueError, RecursionError):  # the latter for a policy that opens a thousand brackets
        return malformed
    return ToolCall(call_id, name, written)


def _partial_marker(text: str) -> int:
    """Length of the longest end of `text` that could still become a marker."""
    longest = max(len(marker) for marker in _MARKERS) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[-size:]) for marker in _MARKERS):
            return size
    return 0
