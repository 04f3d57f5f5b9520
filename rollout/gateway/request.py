"""One HTTP request, for whoever answers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rollout.gateway.apis import ANTHROPIC, OPENAI, Errors
from rollout.gateway.doors import Receive, Send
from rollout.gateway.scribe import Scribe
from rollout.gateway.sending import Headers, send_whole
from rollout.wire.errors import Kind, Refused
from rollout.wire.stream import to_json


@dataclass(slots=True)
class Request:
    """What comes in."""

    id: str
    method: str
    path: str
    """Without the token of an episode."""
    query: str
    headers: Mapping[str, str]
    receive: Receive
    send: Send
    seconds: float
    """What the client may take to read."""
    scribe: Scribe | None = None
    """Of the episode that it belongs to,"""
    scope: str = ""
    """and what keeps that apart from all others."""
    begun: bool = False
    """The client has been told something."""

    @property
    def is_anthropic(self) -> bool:
        """A client of Anthropic's asks."""
        return "anthropic-version" in self.headers

    @property
    def errors(self) -> Errors:
        """The shape that its errors have."""
        return ANTHROPIC if self.is_anthropic or self.path.startswith("/v1/messages") else OPENAI

    @property
    def answer_headers(self) -> Headers:
        """What every answer says."""
        return [(b"request-id", self.id.encode()), (b"x-request-id", self.id.encode())]

    async def tell(self, body: Any) -> None:
        """Answers with JSON. Raises Slow when the client does not read."""
        self.begun = True
        await send_whole(self.send, 200, to_json(body), self.answer_headers, self.seconds)

    async def refuse(self, refused: Refused) -> None:
        """Says why there is no answer. Raises Slow."""
        headers = self.answer_headers
        if refused.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(refused.retry_after))))
        if refused.kind is Kind.TIMEOUT:
            headers.append((b"connection", b"close"))  # the rest of its body may never come
        self.begun = True
        body = self.errors.body(refused, self.id)
        await send_whole(self.send, self.errors.status(refused), body, headers, self.seconds)
