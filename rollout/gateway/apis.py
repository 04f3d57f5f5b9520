"""The three APIs, each as what a gateway needs of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from rollout.gateway.section import GatewayConfig
from rollout.turn import Json
from rollout.wire import chat, messages, responses
from rollout.wire.asked import Asked
from rollout.wire.chat_stream import ChatOptions, ChatStream
from rollout.wire.errors import Refused, anthropic_error, openai_error
from rollout.wire.messages_stream import MessagesStream
from rollout.wire.reply import Whole
from rollout.wire.responses_stream import ResponsesStream
from rollout.wire.stream import Heading, Stream, to_json

_DISPATCH = ("tool_call_dispatch", "reasoning_dispatch")
"""What `nvext.annotations` may name."""


@dataclass(frozen=True, slots=True)
class Errors:
    """How an API says that it does not answer."""

    anthropic: bool

    def status(self, refused: Refused) -> int:
        """The HTTP status."""
        return refused.anthropic_status if self.anthropic else refused.status

    def body(self, refused: Refused, id: str) -> bytes:
        """The body; `id` is the request's."""
        return to_json(anthropic_error(refused, id) if self.anthropic else openai_error(refused))


OPENAI, ANTHROPIC = Errors(False), Errors(True)


@dataclass(frozen=True, slots=True)
class Api:
    """One API."""

    prefix: str
    """Of the ids of its replies."""
    errors: Errors
    read: Callable[[bytes], Asked]
    opened: Callable[[Asked, Heading, GatewayConfig], Stream]
    whole: Callable[[Asked, Heading, Whole], dict[str, Any]]

    def heading(self, asked: Asked) -> Heading:
        """Of a new reply."""
        return Heading(f"{self.prefix}{uuid.uuid4().hex}", asked.model, int(time.time()))


def _chat_stream(asked: Asked, heading: Heading, config: GatewayConfig) -> Stream:
    """With the events that the server is set to tell, or that the request asks for."""
    wanted = cast(Mapping[str, Json], asked.hints.get("nvext") or {})
    named = wanted.get("annotations")
    calls, reasoning = (isinstance(named, list) and name in named for name in _DISPATCH)
    dispatch = config.dispatch
    options = ChatOptions(config.reasoning_key, dispatch.tool_calls or calls, dispatch.reasoning or reasoning)
    return ChatStream(asked, heading, options)


CHAT = Api("chatcmpl-", OPENAI, chat.read, _chat_stream, chat.whole)
RESPONSES = Api(
    "resp_", OPENAI, responses.read, lambda asked, heading, _: ResponsesStream(asked, heading), responses.whole
)
MESSAGES = Api(
    "msg_", ANTHROPIC, messages.read, lambda asked, heading, _: MessagesStream(asked, heading), messages.whole
)
