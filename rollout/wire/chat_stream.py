"""The stream of OpenAI Chat Completions, and beside its chunks the events that tell of a call as soon as it is whole.

    event: tool_call_dispatch
    data: {"choice_index": 0, "tool_call": {"index", "id", "type", "function": {"name", "arguments"}}, ...}

    event: reasoning_dispatch
    data: {"index": 0, "reasoning_content": "all of a block", ...}

Source: NVIDIA Dynamo's streaming dispatch. OpenAI's own client does not look at an event's name and takes every event
for a chunk: those here have no choices, so that loops over choices pass by them. They come only when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from rollout.turn import ToolCall
from rollout.wire.asked import Asked
from rollout.wire.chat import call_entry, finish_reason, usage
from rollout.wire.errors import Refused, openai_error
from rollout.wire.reply import (
    ArgumentsDelta,
    Begun,
    CallEnded,
    CallStarted,
    ContentDelta,
    Event,
    Finished,
    ReasoningDelta,
)
from rollout.wire.shown import Shown
from rollout.wire.stream import COMMENT, Heading, named_event, to_json

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a server is set to say beyond OpenAI's own."""

    reasoning_key: str = "reasoning_content"
    """`reasoning` for clients that expect what newer vLLM says."""
    tool_dispatch: bool = False
    reasoning_dispatch: bool = False


class ChatStream:
    """A reply as chunks."""

    def __init__(self, asked: Asked, heading: Heading, options: ChatOptions | None = None) -> None:
        self._options = options or ChatOptions()
        self._shown = Shown(asked.parallel_calls)
        self._include_usage = asked.include_usage
        told = {
            "id": heading.id,
            "object": "chat.completion.chunk",
            "created": heading.created,
            "model": heading.model,
        }
        self._told = told
        # All that is the same in every chunk is encoded once.
        opened = b"data: " + to_json(told)[:-1]
        self._head = opened + b',"choices":[{"index":0,"delta":{'
        self._tail = b'},"logprobs":null,"finish_reason":null}]%s}\n\n' % (
            b',"usage":null' if self._include_usage else b""
        )
        self._opened = opened
        self._keys = {
            ReasoningDelta: b"%s:" % to_json(self._options.reasoning_key),
            ContentDelta: b'"content":',
        }
        self._last: dict[type[Event], int] = {}
        self._reasoning: list[str] = []
        self._calls = 0
        self._whole_calls = 0

    @property
    def full(self) -> bool:
        """Nothing that the model may still say will be shown: sampling may stop."""
        return self._shown.full

    def feed(self, event: Event) -> bytes:
        """The chunks of an event."""
        return b"".join([self._tell(shown) for shown in self._shown.of(event)])

    def _tell(self, event: Event) -> bytes:
        match event:
            case ReasoningDelta(part, text) | ContentDelta(part, text):
                return self._text(event, part, text)
            case ArgumentsDelta(_, _, text):
                call = b'"tool_calls":[{"index":%d,"function":{"arguments":%s}}]' % (self._calls - 1, to_json(text))
                return self._head + call + self._tail
            case CallStarted(_, id, name):
                entry = call_entry(ToolCall(id, name, ""), self._calls)
                self._calls += 1
                return self._thought() + self._head + b'"tool_calls":[%s]' % to_json(entry) + self._tail
            case CallEnded():
                return self._ended(event)
            case Begun():
                return self._head + b'"role":"assistant","content":""' + self._tail
            case Finished():
                return self._finish(event)
            case _:
                return b""

    def fail(self, refused: Refused) -> bytes:
        """An error where a chunk would be."""
        return b"data: %s\n\n" % to_json(openai_error(refused)) + DONE

    def idle(self) -> bytes:
        """A comment."""
        return COMMENT

    def _text(self, event: ReasoningDelta | ContentDelta, part: int, text: str) -> bytes:
        kind = type(event)
        if (last := self._last.get(kind, part)) != part:
            text = f"\n{text}"  # parts are separate texts
        self._last[kind] = part
        thought = b""
        if kind is ReasoningDelta:
            if self._options.reasoning_dispatch:
                thought = self._thought() if last != part else b""
                self._reasoning.append(text)
        elif self._reasoning:
            thought = self._thought()
        return thought + self._head + self._keys[kind] + to_json(text) + self._tail

    def _thought(self) -> bytes:
        """The block of reasoning that is over, if one is."""
        if not self._reasoning:
            return b""
        text = "".join(self._reasoning).removeprefix("\n")
        self._reasoning.clear()
        return self._aside("reasoning_dispatch", {"index": 0, self._options.reasoning_key: text})

    def _ended(self, event: CallEnded) -> bytes:
        if event.error is not None:
            return b""
        self._whole_calls += 1
        if not self._options.tool_dispatch:
            return b""
        call = call_entry(ToolCall(event.id, event.name, event.arguments), self._calls - 1)
        return self._aside("tool_call_dispatch", {"choice_index": 0, "tool_call": call})

    def _aside(self, name: str, data: dict[str, object]) -> bytes:
        return named_event(name, {**data, **self._told, "object": name, "choices": []})

    def _finish(self, event: Finished) -> bytes:
        reason = finish_reason(event.reason, self._whole_calls > 0)
        nothing = b',"usage":null' if self._include_usage else b""
        last = b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"%s"}]%s}\n\n'
        chunks = self._thought() + self._opened + last % (reason.encode(), nothing)
        if self._include_usage:
            chunks += self._opened + b',"choices":[],"usage":%s}\n\n' % to_json(usage(event.usage))
        return chunks + DONE
