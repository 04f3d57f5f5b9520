"""Anthropic Messages and count_tokens: requests read and whole replies written; `messages_stream` has the stream.

Shapes: https://docs.anthropic.com/en/api/messages. Unknown kinds of blocks are refused; `cache_control` is taken and
means nothing, since every prefix is cached.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Annotated, Any, Literal, cast

import msgspec

from rollout.turn import FinishReason, Message
from rollout.wire.asked import Asked, Drawing, Form, Named, Reasoning, ToolChoice
from rollout.wire.blocks import Block, heard, plain, said
from rollout.wire.errors import THREADS, Kind, Refused, invalid
from rollout.wire.history import opened
from rollout.wire.reply import Finished, Usage, Whole
from rollout.wire.request import (
    Count,
    Heat,
    Hinted,
    Object,
    Share,
    Text,
    checked_choice,
    checked_names,
    decode,
    hints,
    tool_spec,
)
from rollout.wire.stream import Heading, to_json

_OWN_TOOLS = (None, "custom")


class _Message(msgspec.Struct):
    role: str
    content: str | list[Block]


class _Tool(msgspec.Struct, kw_only=True):
    name: Text
    type: str | None = None
    description: str | None = None
    input_schema: Object | None = None
    eager_input_streaming: bool | None = None


class _Choice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct, kw_only=True):
    type: str
    budget_tokens: Count | None = None


class _OutputFormat(msgspec.Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: Object


class _Output(msgspec.Struct, kw_only=True):
    effort: str | None = None
    format: _OutputFormat | None = None


class _Counted(Hinted, kw_only=True):
    """What count_tokens takes."""

    model: Text
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    system: str | list[Block] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    thinking: _Thinking | None = None
    output_config: _Output | None = None
    chat_template_kwargs: Object | None = None
    thread: Any = None


class _Request(_Counted, kw_only=True):
    max_tokens: Count
    temperature: Heat | None = None
    top_p: Share | None = None
    top_k: int | None = None
    stop_sequences: list[Text] | None = None
    stream: bool | None = None


_decoder = msgspec.json.Decoder(_Request)
_count_decoder = msgspec.json.Decoder(_Counted)


def read(body: bytes) -> Asked:
    """The request in a body. Raises Refused, naming the place, for one that cannot be answered."""
    request = decode(_decoder, body)
    drawing = Drawing(request.temperature, request.top_p, request.top_k)
    stop = tuple(request.stop_sequences or ())
    return _asked(request, request.max_tokens, drawing, stop, bool(request.stream))


def read_count(body: bytes) -> Asked:
    """The request of count_tokens. Raises Refused."""
    return _asked(decode(_count_decoder, body), None, Drawing(), (), False)


def counted(tokens: int) -> dict[str, Any]:
    """What count_tokens answers."""
    return {"input_tokens": tokens}


def _asked(request: _Counted, limit: int | None, drawing: Drawing, stop: tuple[str, ...], stream: bool) -> Asked:
    if request.thread is not None:
        line = "thread: this server holds no conversations: send all of it each time"
        raise Refused(Kind.INVALID, line, "thread", THREADS)
    given = [tool for tool in request.tools or () if tool.type in _OWN_TOOLS]
    for at, tool in enumerate(request.tools or ()):
        if tool.type in _OWN_TOOLS and tool.input_schema is None:
            raise invalid(f"tools[{at}].input_schema", "missing")
    tools = checked_names(tuple(tool_spec(tool.name, tool.description, tool.input_schema) for tool in given))
    choice, output = request.tool_choice, request.output_config
    form = output.format if output is not None else None
    system = request.system
    heads = [system] if isinstance(system, str) else [plain(system or (), "system", request.model)]
    reasoning = _reasoning(request)
    # Thinking that is sent back is what was sampled: a template that leaves it out would make another prompt of it.
    kept = {} if reasoning.enabled is False else {"truncate_history_thinking": False}
    return Asked(
        model=request.model,
        messages=opened(heads, _messages(request)),
        max_tokens=limit,
        tools=tools,
        left_out=tuple(tool.type for tool in request.tools or () if tool.type not in _OWN_TOOLS and tool.type),
        tool_choice=checked_choice(_choice(choice), tools),
        parallel_calls=choice is None or not choice.disable_parallel_tool_use,
        drawing=drawing,
        stop=stop,
        reasoning=reasoning,
        form=Form(form.schema) if form is not None else None,
        template={**kept, **(request.chat_template_kwargs or {})},
        stream=stream,
        eager=frozenset(tool.name for tool in given if tool.eager_input_streaming),
        hints=hints(request),
    )


def _choice(choice: _Choice | None) -> ToolChoice:
    if choice is None or choice.type == "auto":
        return "auto"
    if choice.type == "tool":
        if choice.name is None:
            raise invalid("tool_choice.name", "missing")
        return Named(choice.name)
    return "required" if choice.type == "any" else "none"


def _reasoning(request: _Counted) -> Reasoning:
    thinking, output = request.thinking, request.output_config
    effort = output.effort if output is not None else None
    if thinking is None:
        return Reasoning(None, effort)
    return Reasoning(thinking.type != "disabled", effort, thinking.budget_tokens)


def _messages(request: _Counted) -> list[Message]:
    told: list[Message] = []
    for at, message in enumerate(request.messages):
        where = f"messages[{at}]"
        content = message.content
        blocks = [Block(type="text", text=content)] if isinstance(content, str) else content
        match message.role:
            case "user":
                told += heard(blocks, f"{where}.content", request.model)
            case "assistant":
                told.append(said(blocks, f"{where}.content"))
            case "system":
                told.append({"role": "system", "content": plain(blocks, f"{where}.content", request.model)})
            case other:
                raise invalid(f"{where}.role", f"expected user or assistant, got '{other}'")
    return told


def whole(asked: Asked, heading: Heading, reply: Whole) -> dict[str, Any]:
    """The body of a reply that is not streamed. A call that was cut off is left out."""
    content: list[dict[str, Any]] = []
    for part in reply.parts:
        if part.kind == "reasoning":
            content.append({"type": "thinking", "thinking": part.text, "signature": signature(part.text)})
        elif part.kind == "content":
            content.append({"type": "text", "text": part.text, "citations": None})
        elif part.call is not None and not part.cut:
            call = part.call
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": as_input(call.arguments)})
    return {
        "id": heading.id,
        "type": "message",
        "role": "assistant",
        "model": heading.model,
        "content": content,
        **stopped(reply.finished, bool(reply.calls)),
        "usage": usage(reply.finished.usage),
    }


def stopped(finished: Finished, calls: bool) -> dict[str, str | None]:
    """`stop_reason` and `stop_sequence`."""
    if finished.reason is not FinishReason.STOP:
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    reason = "end_turn" if finished.stop_sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": finished.stop_sequence}


def usage(tokens: Usage) -> dict[str, Any]:
    """Tokens in Anthropic's words: what was read from the cache is not part of `input_tokens`, but beside it."""
    return {
        "input_tokens": tokens.input - tokens.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.output,
        "output_tokens_details": {"thinking_tokens": tokens.reasoning},
    }


def as_input(arguments: str) -> dict[str, Any]:
    """A call's arguments as the object that Anthropic's clients expect; what is none becomes one, with the text."""
    try:
        value: Any = json.loads(arguments or "{}")
    except ValueError:
        value = None
    return cast(dict[str, Any], value) if isinstance(value, dict) else {"arguments": arguments}


def as_input_json(arguments: str) -> str:
    """The same as JSON text: as it was sampled, where that is an object."""
    value = as_input(arguments)
    return arguments if arguments and value != {"arguments": arguments} else to_json(value).decode()


def signature(thinking: str) -> str:
    """What clients must find on a block of thinking and send back. It has no secret and is not checked: a client
    could change any other part of its history just as well."""
    return base64.b64encode(hashlib.blake2b(thinking.encode(), digest_size=24).digest()).decode()
