"""An actor that holds a resource's sessions, and the client side that makes it look like a local one."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from actors.courier import Courier, Lost, Mailbox
from resources.catalog import load_resource
from rollout import logs, offload
from rollout.errors import Unavailable, describe
from rollout.latency import Latencies
from rollout.load import HostLoad
from rollout.process import collect_rarely
from rollout.protocols import Seeded
from rollout.sessions import SessionTable
from rollout.thread import threaded
from rollout.trajectory import Message, Restores, Score, Task, ToolCall, ToolResult, ToolSpec, Transcript
from rollout.waits import HERE

SWEEP_SECONDS = 5.0
"""How often a host looks for sessions whose time is up."""
AVOID_SECONDS = 2.0
"""How long a host that died with a session being opened is the last one to be asked."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host tells about its resource, once."""

    name: str
    tools: tuple[ToolSpec, ...]
    text_tool: str | None
    instructions: str | None
    restores: Restores | None = None


class ResourceHost:
    """Thousands of sessions of one resource on one event loop. Plain asyncio: `cluster` makes it an actor."""

    def __init__(
        self, reference: str, options: Mapping[str, Any], verifier_processes: int, max_sessions: int | None = None
    ) -> None:
        logs.mark_lines()
        offload.configure(verifier_processes)
        self._table = SessionTable(load_resource(reference, options), max_sessions=max_sessions)
        self._mailbox = Mailbox(self._handle, status=self._load)
        self._sweeper: asyncio.Task[None] | None = None
        self._owners: dict[str, str] = {}
        """Which runner has opened a session."""
        self._gone: set[str] = set()
        self._ending = False

    async def offer(self) -> Offer:
        """Tells what the resource is."""
        resource = self._table.resource
        return Offer(resource.name, self._table.specs, resource.text_tool, resource.instructions, resource.restores)

    async def exchange(self, client: str, letters: bytes, hold: float) -> bytes:
        """Transport of what sessions need; see `actors.courier`."""
        if self._sweeper is None:  # here, because a host that was restarted is asked nothing else
            self._sweeper = asyncio.create_task(self._sweep())
            collect_rarely()
        return await self._mailbox.exchange(client, letters, hold)

    async def stop(self, seconds: float) -> None:
        """Closes the sessions that are left, of runners that died, say, and takes no new ones."""
        self._ending = True
        async with asyncio.timeout(seconds):
            await self._table.close_all()
        await threaded(offload.shutdown, seconds, "verifier processes")

    async def abandon(self, owner: str) -> None:
        """Closes the sessions of a runner that is gone: they would take up room until their time to live is over."""
        self._gone.add(owner)
        left = [session_id for session_id, opened_by in self._owners.items() if opened_by == owner]
        for end in await asyncio.gather(*map(self._close, left), return_exceptions=True):
            if isinstance(end, Exception):
                log.warning("a session of a runner that is gone did not close: %s", describe(end))

    async def counts(self) -> dict[str, int]:
        """Sessions opened, closed, those of them closed by time-to-live, and open now."""
        table = self._table
        return {"opened": table.opened, "closed": table.closed, "expired": table.expired, "open": len(table)}

    def _load(self) -> HostLoad:
        return HostLoad(open=len(self._table), expired=self._table.expired, offloaded=offload.pending())

    async def _handle(self, letter: tuple[str, tuple[Any, ...], logs.Ids | None]) -> Any:
        verb, arguments, ids = letter
        logs.about(ids)
        match verb:
            case "call":
                return await self._table.answer(*arguments)
            case "seed":
                return await self._seed(*arguments)
            case "verify":
                return await self._table.verify(*arguments)
            case "close":
                return await self._close(*arguments)
            case _:
                raise AssertionError(f"a host has no verb '{verb}'")

    async def _seed(
        self, owner: str, task: Task, seed: int, seconds: float, snapshot: bytes | None
    ) -> tuple[str, tuple[Message, ...]]:
        session_id, messages = await self._table.seed(task, seed, seconds, snapshot)
        if self._ending or owner in self._gone:
            await self._table.close(session_id)
            raise Unavailable("the host is ending" if self._ending else "the runner is gone")
        self._owners[session_id] = owner
        return session_id, messages

    async def _close(self, session_id: str) -> None:
        self._owners.pop(session_id, None)
        await self._table.close(session_id)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._table.sweep()


def _letter(verb: str, *arguments: Any) -> tuple[str, tuple[Any, ...], logs.Ids | None]:
    """What a host is asked, and which episode it is about: its log lines say so."""
    return verb, arguments, logs.ids()


@dataclass(slots=True)
class _Host:
    """A host as one runner sees it."""

    courier: Courier
    held: int = 0
    """Our sessions there: open, being opened or being closed."""
    avoided_until: float = 0.0


@dataclass(slots=True)
class HostedSession:
    """A session at a host."""

    host: _Host
    session_id: str
    _closed: bool = False

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        with HERE.on("tool call", self.host.courier.where):
            answer = await self.host.courier.ask(_letter("call", self.session_id, call, seconds))
        return cast(tuple[ToolResult, bytes | None], answer)

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        with HERE.on("verification", self.host.courier.where):
            return cast(Score, await self.host.courier.ask(_letter("verify", self.session_id, transcript, seconds)))

    async def close(self) -> None:
        try:
            with HERE.on("closing", self.host.courier.where):
                await self.host.courier.ask(_letter("close", self.session_id))
        finally:
            self.host.held -= not self._closed
            self._closed = True


class HostedSessions:
    """Sessions of one resource over its hosts: each goes where the fewest of ours are, so that a host that is slow or
    has just come back gets no more than it gets done. `owner` is the name under which hosts can be told that we are
    gone."""

    def __init__(self, couriers: Sequence[Courier], offer: Offer, owner: str = "") -> None:
        self._hosts = [_Host(courier) for courier in couriers]
        self._offer = offer
        self._owner = owner
        self._latencies = Latencies()

    async def seed_session(self, task: Task, seed: int, seconds: float) -> Seeded:
        return await self._open(task, seed, seconds, None)

    async def restore_session(self, task: Task, seed: int, snapshot: bytes, seconds: float) -> Seeded:
        return await self._open(task, seed, seconds, snapshot)

    async def _open(self, task: Task, seed: int, seconds: float, snapshot: bytes | None) -> Seeded:
        refusal: Unavailable | None = None
        for host in self._by_load():
            try:
                return await self._open_at(host, task, seed, seconds, snapshot)
            except Lost:  # the next one is asked after a pause: a task that takes its host down is not to take all
                host.avoided_until = time.monotonic() + AVOID_SECONDS
                raise
            except Unavailable as error:  # full, which costs nothing: another one may have room
                refusal = error
        raise refusal or Unavailable("there is no host")

    def _by_load(self) -> list[_Host]:
        """Hosts in the order in which they are to be asked; those alike in any, for all runners do this."""
        now = time.monotonic()
        return sorted(self._hosts, key=lambda host: (host.avoided_until > now, host.held, random.random()))

    async def _open_at(self, host: _Host, task: Task, seed: int, seconds: float, snapshot: bytes | None) -> Seeded:
        host.held += 1
        began = time.monotonic()
        try:
            # A seeding that nobody waits for any more is undone over there.
            letter = _letter("seed", self._owner, task, seed, seconds, snapshot)
            with HERE.on("seeding", host.courier.where):
                answer = await host.courier.ask(letter, undo=lambda seeded: _letter("close", seeded[0]))
            self._latencies.observe("seed", time.monotonic() - began)
            session_id, messages = cast(tuple[str, tuple[Message, ...]], answer)
        except BaseException:
            host.held -= 1
            raise
        offer = self._offer
        session = HostedSession(host, session_id)
        return Seeded(session, messages, offer.tools, offer.text_tool, offer.instructions)

    def loads(self) -> dict[str, HostLoad]:
        """By host, what it told of itself since this was asked last."""
        told = {host.courier.where: host.courier.take_status() for host in self._hosts}
        return {where: load for where, load in told.items() if load is not None}

    def take_latencies(self) -> Latencies:
        """How long sessions took to open (cause `seed`) since this was asked last."""
        taken, self._latencies = self._latencies, Latencies()
        return taken
