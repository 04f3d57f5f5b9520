"""OpenAI Responses: requests read and whole replies written; `responses_stream` has the stream.

Shapes: https://platform.openai.com/docs/api-reference/responses. A request that goes on from a stored response is read
without it: `continued` puts the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

import msgspec

from rollout.turn import Message
from rollout.wire.asked import Asked, Drawing, Form, Named, Reasoning, ToolChoice
from rollout.wire.errors import Kind, Refused, invalid
from rollout.wire.history import opened
from rollout.wire.items import Item, as_messages, sealed
from rollout.wire.reply import Finished, Part, Usage, Whole
from rollout.wire.request import (
    Count,
    Heat,
    Hinted,
    JsonForm,
    Object,
    Share,
    Text,
    as_form,
    checked_choice,
    checked_names,
    decode,
    hints,
    tool_spec,
)
from rollout.wire.stream import Heading

_SEALED = "reasoning.encrypted_content"


class _Tool(msgspec.Struct, kw_only=True):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class _Chosen(msgspec.Struct, kw_only=True):
    type: str
    name: str | None = None


class _Reasoning(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class _Format(JsonForm, kw_only=True):
    type: str


class _TextConfig(msgspec.Struct, kw_only=True):
    format: _Format | None = None
    verbosity: str | None = None


class _Request(Hinted, kw_only=True):
    model: Text
    input: Text | Annotated[list[Item], msgspec.Meta(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Count | None = None
    temperature: Heat | None = None
    top_p: Share | None = None
    top_k: int | None = None
    seed: int | None = None
    top_logprobs: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Chosen | None = None
    parallel_tool_calls: bool | None = None
    reasoning: _Reasoning | None = None
    text: _TextConfig | None = None
    truncation: str | None = None
    chat_template_kwargs: Object | None = None
    structured_outputs: Object | None = None
    prompt: Any = None
    conversation: Any = None


_decoder = msgspec.json.Decoder(_Request)


def read(body: bytes) -> Asked:
    """The request in a body. Raises Refused, naming the place, for one that cannot be answered.

    With `previous`, the messages are only what is new: see `continued`.
    """
    request = decode(_decoder, body)
    _check(request)
    given = [tool for tool in request.tools or () if tool.type == "function"]
    if any(not tool.name for tool in given):
        raise invalid("tools", "a function without a name")
    tools = checked_names(tuple(tool_spec(tool.name or "", tool.description, tool.parameters) for tool in given))
    effort = request.reasoning.effort if request.reasoning is not None else None
    head = (request.instructions,) if request.instructions else ()
    content = request.input
    said: list[Message] = [{"role": "user", "content": content}] if isinstance(content, str) else []
    return Asked(
        model=request.model,
        messages=opened(head, said or as_messages(cast(Sequence[Item], content), request.model)),
        max_tokens=request.max_output_tokens,
        tools=tools,
        left_out=tuple(tool.type for tool in request.tools or () if tool.type != "function"),
        tool_choice=checked_choice(_choice(request.tool_choice), tools),
        parallel_calls=request.parallel_tool_calls is not False,
        drawing=Drawing(request.temperature, request.top_p, request.top_k, seed=request.seed),
        reasoning=Reasoning(None if effort is None else effort != "none", effort),
        form=_form(request),
        grammar=request.structured_outputs,
        template=request.chat_template_kwargs or {},
        stream=bool(request.stream),
        previous=request.previous_response_id,
        store=request.store is not False,
        sealed_reasoning=_SEALED in (request.include or ()),
        hints=hints(request),
        echo=_echo(request, given),
    )


def continued(asked: Asked, earlier: Sequence[Message]) -> Asked:
    """The request behind the stored conversation it goes on from. Instructions are the new request's alone."""
    own = asked.messages
    head = [own[0]["content"]] if own and own[0]["role"] == "system" else []
    return replace(asked, messages=opened(head, (*earlier, *own[len(head) :])))


def told(asked: Asked) -> tuple[Message, ...]:
    """What of the request is stored: its messages without its instructions."""
    head = 1 if asked.echo.get("instructions") else 0
    return asked.messages[head:]


def no_such_response(id: str) -> Refused:
    """A 404 for a response that is not stored (any more)."""
    return Refused(Kind.NOT_FOUND, f"response '{id}' is not stored here", "previous_response_id", "response_not_found")


def _check(request: _Request) -> None:
    """Refuses what would be left out of the answer otherwise."""
    if request.background:
        raise invalid("background", "this server answers while the client waits")
    if request.top_logprobs:
        raise invalid("top_logprobs", "this server tells no logprobs")
    if request.prompt is not None:
        raise invalid("prompt", "this server stores no prompts: send input and instructions")
    if request.conversation is not None:
        raise invalid("conversation", "this server stores no conversations: use previous_response_id")


def _choice(choice: str | _Chosen | None) -> ToolChoice:
    if not isinstance(choice, _Chosen):
        return cast(ToolChoice, choice or "auto")
    if choice.type != "function" or choice.name is None:
        raise invalid("tool_choice", f"expected a function by its name, got type '{choice.type}'")
    return Named(choice.name)


def _form(request: _Request) -> Form | None:
    given = request.text.format if request.text is not None else None
    return None if given is None else as_form(given.type, given, "text.format")


def _echo(request: _Request, tools: Sequence[_Tool]) -> dict[str, Any]:
    """What the response repeats. Of the tools it has those that the model is told of."""
    text, reasoning, choice = request.text, request.reasoning, request.tool_choice
    strict = [{**msgspec.to_builtins(tool), "strict": bool(tool.strict)} for tool in tools]
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {} if reasoning is None else msgspec.to_builtins(reasoning),
        "service_tier": "default",
        "temperature": request.temperature,
        "text": {"format": {"type": "text"}} if text is None or text.format is None else _text(text.format),
        "tool_choice": msgspec.to_builtins(choice) if isinstance(choice, _Chosen) else choice or "auto",
        "tools": strict,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _text(form: _Format) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"format": {"type": form.type}}
    schema = {"type": form.type, "name": form.name, "schema": form.schema, "strict": bool(form.strict)}
    return {"format": schema}


def whole(asked: Asked, heading: Heading, reply: Whole) -> dict[str, Any]:
    """The body of a reply that is not streamed. What its end cut off has status `incomplete`."""
    items: list[dict[str, Any]] = []
    cut = reply.finished.cut
    for at, part in enumerate(reply.parts):
        incomplete = part.cut or (cut and at == len(reply.parts) - 1 and part.kind != "call")
        items.append(item(asked, heading, at, part, "incomplete" if incomplete else "completed"))
    return response(asked, heading, items, reply.finished)


def response(
    asked: Asked, heading: Heading, items: Sequence[Mapping[str, Any]], finished: Finished | None
) -> dict[str, Any]:
    """A response object; one that is under way has no end yet."""
    incomplete = finished is not None and finished.cut
    done = "incomplete" if incomplete else "completed"
    return {
        **asked.echo,
        "id": heading.id,
        "object": "response",
        "created_at": heading.created,
        "model": heading.model,
        "status": "in_progress" if finished is None else done,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
        "output": items,
        "usage": None if finished is None else usage(finished.usage),
    }


def item(asked: Asked, heading: Heading, at: int, part: Part, status: str) -> dict[str, Any]:
    """An item of the output. Its id says the response and the place, so that it needs no memory."""
    if part.kind == "reasoning":
        content = [{"type": "reasoning_text", "text": part.text}]
        shown = {"id": f"rs_{heading.id}_{at}", "type": "reasoning", "summary": [], "content": content}
        if asked.sealed_reasoning:
            shown["encrypted_content"] = sealed(part.text)
        return {**shown, "status": status}
    if part.kind == "content":
        text: dict[str, Any] = {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}
        return {
            "id": f"msg_{heading.id}_{at}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [text],
        }
    call = part.call
    return {
        "id": f"fc_{heading.id}_{at}",
        "type": "function_call",
        "call_id": call.id if call is not None else "",
        "name": call.name if call is not None else "",
        "arguments": call.arguments if call is not None else "",
        "status": status,
    }


def usage(tokens: Usage) -> dict[str, Any]:
    """Tokens, in the words of Responses."""
    return {
        "input_tokens": tokens.input,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.input + tokens.output,
    }
