"""An actor that holds a resource's sessions, and the client side that makes it look like a local one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from actors.courier import Courier, Mailbox
from resources.catalog import load_resource
from rollout import offload
from rollout.errors import Unavailable
from rollout.protocols import Seeded
from rollout.sessions import SessionTable
from rollout.thread import threaded
from rollout.trajectory import Message, Score, Task, ToolCall, ToolResult, ToolSpec, Transcript
from rollout.waits import HERE

SWEEP_SECONDS = 5.0
"""How often a host looks for sessions whose time is up."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host tells about its resource, once."""

    name: str
    tools: tuple[ToolSpec, ...]
    text_tool: str | None
    instructions: str | None


class ResourceHost:
    """Thousands of sessions of one resource on one event loop. Plain asyncio: `cluster` makes it an actor."""

    def __init__(self, reference: str, options: Mapping[str, Any], verifier_processes: int) -> None:
        offload.configure(verifier_processes)
        self._table = SessionTable(load_resource(reference, options))
        self._mailbox = Mailbox(self._handle)
        self._sweeper: asyncio.Task[None] | None = None
        self._ending = False

    async def offer(self) -> Offer:
        """Tells what the resource is."""
        resource = self._table.resource
        return Offer(resource.name, self._table.specs, resource.text_tool, resource.instructions)

    async def exchange(self, client: str, letters: bytes, hold: float) -> bytes:
        """Transport of what sessions need; see `actors.courier`."""
        if self._sweeper is None:  # here, because a host that was restarted is asked nothing else
            self._sweeper = asyncio.create_task(self._sweep())
        return await self._mailbox.exchange(client, letters, hold)

    async def stop(self, seconds: float) -> None:
        """Closes the sessions that are left, of runners that died, say, and takes no new ones."""
        self._ending = True
        async with asyncio.timeout(seconds):
            await self._table.close_all()
        await threaded(offload.shutdown, seconds, "verifier processes")

    async def counts(self) -> dict[str, int]:
        """Sessions opened, closed, those of them closed by time-to-live, and open now."""
        table = self._table
        return {"opened": table.opened, "closed": table.closed, "expired": table.expired, "open": len(table)}

    async def _handle(self, letter: tuple[str, tuple[Any, ...]]) -> Any:
        verb, arguments = letter
        match verb:
            case "call":
                return await self._table.call(*arguments)
            case "seed":
                return await self._seed(*arguments)
            case "verify":
                return await self._table.verify(*arguments)
            case "close":
                return await self._table.close(*arguments)
            case _:
                raise AssertionError(f"a host has no verb '{verb}'")

    async def _seed(self, task: Task, seed: int, seconds: float) -> tuple[str, tuple[Message, ...]]:
        session_id, messages = await self._table.seed(task, seed, seconds)
        if self._ending:
            await self._table.close(session_id)
            raise Unavailable("the host is ending")
        return session_id, messages

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._table.sweep()


@dataclass(frozen=True, slots=True)
class HostedSession:
    """A session at a host."""

    courier: Courier
    session_id: str

    async def call(self, call: ToolCall, seconds: float) -> ToolResult:
        with HERE.on("tool call", self.courier.where):
            return cast(ToolResult, await self.courier.ask(("call", (self.session_id, call, seconds))))

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        with HERE.on("verification", self.courier.where):
            return cast(Score, await self.courier.ask(("verify", (self.session_id, transcript, seconds))))

    async def close(self) -> None:
        with HERE.on("closing", self.courier.where):
            await self.courier.ask(("close", (self.session_id,)))


class HostedSessions:
    """Sessions spread evenly over hosts."""

    def __init__(self, couriers: Sequence[Courier], offer: Offer) -> None:
        self._couriers = couriers
        self._offer = offer
        self._next = 0

    async def seed_session(self, task: Task, seed: int, seconds: float) -> Seeded:
        courier = self._couriers[self._next % len(self._couriers)]
        self._next += 1  # also when it fails: whoever asks again asks another host
        # A seeding that nobody waits for any more is undone over there.
        with HERE.on("seeding", courier.where):
            answer = await courier.ask(("seed", (task, seed, seconds)), undo=lambda seeded: ("close", (seeded[0],)))
        session_id, messages = cast(tuple[str, tuple[Message, ...]], answer)
        offer = self._offer
        session = HostedSession(courier, session_id)
        return Seeded(session, messages, offer.tools, offer.text_tool, offer.instructions)
