"""When a program sends a conversation back, is it the one that was sampled here?

Programs keep what they were told in forms of their own. What says the same is the same: arguments of a call are
compared as JSON, an answer's text without its white space, and its reasoning not at all, since most programs drop it
or sum it up. What others said (the system, users, tools) has to be the same text, for it stands in the prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from rollout.serving.capture import Called
from rollout.serving.prefixes import Entry
from rollout.serving.written_calls import meaning
from rollout.turn import FinishReason, Json, ToolCall, ToolSpec

Key = bytes
"""Stands for a beginning of a conversation: equal keys, equal conversations."""
_SIZE = 16


def opening_key(tools: Sequence[ToolSpec], variables: Mapping[str, Json]) -> Key:
    """The key of a conversation in which nothing was said: tools and variables of the template are in every prompt."""
    return _digest([[spec.as_openai() for spec in tools], dict(variables)])


def keys(start: Key, messages: Sequence[Entry]) -> list[tuple[Key, int]]:
    """The keys of all beginnings of a conversation from the shortest on, each with the number of its messages.

    What the policy said in a row is one answer, in however many messages the program tells it.
    """
    found: list[tuple[Key, int]] = []
    key, at = start, 0
    while at < len(messages):
        end = at + 1
        if messages[at]["role"] == "assistant":
            while end < len(messages) and messages[end]["role"] == "assistant":
                end += 1
            key = _next(key, _answer(messages[at:end]))
        else:
            key = _next(key, _told(messages[at]))
        found.append((key, end))
        at = end
    return found


def answered(key: Key, called: Called) -> list[Key]:
    """The keys of the conversation with what was sampled behind it, in each form in which a program may have been told
    of it: whole; without what cannot be read as a call; up to its first call, where it takes one at a time; without
    its last call, where the reply was cut in the middle of that."""
    return [_next(key, form) for form in dict.fromkeys(_forms(called))]


def _forms(called: Called) -> Iterator[str]:
    texts = [part.text for part in called.segments if part.kind == "content"]
    unread = [part.text for part in called.segments if part.call is not None and not part.call.name]
    calls = [part.call for part in called.segments if part.call is not None and part.call.name]
    yield _said(texts + unread, calls)
    yield _said(texts, calls)
    if called.completion.finish_reason is not FinishReason.STOP:
        yield _said(texts, calls[:-1])
    if len(calls) > 1:
        first = next(at for at, part in enumerate(called.segments) if part.call is calls[0])
        yield _said([part.text for part in called.segments[:first] if part.kind == "content"], calls[:1])


def _answer(messages: Sequence[Entry]) -> str:
    calls = [
        ToolCall(call.get("id", ""), call["function"]["name"], _as_text(call["function"].get("arguments", "")))
        for message in messages
        for call in cast(Sequence[Entry], message.get("tool_calls") or ())
    ]
    return _said([_text(message) for message in messages], calls)


def _said(texts: Sequence[str], calls: Sequence[ToolCall]) -> str:
    squeezed = "".join("".join(text.split()) for text in texts)
    return json.dumps(["said", squeezed, [[call.id, call.name, meaning(call.arguments)] for call in calls]])


def _told(message: Entry) -> str:
    whose = message.get("tool_call_id") if message["role"] == "tool" else message.get("name")
    return json.dumps([message["role"], _text(message), whose or ""])


def _as_text(arguments: Json) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _text(message: Entry) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


def _next(key: Key, said: str) -> Key:
    return hashlib.blake2b(key + said.encode("utf-8", "surrogatepass"), digest_size=_SIZE).digest()


def _digest(value: Json) -> Key:
    text = json.dumps(value, sort_keys=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_SIZE).digest()
