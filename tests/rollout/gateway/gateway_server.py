"""The gateway on loopback, over a scripted policy that counts what it is asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from rollout.gateway.app import Gateway
from rollout.gateway.doors import sealed
from rollout.gateway.scribe import Episodes
from rollout.gateway.section import GatewayConfig
from rollout.gateway.served import Served
from rollout.parsing import format_named
from rollout.scripted import ScriptedPolicy
from rollout.serving.catalog import ProfileConfig
from rollout.streaming import Heard
from rollout.template import BUNDLED, ChatTemplate, load_template
from rollout.turn import Completion, Prompt
from rollout.wire.stored import MemoryResponses, ResponseStore

NAME = "org/small"
TEMPLATE = load_template(BUNDLED)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
LOOK = '<tool_call>\n{"name": "look", "arguments": {"at": "home"}}\n</tool_call>'
PARAMETERS: Any = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
CHAT_TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": f"{name}s", "parameters": PARAMETERS}}
    for name in ("add", "look")
]
OWN_TOOLS: Any = [{"name": name, "input_schema": PARAMETERS} for name in ("add", "look")]
RESPONSE_TOOLS: Any = [
    {"type": "function", "name": name, "parameters": PARAMETERS, "strict": True} for name in ("add", "look")
]
ASK: Any = [{"role": "user", "content": "Good day to you."}]


@dataclass
class Counted:
    """A scripted policy that remembers its prompts and counts what runs."""

    inner: ScriptedPolicy
    prompts: list[Prompt] = field(default_factory=list)
    running: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nothing runs any more."""
    raises: Exception | None = None

    async def complete(self, prompt: Prompt) -> Completion:
        return await self._count(prompt, self.inner.complete(prompt))

    async def stream(self, prompt: Prompt, heard: Heard) -> Completion:
        return await self._count(prompt, self.inner.stream(prompt, heard))

    async def _count(self, prompt: Prompt, work: Any) -> Completion:
        self.prompts.append(prompt)
        self.running += 1
        self.ended.clear()
        try:
            done = await work
            if self.raises is not None:
                raise self.raises
            return done
        finally:
            self.running -= 1
            if not self.running:
                self.ended.set()


@dataclass
class Running:
    """A gateway and where it is."""

    gateway: Gateway
    policy: Counted
    url: str


def scripted(
    script: Sequence[str] | Callable[[Prompt], Sequence[str]],
    latency: float = 0.0,
    piece: int = 1,
    template: ChatTemplate = TEMPLATE,
) -> Counted:
    return Counted(ScriptedPolicy(template, script, latency, piece))


def served(policy: Any, profile: ProfileConfig | None = None, **others: Any) -> Served:
    form = others.pop("form", "hermes")
    reading = format_named(form) if isinstance(form, str) else form
    known = (profile or ProfileConfig(display_name="Small")).value(NAME, 2048)
    return Served(policy, others.pop("template", TEMPLATE), reading, known, created=1_700_000_000, **others)


@asynccontextmanager
async def running(
    policy: Counted,
    config: GatewayConfig | None = None,
    key: str | None = None,
    episodes: Episodes | None = None,
    store: ResponseStore | None = None,
    holds: int | None = None,
    **others: Any,
) -> AsyncGenerator[Running]:
    """The gateway on a port of its own."""
    gateway = Gateway(
        served(policy, **others),
        config or GatewayConfig(),
        store or MemoryResponses(),
        sealed(key) if key else None,
        episodes,
    )
    with socket.socket() as listening:
        if holds is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, holds)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(gateway, log_level="critical", lifespan="off", ws="none"))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield Running(gateway, policy, f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            await task
            await gateway.close()
