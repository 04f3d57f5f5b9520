"""An answer of the scripted endpoint as the server-sent events that vLLM would have sent for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from rollout.parsing import FORMATS
from rollout.segments import hermes
from rollout.stream_reading import TokenReader
from rollout.streaming import CallComplete, Delta, ReasoningDelta, StreamEvent, TextDelta
from rollout.template import ChatTemplate


def pieces(
    answer: bytes, ids: Sequence[int], template: ChatTemplate, size: int, chat: bool, counts: bool
) -> list[bytes]:
    """The events of `answer`, each with `size` of the tokens `ids` that it was sampled as; `counts` adds its usage."""
    whole: dict[str, Any] = msgspec.json.decode(answer)
    [choice] = whole["choices"]
    head = {"id": whole["id"], "object": "chat.completion.chunk" if chat else "text_completion", "created": 0}
    beside, inside = _prompt_ids(whole), _prompt_ids(choice)
    said = _said(ids, template, size, choice["message"]) if chat else _texts(ids, template, size)
    events: list[dict[str, Any]] = []
    for start, parts in zip(range(0, max(1, len(ids)), size), said, strict=True):
        for number, part in enumerate(parts):
            tokens = _tokens(choice, start, start + size if number == 0 else start)  # once, whatever they became
            told = {"index": 0, **part, **tokens, **inside, "finish_reason": None}
            events.append({**head, **beside, "choices": [told]})
            beside, inside = {}, {}
    events[-1]["choices"][0]["finish_reason"] = choice["finish_reason"]
    if counts:
        events.append({**head, "choices": [], "usage": whole["usage"]})
    return [*(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events), b"data: [DONE]\n\n"]


def _prompt_ids(holder: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of the prompt, where this part of an answer tells them: vLLM tells them once a stream."""
    return {"prompt_token_ids": holder["prompt_token_ids"]} if "prompt_token_ids" in holder else {}


def _tokens(choice: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """What the answer says of the tokens [start, end)."""
    told: dict[str, Any] = {"logprobs": None}
    if "token_ids" in choice:
        told["token_ids"] = choice["token_ids"][start:end]
    if choice["logprobs"] is not None:
        told["logprobs"] = {key: values[start:end] if values else values for key, values in choice["logprobs"].items()}
    return told


def _texts(ids: Sequence[int], template: ChatTemplate, size: int) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, max(1, len(ids)), size):
        yield [{"text": template.decode(ids[start : start + size])}]


def _said(
    ids: Sequence[int], template: ChatTemplate, size: int, message: Mapping[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """For each piece of the ids the deltas that become of it, at least an empty one."""
    reader = TokenReader(template, FORMATS["hermes"].open())
    teller = _Deltas("reasoning_content" if "reasoning_content" in message else "reasoning", message)
    starts = range(0, max(1, len(ids)), size)
    for start in starts:
        events = [*reader.feed(Delta(ids[start : start + size]))]
        if start == starts[-1]:
            events += reader.finish(hermes(template.decode(ids), 0))
        yield [{"delta": delta} for event in events for delta in teller.deltas(event)] or [{"delta": {}}]


class _Deltas:
    """Events as the deltas of chat messages."""

    def __init__(self, reasoning: str, message: Mapping[str, Any]) -> None:
        self._reasoning = reasoning
        self._calls: Sequence[Mapping[str, Any]] = message.get("tool_calls", ())
        self._told = 0
        self._last: dict[str, int] = {}

    def deltas(self, event: StreamEvent) -> Iterator[dict[str, Any]]:
        """What is sent of it: several stretches of a kind are lines of one text, a call comes in three parts."""
        if isinstance(event, TextDelta | ReasoningDelta):
            key = "content" if isinstance(event, TextDelta) else self._reasoning
            line = "\n" if self._last.get(key, event.place) != event.place else ""
            self._last[key] = event.place
            yield {key: line + event.text}
        elif isinstance(event, CallComplete):
            call, place = self._calls[self._told], self._told
            self._told += 1
            arguments: str = call["function"]["arguments"]
            half = len(arguments) // 2
            named = {"name": call["function"]["name"], "arguments": ""}
            yield {"tool_calls": [{"index": place, "id": call["id"], "type": "function", "function": named}]}
            for part in (arguments[:half], arguments[half:]):
                yield {"tool_calls": [{"index": place, "function": {"arguments": part}}]}
