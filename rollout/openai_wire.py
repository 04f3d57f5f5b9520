"""Requests to and answers from OpenAI-compatible servers, as bytes: no network here.

Answers are read into structs that know only what a completion needs; whatever else a server says is skipped.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import responses
from typing import Any, cast

import msgspec

from rollout.errors import ResourceDown
from rollout.trajectory import Completion, Extras, FinishReason, Message, Prompt, ToolSpec, VersionSpan

_FINISHED = {
    "length": FinishReason.LENGTH,
    "repetition": FinishReason.LENGTH,
    "abort": FinishReason.ABORT,
    "cancelled": FinishReason.ABORT,
}
"""All others are the policy's own end of turn."""
_BROKEN = ("error", "content_filter")
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum model length|max_model_len|(prompt|input|request) is (too long|longer)",
    re.IGNORECASE,
)
_encode = msgspec.json.Encoder().encode


class Refused(ResourceDown):
    """The endpoint does not want this request, or its answer makes no sense: asking again will not help."""

    def __init__(self, line: str, status: int | None = None) -> None:
        super().__init__(line)
        self.status = status


@dataclass(frozen=True, slots=True)
class Dialect:
    """How much of a request a server understands."""

    limit_key: str = "max_tokens"
    sampling: bool = True
    """Keys that vLLM and SGLang know, at their neutral values too: the model's own defaults stay out of it."""
    ids: bool = True
    logprobs: bool = True
    proven: bool = False
    """A request like this was answered: what is refused now is refused for another reason."""
    reasoning_key: str = "reasoning_content"

    def simpler(self, line: str, tokens: bool) -> Dialect | None:
        """What to try after `line` was the answer; None when nothing is left that could be left out."""
        if self.limit_key == "max_tokens" and "max_completion_tokens" in line:
            return replace(self, limit_key="max_completion_tokens")
        if self.sampling:
            return replace(self, sampling=False, ids=tokens)
        return replace(self, logprobs=False) if self.logprobs else None


def request_body(
    prompt: Prompt, model: str, dialect: Dialect, tools: msgspec.Raw, extra: Mapping[str, Any], stream: bool = False
) -> bytes:
    """The request for `prompt`, in tokens when it has ids and as chat otherwise; `tools` is encoded already."""
    sampling = prompt.sampling
    body: dict[str, Any] = {"model": model, "temperature": sampling.temperature, "top_p": sampling.top_p}
    if tokens := len(prompt.ids) > 0:
        body["prompt"] = list(prompt.ids)
        body["max_tokens"] = prompt.max_tokens
    else:
        body["messages"] = _renamed(prompt.messages, dialect.reasoning_key)
        body[dialect.limit_key] = prompt.max_tokens
        if prompt.tools:
            body["tools"] = tools
    if dialect.ids:
        body["return_token_ids"] = True
    if dialect.logprobs:
        body["logprobs"] = 0 if tokens else True  # 0: of the sampled token, and of no others
    if dialect.sampling:
        body |= {"top_k": sampling.top_k, "min_p": 0.0, "repetition_penalty": 1.0}
    elif sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.stop:
        body["stop"] = sampling.stop
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    asked = _asked(prompt.extras, tokens)
    return _encode({**body, **asked, **extra} if asked or extra else body)


def _asked(extras: Extras, tokens: bool) -> Mapping[str, Any]:
    """What a call asks for beside: completions of tokens are vLLM's, whose server takes what its engine takes."""
    if not tokens:
        return extras.body
    return extras.vllm if extras.grammar is None else {**extras.vllm, "structured_outputs": extras.grammar}


def encode_tools(tools: Sequence[ToolSpec]) -> msgspec.Raw:
    """The `tools` of a request."""
    return msgspec.Raw(_encode([spec.as_openai() for spec in tools]))


def _renamed(messages: Sequence[Message], key: str) -> Sequence[Any]:
    """Reasoning goes back under the name it came under: servers ignore the other one."""
    if key == "reasoning_content" or not any("reasoning_content" in message for message in messages):
        return messages
    return [
        {key if name == "reasoning_content" else name: value for name, value in message.items()} for message in messages
    ]


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Said(msgspec.Struct):
    content: Any = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Said | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"null")
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    weight_versions: list[VersionSpan] | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class Answer(msgspec.Struct):
    """What a server said."""

    choices: list[_Choice]
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None

    @property
    def reasoning_key(self) -> str | None:
        """Under which name the server gives reasoning; None when it gave none."""
        said = self.choices[0].message
        if said is None or not (said.reasoning or said.reasoning_content):
            return None
        return "reasoning_content" if said.reasoning_content else "reasoning"


class _Logprob(msgspec.Struct, gc=False):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None
    token_logprobs: list[float] | None = None


_answer = msgspec.json.Decoder(Answer)
_logprobs = msgspec.json.Decoder(_Logprobs | None)


def read_answer(body: bytes) -> Answer:
    """The body of a 200. Raises Refused when it is not what such servers say."""
    try:
        answer = _answer.decode(body)
    except msgspec.MsgspecError as error:
        raise Refused(f"{explain(200, body)} (not a completion: {error})") from None
    if not answer.choices:
        raise Refused("it answered without a choice")
    return answer


def as_completion(answer: Answer, prompt: Prompt, replica: str) -> Completion:
    """An answer to `prompt` as a completion.

    Logprobs are kept only where there is one for each id. Raises Refused when the answer contradicts itself or the
    prompt: rows must not hold such tokens.
    """
    choice, usage = answer.choices[0], answer.usage or _Usage()
    if choice.finish_reason in _BROKEN:
        raise Refused(f"it gave up with finish_reason {choice.finish_reason}")
    ids = None if choice.token_ids is None else array("i", choice.token_ids)
    if ids is not None and usage.completion_tokens not in (None, len(ids)):
        raise Refused(f"it counts {usage.completion_tokens} sampled tokens and gives {len(ids)} ids")
    message = None
    if not len(prompt.ids):
        message = _message(choice.message, prompt.turn)
    elif ids is None:
        raise Refused("it takes token ids and returns none: leave model.tokenizer out to speak chat")
    elif usage.prompt_tokens not in (None, len(prompt.ids)):
        raise Refused(f"it read {usage.prompt_tokens} prompt tokens where {len(prompt.ids)} were sent")
    details = usage.prompt_tokens_details
    return Completion(
        finish_reason=_FINISHED.get(choice.finish_reason or "stop", FinishReason.STOP),
        ids=ids,
        logprobs=_counted(read_logprobs(choice.logprobs), len(ids)) if ids is not None else None,
        versions=tuple(choice.weight_versions or ()),
        cached_tokens=details.cached_tokens if details is not None else None,
        prompt_tokens=usage.prompt_tokens,
        sampled_tokens=usage.completion_tokens,
        replica=replica,
        message=message,
        prompt_ids=answer.prompt_token_ids if answer.prompt_token_ids is not None else choice.prompt_token_ids,
    )


def read_logprobs(raw: msgspec.Raw) -> list[float] | None:
    """One logprob a token, as servers of either kind write them; None where there are none."""
    try:
        read = _logprobs.decode(raw)
    except msgspec.MsgspecError:
        return None  # no server owes us logprobs
    if read is not None and read.content is not None:
        return [entry.logprob for entry in read.content]
    return read.token_logprobs if read is not None else None


def _counted(values: list[float] | None, count: int) -> array[float] | None:
    return array("f", values) if values is not None and len(values) == count else None


def _message(said: _Said | None, turn: int) -> Message:
    if said is None:
        raise Refused("it answered without a message")
    message: Message = {"role": "assistant", "content": _text(said.content)}
    if reasoning := said.reasoning_content or said.reasoning:
        message["reasoning_content"] = reasoning
    if said.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id or f"call_{turn}_{place}",
                "type": "function",
                "function": {"name": call.function.name or "", "arguments": _arguments(call.function.arguments)},
            }
            for place, call in enumerate(said.tool_calls)
        ]
    return message


def _text(content: Any) -> str:
    """Content is text, null, or a list of parts of which some are text."""
    if isinstance(content, list):
        parts = cast(list[Any], content)
        return "".join(cast(dict[str, str], part).get("text", "") for part in parts if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _arguments(value: Any) -> str:
    """Arguments are JSON text; some servers send the object itself."""
    return value if isinstance(value, str) else json.dumps(value or {}, ensure_ascii=False)


def explain(status: int, body: bytes) -> str:
    """One line for an HTTP answer that is no completion: status, its name and what the server said."""
    name = f" {responses[status]}" if status in responses else ""
    text = _error_text(body)
    first = next(iter(text.strip().splitlines()), "")
    shown = "".join(letter for letter in first if letter.isprintable())[:300]
    return f"{status}{name}" + (f": {shown}" if shown else "")


def _error_text(body: bytes) -> str:
    """The message in the usual shapes, {"error": {"message"}}, {"message"}, {"detail": [{"msg"}]}; else the body."""
    text = body[:65536].decode(errors="replace")
    try:
        value: Any = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return "" if text.lstrip().startswith("<") else text  # an HTML page says nothing in its first line
    for key in ("error", "detail", 0, "message", "msg"):
        if isinstance(value, dict) and key in value:
            value = cast(dict[Any, Any], value)[key]
        elif key == 0 and isinstance(value, list) and value:
            value = cast(list[Any], value)[0]
    return value if isinstance(value, str) else text


def too_long(status: int, line: str) -> bool:
    """Whether a server that answered `status` with `line` says that the prompt does not fit the model."""
    return status in (400, 413, 422) and _TOO_LONG.search(line) is not None


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date; None when it holds neither."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return None
