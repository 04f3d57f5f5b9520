"""A small OpenAI-compatible server that says fixed lines: the fake that ships for endpoints elsewhere.

    python -m rollout.scripted_endpoint --lines '<tool_call>{"name": "increment", "arguments": {}}</tool_call>' done

It serves /v1/chat/completions, /v1/completions with token ids and /v1/models. What it says follows from the request
alone: turn n of a conversation gets line n, the last line repeats, and a conversation's turn is the number of
assistant messages (chat) or of assistant headers (tokens) before the one that is asked for. Chat reads its own
lines as a server with parsers does; the answers are encoded once.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, cast

import msgspec
from aiohttp import web

from rollout.errors import UserError
from rollout.parsing import as_message
from rollout.process import collect_rarely, open_many_files
from rollout.scripted import encode_lines
from rollout.scripted_stream import pieces
from rollout.segments import hermes
from rollout.template import ChatTemplate, load_template, resolve_model
from rollout.trajectory import Message, ToolSpec

MODEL = "scripted"
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the endpoint treats its clients."""

    latency_seconds: float = 0.0
    """Median time a completion takes."""
    latency_spread: float = 0.0
    """Sigma of a log-normal around it; 0 makes it constant."""
    seed: int = 0
    token_ids: bool = True
    """Gives ids and logprobs to whoever asks, as vLLM does; False leaves them out, as most servers do."""
    strict: bool = False
    """Refuses vLLM's extra keys with status 400."""
    reasoning_field: str = "reasoning"
    """Name of a message's reasoning: `reasoning` (vLLM) or `reasoning_content` (SGLang, DeepSeek)."""
    keeps_reasoning: bool = True
    """False renders earlier turns without their reasoning, as some chat templates do."""
    context: int | None = None
    """Tokens that prompt and completion may have together."""
    api_key: str | None = None
    """What clients must send."""
    fail_every: int = 0
    """Every so many-th completion fails; 0 never."""
    fail_status: int = 500
    retry_after: str | None = None
    """Header of a failure."""
    piece: int = 1
    """Tokens in each piece of an answer that is streamed."""
    breaks_after: int | None = None
    """Pieces after which the connection of a stream ends."""


class _Role(msgspec.Struct):
    role: str


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Asked(msgspec.Struct):
    """What matters of a request."""

    messages: list[_Role] | None = None
    prompt: list[int | list[int]] | str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | int | None = None
    return_token_ids: bool | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ScriptedEndpoint:
    """The server on a loopback port. A context manager; `url` ends in /v1."""

    def __init__(
        self, template: ChatTemplate, lines: Sequence[str], behaviour: Behaviour | None = None, port: int = 0
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.requests = 0
        """Completions asked for, failures included."""
        self.left = asyncio.Event()
        """Set once the client of a stream went away before its end."""
        self._template = template
        self._lines = encode_lines(template, lines)
        self._header = _header(template)
        self._answers: dict[tuple[int, int, bool, bool, bool], bytes] = {}
        self._asked = msgspec.json.Decoder(_Asked)
        # Scripted episodes say the same things: rendering each anew would cost more than all the rest of an answer.
        self._rendered = lru_cache(maxsize=1024)(self._render)
        self._random = random.Random(self.behaviour.seed)
        self._port = port
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._serve, access_log=None), shutdown_timeout=0.1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, HOST, self._port, backlog=4096, reuse_address=True).start()
        except (OSError, OverflowError) as error:
            await self._runner.cleanup()
            raise UserError(f"--port: {self._port}: {getattr(error, 'strerror', error)}") from error
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Base URL for clients; the port is known once the server runs."""
        return f"http://{HOST}:{self._port}/v1"

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await self._answer(request)
            if isinstance(body, list):
                return await self._streamed(request, body)
        except _Refusal as refusal:
            error = {"message": str(refusal), "type": "scripted", "code": refusal.code or refusal.status}
            retry = self.behaviour.retry_after
            headers = {"Retry-After": retry} if retry is not None and refusal.status >= 429 else None
            body = msgspec.json.encode({"error": error})
            return web.Response(body=body, status=refusal.status, headers=headers, content_type="application/json")
        return web.Response(body=body, content_type="application/json")

    async def _streamed(self, request: web.BaseRequest, pieces: Sequence[bytes]) -> web.StreamResponse:
        """Sends an answer piece by piece, evenly over its latency."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        seconds, clock = self._seconds(), asyncio.get_running_loop().time
        began = clock()
        try:
            await response.prepare(request)
            for number, piece in enumerate(pieces):
                if number == self.behaviour.breaks_after and request.transport is not None:
                    request.transport.abort()
                await asyncio.sleep(began + seconds * (number + 1) / len(pieces) - clock())
                await response.write(piece)
            await response.write_eof()
        except ConnectionError:
            self.left.set()
        return response

    async def _answer(self, request: web.BaseRequest) -> bytes | list[bytes]:
        key = self.behaviour.api_key
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            raise _Refusal(401, f"Incorrect API key provided: {request.headers.get('Authorization')}")
        route = (request.method, request.path)
        if route == ("GET", "/v1/models"):
            card = {"id": MODEL, "object": "model", "created": 0, "owned_by": "rollout"}
            return msgspec.json.encode({"object": "list", "data": [card]})
        if route not in (("POST", "/v1/chat/completions"), ("POST", "/v1/completions")):
            raise _Refusal(404, f"there is no {request.method} {request.path}")
        self.requests += 1
        if self.behaviour.fail_every and self.requests % self.behaviour.fail_every == 0:
            raise _Refusal(self.behaviour.fail_status, "scripted failure")
        raw = await request.read()
        try:
            asked = self._asked.decode(raw)
        except msgspec.MsgspecError as error:
            raise _Refusal(400, str(error)) from None
        chat = request.path.endswith("/chat/completions")
        answer, ids = self._complete(asked, raw, chat)
        if asked.stream:
            counts = asked.stream_options is not None and asked.stream_options.include_usage
            return pieces(answer, ids, self._template, self.behaviour.piece, chat, counts)
        if self.behaviour.latency_seconds:
            await asyncio.sleep(self._seconds())
        return answer

    def _seconds(self) -> float:
        """What the next completion takes."""
        return self.behaviour.latency_seconds * self._random.lognormvariate(0.0, self.behaviour.latency_spread)

    def _complete(self, asked: _Asked, raw: bytes, chat: bool) -> tuple[bytes, list[int]]:
        """An answer and what was sampled for it."""
        if self.behaviour.strict and asked.return_token_ids is not None:
            raise _Refusal(400, "Unrecognized request argument supplied: return_token_ids")
        told = self.behaviour.token_ids
        wants_ids = told and bool(asked.return_token_ids)
        wants_logprobs = told and asked.logprobs is not None and asked.logprobs is not False
        prompt = self._prompt(asked, raw, chat, render=wants_ids or self.behaviour.context is not None)
        roles = [message.role for message in asked.messages or ()]
        turn = roles.count("assistant") if chat else max(0, _count(prompt, self._header) - 1)
        line = self._lines[min(turn, len(self._lines) - 1)]
        room = asked.max_completion_tokens or asked.max_tokens or len(line)
        said = min(len(line), room)
        if (context := self.behaviour.context) is not None and len(prompt) + said > context:
            text = f"This model's maximum context length is {context} tokens, but the prompt has {len(prompt)}"
            raise _Refusal(400, text, "context_length_exceeded")
        key = (turn, said, chat, wants_ids, wants_logprobs)
        if (answer := self._answers.get(key)) is None:
            choice = self._choice(turn, line[:said], said < len(line), chat, wants_ids, wants_logprobs)
            answer = self._answers[key] = _opened(choice, "chat.completion" if chat else "text_completion")
        # Unrendered prompts are counted roughly.
        count = len(prompt) or len(raw) // 4
        usage = b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}' % (count, said, count + said)
        if wants_ids:
            ids = b'"prompt_token_ids":' + msgspec.json.encode(prompt) + b","
            # vLLM tells a prompt's ids beside the choices (chat) and inside them (completions).
            beside = answer + ids if chat else answer.replace(b'{"index":0', b"{" + ids + b'"index":0', 1)
            return beside + usage, line[:said]
        return answer + usage, line[:said]

    def _prompt(self, asked: _Asked, raw: bytes, chat: bool, render: bool) -> list[int]:
        if not chat:
            prompt = asked.prompt
            if isinstance(prompt, str):
                return self._template.encode(prompt)
            if not prompt:
                raise _Refusal(400, "prompt: expected token ids or text")
            return cast(list[int], prompt[0] if isinstance(prompt[0], list) else prompt)
        if asked.messages is None:
            raise _Refusal(400, "messages: missing")
        return self._rendered(raw) if render else []

    def _render(self, raw: bytes) -> list[int]:
        """A chat request's prompt."""
        conversation: dict[str, Any] = msgspec.json.decode(raw)
        messages = [self._past(message) for message in conversation["messages"]]
        functions = [tool["function"] for tool in conversation.get("tools") or ()]
        tools = [ToolSpec(each["name"], each.get("description", ""), each.get("parameters", {})) for each in functions]
        try:
            return self._template.opening(messages, tools)
        except UserError as error:
            raise _Refusal(400, str(error)) from None

    def _past(self, message: dict[str, Any]) -> Message:
        """An earlier message as the template sees it: reasoning is read only under the server's own name for it."""
        given = {name: message.pop(name, None) for name in ("reasoning", "reasoning_content")}
        if self.behaviour.keeps_reasoning and (reasoning := given[self.behaviour.reasoning_field]):
            message["reasoning_content"] = reasoning
        return cast(Message, message)

    def _choice(
        self, turn: int, ids: list[int], cut: bool, chat: bool, wants_ids: bool, wants_logprobs: bool
    ) -> dict[str, Any]:
        text = self._template.decode(ids)
        message = as_message(hermes(text, turn))
        calls = bool(message.get("tool_calls"))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if cut else "stop", "logprobs": None}
        if chat:
            renamed: dict[str, Any] = dict(message)
            if reasoning := renamed.pop("reasoning_content", None):
                renamed[self.behaviour.reasoning_field] = reasoning
            choice["message"] = renamed
            choice["finish_reason"] = "length" if cut else "tool_calls" if calls else "stop"
        else:
            choice["text"] = text
        if wants_ids:
            choice["token_ids"] = ids
        if wants_logprobs:
            choice["logprobs"] = _logprobs([self._template.decode([number]) for number in ids], chat)
        return choice


def logprob(place: int) -> float:
    """The log probability that the endpoint gives for the token at `place`: exact in 32 bits."""
    return -(place % 8) / 8


def _logprobs(tokens: list[str], chat: bool) -> dict[str, Any]:
    values = [logprob(place) for place in range(len(tokens))]
    if not chat:
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": []}
    entries = [
        {"token": token, "logprob": value, "bytes": list(token.encode()), "top_logprobs": []}
        for token, value in zip(tokens, values, strict=True)
    ]
    return {"content": entries}


def _opened(choice: dict[str, Any], kind: str) -> bytes:
    """An answer up to its usage."""
    answer = {"id": "scripted", "object": kind, "created": 0, "model": MODEL, "choices": [choice]}
    return msgspec.json.encode(answer)[:-1] + b","


def _header(template: ChatTemplate) -> list[int]:
    """Ids of the assistant header that every turn, and nothing else, begins with."""
    asked: list[Message] = [{"role": "user", "content": "?"}]
    bare = template.render(asked, (), prompted=False)
    return template.encode(template.render(asked, (), prompted=True)[len(bare) :])


def _count(ids: list[int], part: list[int]) -> int:
    """How often `part` occurs in `ids`."""
    found = 0
    at = -1
    try:
        while True:
            at = ids.index(part[0], at + 1)
            found += ids[at : at + len(part)] == part
    except ValueError:
        return found


async def serve(endpoint: ScriptedEndpoint) -> None:
    """Runs the endpoint until it is cancelled; its URL goes to stdout once it answers."""
    async with endpoint:
        open_many_files()
        collect_rarely()
        print(endpoint.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rollout.scripted_endpoint")
    parser.add_argument("--lines", nargs="+", required=True, help="what it says in turn 0, 1, ...")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--model", default="bundled", help="folder or hub name of the tokenizer and chat template")
    parser.add_argument("--latency", type=float, default=0.0, help="median seconds a completion takes")
    parser.add_argument("--spread", type=float, default=0.0, help="sigma of a log-normal around it")
    parser.add_argument("--no-token-ids", action="store_true", help="give neither ids nor logprobs")
    given = parser.parse_args()
    behaviour = Behaviour(given.latency, given.spread, token_ids=not given.no_token_ids)
    try:
        template = load_template(resolve_model(given.model))
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(ScriptedEndpoint(template, given.lines, behaviour, given.port)))
    except UserError as error:
        print(f"scripted_endpoint: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
