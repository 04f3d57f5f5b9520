"""OpenAI Chat Completions: requests read and whole replies written; `chat_stream` has the stream.

Shapes: https://platform.openai.com/docs/api-reference/chat, with the keys that vLLM and Dynamo add. What changes no
answer is skipped when it is not known, what would change it is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from rollout.parsing.history import reformed
from rollout.turn import FinishReason, Message, ToolCall
from rollout.wire.asked import Asked, Drawing, Form, Named, Reasoning, ToolChoice
from rollout.wire.errors import invalid
from rollout.wire.history import Draft, opened
from rollout.wire.reply import Usage, Whole
from rollout.wire.request import (
    Count,
    Heat,
    Hinted,
    JsonForm,
    Object,
    Penalty,
    Share,
    Text,
    as_form,
    checked_choice,
    checked_names,
    decode,
    hints,
    no_images,
    tool_spec,
)
from rollout.wire.stream import Heading


class _Part(msgspec.Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class _CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    id: str
    function: _CalledFunction


class _Message(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | list[str] | None = None
    reasoning_segments: list[str] | None = None
    reasoning: str | list[str] | None = None


class _Function(msgspec.Struct, kw_only=True):
    name: Text
    description: str | None = None
    parameters: Object | None = None


class _Tool(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    function: _Function


class _ChosenFunction(msgspec.Struct):
    name: Text


class _Chosen(msgspec.Struct):
    type: Literal["function"]
    function: _ChosenFunction


class _Format(msgspec.Struct, kw_only=True):
    type: str
    json_schema: JsonForm | None = None


class _StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None


class _Request(Hinted, kw_only=True):
    model: Text
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Heat | None = None
    top_p: Share | None = None
    top_k: int | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Chosen | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    structured_outputs: Object | None = None
    reasoning_effort: str | None = None
    thinking_token_budget: Count | None = None
    chat_template_kwargs: Object | None = None
    functions: Any = None


_decoder = msgspec.json.Decoder(_Request)


def read(body: bytes) -> Asked:
    """The request in a body. Raises Refused, naming the place, for one that cannot be answered."""
    request = decode(_decoder, body)
    _check(request)
    tools = checked_names(
        tuple(
            tool_spec(tool.function.name, tool.function.description, tool.function.parameters)
            for tool in request.tools or ()
        )
    )
    effort = request.reasoning_effort
    stop = request.stop
    options = request.stream_options
    return Asked(
        model=request.model,
        messages=opened((), [_message(message, at, request.model) for at, message in enumerate(request.messages)]),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        tools=tools,
        tool_choice=checked_choice(_choice(request), tools),
        parallel_calls=request.parallel_tool_calls is not False,
        drawing=Drawing(
            request.temperature,
            request.top_p,
            request.top_k,
            request.min_p,
            request.presence_penalty,
            request.frequency_penalty,
            request.repetition_penalty,
            request.seed,
        ),
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        reasoning=Reasoning(None if effort is None else effort != "none", effort, request.thinking_token_budget),
        form=_form(request),
        grammar=request.structured_outputs,
        template=request.chat_template_kwargs or {},
        stream=bool(request.stream),
        include_usage=options is not None and bool(options.include_usage),
        hints=hints(request),
    )


def _check(request: _Request) -> None:
    """Refuses what would be left out of the answer otherwise."""
    if request.n not in (None, 1):
        raise invalid("n", f"expected 1, a reply a request, got {request.n}")
    if request.logprobs or request.top_logprobs:
        raise invalid("logprobs", "this server tells no logprobs")
    if request.functions is not None:
        raise invalid("functions", "expected tools")
    if any(not text for text in request.stop or ()):
        raise invalid("stop", "an empty text")


def _choice(request: _Request) -> ToolChoice:
    choice = request.tool_choice
    return Named(choice.function.name) if isinstance(choice, _Chosen) else choice or "auto"


def _form(request: _Request) -> Form | None:
    given = request.response_format
    return None if given is None else as_form(given.type, given.json_schema, "response_format")


def _message(message: _Message, at: int, model: str) -> Message:
    where = f"messages[{at}]"
    text = _text(message.content, f"{where}.content", model)
    match message.role:
        case "system" | "developer":
            return {"role": "system", "content": text}
        case "user":
            told: Message = {"role": "user", "content": text}
        case "tool":
            if message.tool_call_id is None:
                raise invalid(f"{where}.tool_call_id", "missing")
            told = {"role": "tool", "content": text, "tool_call_id": message.tool_call_id}
        case "assistant":
            return _said(message, text)
        case other:
            raise invalid(f"{where}.role", f"expected system, developer, user, assistant or tool, got '{other}'")
    if message.name is not None:
        told["name"] = message.name
    return told


def _said(message: _Message, text: str) -> Message:
    """An earlier reply. Reasoning may be a list: entry i came before call i."""
    draft = Draft()
    given = message.reasoning_segments or message.reasoning_content or message.reasoning or ()
    segments = [given] if isinstance(given, str) else given
    calls = message.tool_calls or ()
    for place, call in enumerate(calls):
        if place < len(segments):
            draft.reason(segments[place])
        draft.call(call.id, call.function.name, call.function.arguments)
    for segment in segments[len(calls) :]:
        draft.reason(segment)
    if text or message.refusal:
        draft.say(text or message.refusal or "")
    return draft.message()


def _text(content: str | list[_Part] | None, where: str, model: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for at, part in enumerate(content):
        if part.type not in ("text", "refusal"):
            raise no_images(model, f"{where}[{at}]", part.type)
        texts.append(part.text or part.refusal or "")
    return "\n".join(texts)


def whole(asked: Asked, heading: Heading, reply: Whole) -> dict[str, Any]:
    """The body of a reply that is not streamed. A call that was cut off is left out."""
    said = reply.message
    message: dict[str, Any] = {"role": "assistant", "content": said["content"] or None, "refusal": None}
    if reasoning := said.get("reasoning_content"):
        message["reasoning_content"] = reformed(said, "text").get("reasoning_content")
        if not isinstance(reasoning, str):  # clients read a text; the list has the places, for those that send it back
            message["reasoning_segments"] = reasoning
    if "tool_calls" in said:
        message["tool_calls"] = said["tool_calls"]
    reason = finish_reason(reply.finished.reason, bool(reply.calls))
    return {
        "id": heading.id,
        "object": "chat.completion",
        "created": heading.created,
        "model": heading.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": usage(reply.finished.usage),
    }


def finish_reason(reason: FinishReason, calls: bool) -> str:
    """Why the reply ended, in OpenAI's words."""
    if reason is not FinishReason.STOP:
        return "length"
    return "tool_calls" if calls else "stop"


def usage(tokens: Usage) -> dict[str, Any]:
    """Tokens, in OpenAI's words."""
    return {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


def call_entry(call: ToolCall, index: int) -> dict[str, Any]:
    """A whole call, as an entry of a stream."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": index, "id": call.id, "type": "function", "function": function}
