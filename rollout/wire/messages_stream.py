"""The stream of Anthropic Messages.

    message_start, (content_block_start, content_block_delta+, content_block_stop)*, message_delta, message_stop

A block of thinking has its signature as its last delta. A call is told when it can be made, start, input and stop at
once, so that one that is cut off is never seen; tools with `eager_input_streaming` get their input as it is drawn.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import Any

from rollout.wire.asked import Asked
from rollout.wire.errors import Refused, anthropic_error
from rollout.wire.messages import as_input_json, stopped, usage
from rollout.wire.reply import (
    ArgumentsDelta,
    Begun,
    CallEnded,
    CallStarted,
    ContentDelta,
    Event,
    Finished,
    ReasoningDelta,
    Usage,
)
from rollout.wire.shown import Shown
from rollout.wire.stream import Heading, named_event, to_json

_PING = named_event("ping", {"type": "ping"})
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%s","%s":%s}}\n\n'
)


class MessagesStream:
    """A reply as Anthropic's events."""

    def __init__(self, asked: Asked, heading: Heading) -> None:
        eager = asked.eager
        self._heading = heading
        self._eager = eager
        self._shown = Shown(asked.parallel_calls, lambda name: name not in eager)
        self._index = -1
        self._open = -1
        """The part that the open block tells of; -1 when none is open."""
        self._thought: hashlib.blake2b | None = None
        self._called = ""
        self._calls = 0

    @property
    def full(self) -> bool:
        """Nothing that the model may still say will be shown: sampling may stop."""
        return self._shown.full

    def feed(self, event: Event) -> bytes:
        """The events of an event."""
        return b"".join([self._tell(shown) for shown in self._shown.of(event)])

    def fail(self, refused: Refused) -> bytes:
        """An error event."""
        return named_event("error", anthropic_error(refused))

    def idle(self) -> bytes:
        """A ping."""
        return _PING

    def _tell(self, event: Event) -> bytes:
        match event:
            case ContentDelta(part, text):
                before = (
                    b"" if part == self._open else self._start(part, {"type": "text", "text": "", "citations": None})
                )
                return before + _DELTA % (self._index, b"text_delta", b"text", to_json(text))
            case ReasoningDelta(part, text):
                before = b""
                if part != self._open:
                    before = self._start(part, {"type": "thinking", "thinking": "", "signature": ""})
                    self._thought = hashlib.blake2b(digest_size=24)
                if self._thought is not None:
                    self._thought.update(text.encode())
                return before + _DELTA % (self._index, b"thinking_delta", b"thinking", to_json(text))
            case CallStarted(part, id, name):
                self._called = name
                return self._start(part, {"type": "tool_use", "id": id, "name": name, "input": {}})
            case ArgumentsDelta(_, _, text):
                whole = text if self._called in self._eager else as_input_json(text)
                return _DELTA % (self._index, b"input_json_delta", b"partial_json", to_json(whole))
            case CallEnded(error=error):
                self._calls += error is None
                return self._stop()
            case Begun(tokens, cached):
                return self._begin(Usage(tokens, cached))
            case Finished():
                return self._finish(event)
            case _:
                return b""

    def _begin(self, tokens: Usage) -> bytes:
        message: dict[str, Any] = {
            "id": self._heading.id,
            "type": "message",
            "role": "assistant",
            "model": self._heading.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(tokens),
        }
        return named_event("message_start", {"type": "message_start", "message": message})

    def _start(self, part: int, block: dict[str, Any]) -> bytes:
        before = self._stop()
        self._index += 1
        self._open = part
        data = {"type": "content_block_start", "index": self._index, "content_block": block}
        return before + named_event("content_block_start", data)

    def _stop(self) -> bytes:
        if self._open < 0:
            return b""
        self._open = -1
        signed = b""
        if self._thought is not None:
            mark = to_json(b64encode(self._thought.digest()).decode())
            signed = _DELTA % (self._index, b"signature_delta", b"signature", mark)
            self._thought = None
        stop = {"type": "content_block_stop", "index": self._index}
        return signed + named_event("content_block_stop", stop)

    def _finish(self, event: Finished) -> bytes:
        delta = {"type": "message_delta", "delta": stopped(event, self._calls > 0), "usage": usage(event.usage)}
        return (
            self._stop() + named_event("message_delta", delta) + named_event("message_stop", {"type": "message_stop"})
        )
