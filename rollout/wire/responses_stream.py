"""The stream of OpenAI Responses.

    response.created, response.in_progress,
    (response.output_item.added, [response.content_part.added], delta+, done, [content_part.done], output_item.done)*,
    response.completed | response.incomplete | response.failed

Every event has the next `sequence_number`. Reasoning is told as reasoning text, not as a summary of it.
"""

from __future__ import annotations

from typing import Any, Literal

from rollout.turn import ToolCall
from rollout.wire.asked import Asked
from rollout.wire.errors import Kind, Refused
from rollout.wire.reply import (
    ArgumentsDelta,
    Begun,
    CallEnded,
    CallStarted,
    ContentDelta,
    Event,
    Finished,
    Fold,
    Part,
    ReasoningDelta,
    Whole,
)
from rollout.wire.responses import item, response
from rollout.wire.shown import Shown
from rollout.wire.stream import COMMENT, Heading, to_json

_CODES = {Kind.RATE_LIMIT: "rate_limit_exceeded", Kind.INVALID: "invalid_prompt"}
_DELTAS = {
    "content": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "call": "response.function_call_arguments.delta",
}
_PARTS: dict[str, dict[str, Any]] = {
    "content": {"type": "output_text", "annotations": [], "logprobs": []},
    "reasoning": {"type": "reasoning_text"},
}


class ResponsesStream:
    """A reply as the typed events of Responses.

    After Finished, `body` is the response as it was told and `reply` what there is to be stored: keep them before the
    last bytes go out, or a client that is quick goes on from something that is not there yet.
    """

    def __init__(self, asked: Asked, heading: Heading) -> None:
        self._asked, self._heading = asked, heading
        self._shown = Shown(asked.parallel_calls)
        self._fold = Fold()
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._part = -1
        """The part that the open item tells of; -1 when none is open."""
        self._kind: Literal["reasoning", "content", "call"] = "content"
        self._call: CallStarted | None = None
        self._texts: list[str] = []
        self._delta: tuple[bytes, bytes] = (b"", b"")
        self.body: dict[str, Any] | None = None
        self.reply: Whole | None = None

    @property
    def full(self) -> bool:
        """Nothing that the model may still say will be shown: sampling may stop."""
        return self._shown.full

    def feed(self, event: Event) -> bytes:
        """The events of an event."""
        if not self.full or isinstance(event, Finished):
            self._fold.add(event)
        return b"".join([self._tell(shown) for shown in self._shown.of(event)])

    def fail(self, refused: Refused) -> bytes:
        """A response that failed."""
        error = {"code": _CODES.get(refused.kind, "server_error"), "message": refused.message}
        failed = {**response(self._asked, self._heading, self._items, None), "status": "failed", "error": error}
        return self._event("response.failed", {"response": failed})

    def idle(self) -> bytes:
        """A comment."""
        return COMMENT

    def _tell(self, event: Event) -> bytes:
        match event:
            case ContentDelta(part, text):
                return (b"" if part == self._part else self._open(part, "content")) + self._more(text)
            case ReasoningDelta(part, text):
                return (b"" if part == self._part else self._open(part, "reasoning")) + self._more(text)
            case ArgumentsDelta(_, _, text):
                return self._more(text)
            case CallStarted(part):
                return self._open(part, "call", event)
            case CallEnded(error=error):
                return self._close("completed" if error is None else "incomplete")
            case Begun():
                body = response(self._asked, self._heading, (), None)
                return self._event("response.created", {"response": body}) + self._event(
                    "response.in_progress", {"response": body}
                )
            case Finished():
                return self._finish(event)
            case _:
                return b""

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        told = to_json({"type": name, "sequence_number": self._number, **data})
        self._number += 1
        return b"event: %s\ndata: %s\n\n" % (name.encode(), told)

    def _item(self, text: str, status: str) -> dict[str, Any]:
        call = ToolCall(self._call.id, self._call.name, text) if self._call is not None else None
        return item(self._asked, self._heading, len(self._items), Part(self._kind, text, call), status)

    @property
    def _place(self) -> dict[str, Any]:
        """Where the open item is, and its text in it."""
        shown = {"item_id": self._item("", "")["id"], "output_index": len(self._items)}
        return shown if self._kind == "call" else {**shown, "content_index": 0}

    def _open(self, part: int, kind: Literal["reasoning", "content", "call"], call: CallStarted | None = None) -> bytes:
        before = self._close("completed")
        self._part, self._kind, self._call = part, kind, call
        shown = self._item("", "in_progress")
        if kind != "call":
            shown["content"] = []
        added = self._event("response.output_item.added", {"output_index": len(self._items), "item": shown})
        if kind != "call":
            part_shown = {**_PARTS[kind], "text": ""}
            added += self._event("response.content_part.added", {**self._place, "part": part_shown})
        # All that is the same in every delta is encoded once.
        name = _DELTAS[kind].encode()
        place = to_json({**self._place, "logprobs": []} if kind == "content" else self._place)[1:-1]
        self._delta = (b'event: %s\ndata: {"type":"%s","sequence_number":' % (name, name), b"," + place + b',"delta":')
        return before + added

    def _more(self, text: str) -> bytes:
        self._texts.append(text)
        head, tail = self._delta
        number = self._number
        self._number += 1
        return b"%s%d%s%s}\n\n" % (head, number, tail, to_json(text))

    def _close(self, status: str) -> bytes:
        if self._part < 0:
            return b""
        text = "".join(self._texts)
        done, place = b"", self._place
        if self._kind == "call":
            done = self._event("response.function_call_arguments.done", {**place, "arguments": text})
        else:
            kind = _DELTAS[self._kind].removesuffix("delta") + "done"
            logprobs: dict[str, Any] = {"logprobs": []} if self._kind == "content" else {}
            done = self._event(kind, {**place, "text": text, **logprobs})
            done += self._event("response.content_part.done", {**place, "part": {**_PARTS[self._kind], "text": text}})
        shown = self._item(text, status)
        done += self._event("response.output_item.done", {"output_index": len(self._items), "item": shown})
        self._items.append(shown)
        self._part, self._call = -1, None
        self._texts.clear()
        return done

    def _finish(self, event: Finished) -> bytes:
        told = self._close("incomplete" if event.cut else "completed")
        self.reply = self._fold.whole()
        self.body = response(self._asked, self._heading, self._items, event)
        return told + self._event("response.incomplete" if event.cut else "response.completed", {"response": self.body})
