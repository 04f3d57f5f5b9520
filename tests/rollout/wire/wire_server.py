"""A gateway as small as can be: the codecs, a scripted reply and a store, on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rollout.serving.catalog import ProfileConfig
from rollout.wire import chat, messages, models, responses
from rollout.wire.asked import Asked
from rollout.wire.chat_stream import ChatOptions, ChatStream
from rollout.wire.errors import Refused, anthropic_error, openai_error
from rollout.wire.messages_stream import MessagesStream
from rollout.wire.reply import Event, Finished, collected
from rollout.wire.responses_stream import ResponsesStream
from rollout.wire.stored import Kept, MemoryResponses, ResponseStore, conversation
from rollout.wire.stream import Heading, Stream

CREATED = 1700000000
PROFILES = (
    ProfileConfig(max_output=4096, display_name="Small").value("org/small", 32768),
    ProfileConfig(max_output=8192).value("org/large", 131072),
)


@dataclass
class Gateway:
    """What it says and what it was asked."""

    reply: Sequence[Event] = ()
    breaks: Refused | None = None
    """Said instead of the end."""
    refuses: Refused | None = None
    options: ChatOptions = field(default_factory=ChatOptions)
    store: ResponseStore = field(default_factory=MemoryResponses)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/messages", self.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
        ]

    async def chat(self, request: Request) -> Response:
        try:
            asked = self._take(chat.read(await request.body()))
        except Refused as refused:
            return JSONResponse(openai_error(refused), refused.status)
        heading = Heading("chatcmpl-1", asked.model, 1700000000)
        if asked.stream:
            return self._streamed(ChatStream(asked, heading, self.options))
        return JSONResponse(chat.whole(asked, heading, collected(asked, self.reply)))

    async def messages(self, request: Request) -> Response:
        try:
            asked = self._take(messages.read(await request.body()))
        except Refused as refused:
            return JSONResponse(anthropic_error(refused, "req_1"), refused.anthropic_status)
        heading = Heading("msg_1", asked.model, 1700000000)
        if asked.stream:
            return self._streamed(MessagesStream(asked, heading))
        return JSONResponse(messages.whole(asked, heading, collected(asked, self.reply)))

    async def responses(self, request: Request) -> Response:
        try:
            asked = responses.read(await request.body())
            new = responses.told(asked)
            if asked.previous is not None:
                chain = await self.store.chain(asked.previous)
                if not chain:
                    raise responses.no_such_response(asked.previous)
                asked = responses.continued(asked, conversation(chain))
            asked = self._take(asked)
        except Refused as refused:
            return JSONResponse(openai_error(refused), refused.status)
        heading = Heading(f"resp_{len(self.asked)}", asked.model, 1700000000)
        if asked.stream:
            return self._streamed(stream := ResponsesStream(asked, heading), lambda: self._keep(stream, asked, new))
        reply = collected(asked, self.reply)
        body = responses.whole(asked, heading, reply)
        if asked.store:
            await self.store.put(Kept(heading.id, asked.previous, (*new, reply.message), body))
        return JSONResponse(body)

    async def _keep(self, stream: ResponsesStream, asked: Asked, new: tuple[Any, ...]) -> None:
        assert stream.body is not None and stream.reply is not None
        if asked.store:
            kept = Kept(stream.body["id"], asked.previous, (*new, stream.reply.message), stream.body)
            await self.store.put(kept)

    async def count(self, request: Request) -> Response:
        try:
            asked = self._take(messages.read_count(await request.body()))
        except Refused as refused:
            return JSONResponse(anthropic_error(refused), refused.anthropic_status)
        return JSONResponse(messages.counted(sum(len(message["content"].split()) for message in asked.messages)))

    async def models(self, request: Request) -> Response:
        if "anthropic-version" not in request.headers:
            return JSONResponse(models.openai_list(PROFILES, CREATED))
        given = request.query_params
        page = models.anthropic_list(PROFILES, CREATED, int(given.get("limit", 20)), given.get("after_id"))
        return JSONResponse(page)

    async def model(self, request: Request) -> Response:
        anthropic = "anthropic-version" in request.headers
        try:
            found = models.find(PROFILES, request.path_params["model"])
        except Refused as refused:
            return JSONResponse(anthropic_error(refused) if anthropic else openai_error(refused), refused.status)
        return JSONResponse((models.anthropic_entry if anthropic else models.openai_entry)(found, CREATED))

    def _take(self, asked: Asked) -> Asked:
        self.asked.append(asked)
        if self.refuses is not None:
            raise self.refuses
        return asked

    def _streamed(self, stream: Stream, keep: Any = None) -> Response:
        async def told() -> AsyncIterator[bytes]:
            for event in self.reply:
                yield stream.idle()
                if isinstance(event, Finished) and self.breaks is not None:
                    yield stream.fail(self.breaks)
                    return
                data = stream.feed(event)
                if isinstance(event, Finished) and keep is not None:
                    await keep()
                yield data

        return StreamingResponse(told(), media_type="text/event-stream")


@asynccontextmanager
async def running(gateway: Gateway) -> AsyncGenerator[Gateway]:
    """The gateway on a port of its own."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = Starlette(routes=gateway.routes())
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        gateway.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield gateway
        finally:
            server.should_exit = True
            await task
