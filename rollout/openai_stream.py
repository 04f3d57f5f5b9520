"""An answer that comes as server-sent events: read piece by piece, and in the end the answer it would have been whole.

Of the events of a stream only those without a name count: some servers send others beside them (Dynamo's
`tool_call_dispatch`), which say nothing that the ordinary ones do not. (https://html.spec.whatwg.org/#server-sent-events)
"""

from __future__ import annotations

from typing import Any

import msgspec

from rollout.errors import Unavailable
from rollout.openai_wire import Answer, Refused, explain, read_answer, read_logprobs
from rollout.streaming import CallDelta, Delta, Heard
from rollout.trajectory import VersionSpan

EVENT_STREAM = "text/event-stream"


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Said(msgspec.Struct):
    content: Any = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Said | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"null")
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    weight_versions: list[VersionSpan] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: msgspec.Raw = msgspec.Raw(b"null")
    prompt_token_ids: list[int] | None = None
    error: Any = None


_chunk = msgspec.json.Decoder(_Chunk)


class Events:
    """The data of unnamed server-sent events, from bytes that may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._named = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        found: list[bytes] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data and not self._named:
                    found.append(b"\n".join(self._data))
                self._data, self._named = [], False
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif line.startswith(b"event:"):
                self._named = line[6:].strip() not in (b"", b"message")
        return found


class AnswerStream:
    """One answer. `feed` what comes; `answer` is all of it."""

    def __init__(self, heard: Heard) -> None:
        self.begun = False
        """Something of it was heard."""
        self._heard = heard
        self._events = Events()
        self._choice: dict[str, Any] = {"logprobs": None}
        self._said: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._ids: list[int] | None = None
        self._logprobs: list[float] | None = []
        self._usage = msgspec.Raw(b"null")
        self._prompt_ids: list[int] | None = None

    def feed(self, piece: bytes) -> None:
        """More of the body. Raises Refused when it is not what such servers say, Unavailable when they say that they
        cannot go on."""
        for data in self._events.feed(piece):
            if data == b"[DONE]":
                continue
            try:
                chunk = _chunk.decode(data)
            except msgspec.MsgspecError as error:
                raise Refused(f"{explain(200, data)} (no piece of a completion: {error})") from None
            if chunk.error is not None:
                raise Unavailable(explain(200, data))
            self._take(chunk)

    def answer(self) -> Answer:
        """The whole of it. Raises Unavailable when its end never came."""
        if "finish_reason" not in self._choice:
            raise Unavailable("the answer broke off")
        said: dict[str, Any] = {key: "".join(texts) for key, texts in self._said.items()}
        if self._calls:
            said["tool_calls"] = [_whole(self._calls[place]) for place in sorted(self._calls)]
        choice = {**self._choice, "message": said, "token_ids": self._ids}
        if self._ids is not None and self._logprobs is not None:
            choice["logprobs"] = {"token_logprobs": self._logprobs}
        whole = {"choices": [choice], "usage": self._usage, "prompt_token_ids": self._prompt_ids}
        return read_answer(msgspec.json.encode(whole))

    def _take(self, chunk: _Chunk) -> None:
        if bytes(chunk.usage) != b"null":
            self._usage = chunk.usage
        prompt_ids = chunk.prompt_token_ids
        for choice in chunk.choices[:1]:
            if prompt_ids is None:
                prompt_ids = choice.prompt_token_ids
            if choice.finish_reason is not None:
                self._choice["finish_reason"] = choice.finish_reason
            if choice.weight_versions is not None:
                self._choice["weight_versions"] = choice.weight_versions
            self._take_ids(choice)
            if (delta := self._delta(choice)) is not None:
                self.begun = True
                self._heard(delta)
        if prompt_ids is not None:
            self._prompt_ids = prompt_ids

    def _take_ids(self, choice: _Choice) -> None:
        if choice.token_ids is None:
            return
        self._ids = self._ids if self._ids is not None else []
        self._ids += choice.token_ids
        values = read_logprobs(choice.logprobs)
        if values is None and choice.token_ids:
            self._logprobs = None
        elif values is not None and self._logprobs is not None:
            self._logprobs += values

    def _delta(self, choice: _Choice) -> Delta | None:
        """What there is to hear of a piece; None for nothing."""
        said = choice.delta or _Said()
        reasoning = said.reasoning_content or said.reasoning or ""
        content = said.content if isinstance(said.content, str) else ""
        key = "reasoning_content" if said.reasoning_content else "reasoning"
        for name, text in ((key, reasoning), ("content", content)):
            if text:
                self._said.setdefault(name, []).append(text)
        calls = tuple(self._call(call) for call in said.tool_calls or ())
        ids = choice.token_ids or ()
        return Delta(ids, reasoning, content, calls) if ids or reasoning or content or calls else None

    def _call(self, call: _Call) -> CallDelta:
        kept = self._calls.setdefault(call.index, {"id": None, "name": "", "arguments": None})
        function = call.function or _Function()
        arguments = function.arguments
        if arguments is not None and not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments).decode()
        kept["id"] = kept["id"] or call.id
        kept["name"] += function.name or ""
        if arguments is not None:
            kept["arguments"] = (kept["arguments"] or "") + arguments
        return CallDelta(call.index, call.id, function.name, arguments)


def _whole(call: dict[str, Any]) -> dict[str, Any]:
    return {"id": call["id"], "function": {"name": call["name"], "arguments": call["arguments"]}}
