"""gpt-oss's harmony: messages with a header that says their channel and recipient.

    <|channel|>analysis<|message|>REASONING<|end|><|start|>assistant<|channel|>commentary to=functions.NAME
    <|constrain|>json<|message|>{...}<|call|>

Reasoning is what stands in the analysis channel, a call what has a recipient, content all else. A prompt ends in
`<|start|>assistant`, so a completion begins inside a header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rollout.parsing.events import Event, Parts, Said
from rollout.parsing.json_calls import NamedCall
from rollout.parsing.markers import Head, held_back, letters, pattern_of
from rollout.turn import ToolSpec

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
_ANY = pattern_of(MARKERS)
_CLOSE = pattern_of((*ENDS, START, CHANNEL))
_RECIPIENT = re.compile(r"(?:^|\s)to=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*([^\s<]+)")
_ADDRESSED = Head(r"\s*", *letters("to="), r"[^\s<]*", r"\s*")
"""A header may begin with its recipient; other text before any marker is content."""


class ChannelMachine:
    """One completion. Text in, events out; any chunking of a text gives the same parts."""

    def __init__(self, turn: int, tools: Sequence[ToolSpec], in_reasoning: bool) -> None:
        self._parts = Parts(turn)
        self._rest = ""
        self._call: NamedCall | None = None
        self._header: str | None = "" if not in_reasoning else None
        """As far as it came; None outside of headers."""
        self._unmarked = True
        """No marker came yet."""
        self._kind: Said = "reasoning" if in_reasoning else "content"

    def feed(self, text: str) -> tuple[Event, ...]:
        """What `text` adds."""
        self._rest += text
        while self._step():
            pass
        return self._parts.take()

    def finish(self) -> tuple[Event, ...]:
        """What the end of the completion adds. A header that was not finished says nothing."""
        if self._call is not None:
            self._call.finish()
        else:
            if self._unmarked and self._header is not None:
                self._header, self._rest = None, self._header + self._rest
            self._take(self._rest)
            self._parts.cut()
        self._rest = ""
        return self._parts.take()

    def _step(self) -> bool:
        """One piece of the text that is there. False when more is needed."""
        if self._call is not None:
            left = self._call.read(self._rest)
            self._rest = left or ""
            if left is None:
                return False
            self._call = None
        found = _ANY.search(self._rest)
        if found is None:
            cut = held_back(self._rest, MARKERS)
            self._take(self._rest[:cut])
            self._rest = self._rest[cut:]
            return False
        self._take(self._rest[: found.start()])
        self._rest = self._rest[found.end() :]
        self._mark(found.group())
        return True

    def _take(self, text: str) -> None:
        """Text between markers."""
        if self._header is not None:
            self._header += text
            if not self._unmarked or _ADDRESSED.may_come(self._header):
                return
            text, self._header = self._header, None
        self._parts.say(self._kind, text)

    def _mark(self, marker: str) -> None:
        header = self._header
        if self._unmarked and header and marker in ENDS:
            self._parts.say("content", header)
        self._unmarked = False
        self._parts.cut()
        if marker == START:
            self._header, self._kind = "", "content"
        elif marker == CHANNEL:
            self._header = (header or "") + marker
        elif marker in ENDS:
            self._header, self._kind = None, "content"
        elif header is not None:
            if marker == MESSAGE:
                self._begin(header)
            else:
                self._header = header + marker

    def _begin(self, header: str) -> None:
        """The body of a message."""
        self._header = None
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._kind = "reasoning" if channel is not None and channel[1] == "analysis" else "content"
        if recipient is not None:
            self._kind = "content"
            self._call = NamedCall(self._parts, _CLOSE, None, name=recipient[1].removeprefix("functions."))
