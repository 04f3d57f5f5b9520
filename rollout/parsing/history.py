"""Segments as chat messages and back, and what earlier reasoning a prompt that is rendered anew still shows.

A message holds reasoning as one text or as a list of texts: reasoning i stands before call i, and one more may follow
the last call (NVIDIA Dynamo's form). A chat template that reads `reasoning_content` gets the field, any other gets the
reasoning between tags in the content. Within a segment of an episode history is never rendered anew (design invariant
3): this is for whoever shows a conversation in messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, cast

from rollout.parsing.tags import ReasoningTags
from rollout.turn import Message, Segment, ToolCall

Keep = Literal["keep", "drop_before_last_user", "drop_all"]
"""Which reasoning of earlier turns a prompt shows: all of it, that since the last message of a user (answers of tools
are none), or no reasoning."""

ReasoningForm = Literal["text", "list", "inline"]
"""`reasoning_content` as one text, as a list in the order of the calls, or between tags in `content`."""

_THINK = ReasoningTags("<think>", "</think>")
_LISTS = re.compile(r"reasoning_content\s+is\s+(?:not\s+)?(?:sequence|iterable)|\bin\s+\w+\.reasoning_content\b")


def as_message(segments: Sequence[Segment], form: ReasoningForm = "text", tags: ReasoningTags = _THINK) -> Message:
    """A completion as a chat message in OpenAI's shape.

    Contents are joined by line breaks. Where reasoning stands between calls, `list` alone keeps the order.
    """
    contents = [part.text for part in segments if part.kind == "content"]
    reasoning = [part.text for part in segments if part.kind == "reasoning"]
    if form == "inline":
        contents = [f"{tags.open}\n{text}\n{tags.close}\n" for text in reasoning] + contents
    message: Message = {"role": "assistant", "content": "\n".join(contents)}
    if reasoning and form == "text":
        message["reasoning_content"] = "\n".join(reasoning)
    elif reasoning and form == "list":
        message["reasoning_content"] = _by_call(segments)
    if calls := [part.call for part in segments if part.call is not None]:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def segments_of(message: Message) -> tuple[Segment, ...]:
    """A message as segments: reasoning, content, calls, as chat endpoints order them; reasoning that is a list
    before the calls that it led to, with the content before the first call."""
    parts: list[Segment] = []
    given = message.get("reasoning_content") or []
    reasoning = [given] if isinstance(given, str) else given
    parts += _reasoning(reasoning[:1])
    if content := message["content"]:
        parts.append(Segment("content", content))
    calls = message.get("tool_calls") or []
    for number, entry in enumerate(calls):
        parts += _reasoning(reasoning[number : number + 1] if number else [])
        function = entry["function"]
        call = ToolCall(entry["id"], function["name"], function["arguments"])
        parts.append(Segment("tool_call", function["arguments"], call))
    parts += _reasoning(reasoning[max(len(calls), 1) :])
    return tuple(parts)


def shown(messages: Sequence[Message], keep: Keep) -> list[Message]:
    """Messages with the reasoning that a prompt still shows; those given stay as they are."""
    if keep == "keep":
        return list(messages)
    last = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    first = len(messages) if keep == "drop_all" else last
    return [_bare(message) if at < first else message for at, message in enumerate(messages)]


def form_for(template: str) -> ReasoningForm:
    """The form of reasoning that the source of a chat template reads."""
    if "reasoning_content" not in template:
        return "inline"
    return "list" if _LISTS.search(template) else "text"


def reformed(message: Message, form: ReasoningForm, tags: ReasoningTags = _THINK) -> Message:
    """A message with its reasoning in another form."""
    if not message.get("reasoning_content"):
        return message
    return cast(Message, {**_bare(message), **as_message(segments_of(message), form, tags)})


def _by_call(segments: Sequence[Segment]) -> list[str]:
    """Reasoning before each call, and behind the last one if there is any."""
    texts: list[list[str]] = [[]]
    for part in segments:
        if part.kind == "reasoning":
            texts[-1].append(part.text)
        elif part.kind == "tool_call":
            texts.append([])
    joined = ["\n".join(each) for each in texts]
    return joined if joined[-1] else joined[:-1]


def _reasoning(texts: Sequence[str]) -> list[Segment]:
    return [Segment("reasoning", text) for text in texts if text]


def _bare(message: Message) -> Message:
    plain: dict[str, Any] = {key: value for key, value in message.items() if key != "reasoning_content"}
    return cast(Message, plain)
