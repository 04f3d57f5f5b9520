"""Replies on their way to a client that may hang up, or read slowly, at any time.

Whatever happens to the client ends the work for it at once. What is not read yet is kept in memory, at most as long as
a client may take to read, and so at most what a model says in that time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from rollout.deadlines import deadline
from rollout.gateway.doors import Receive, Send

_PLAIN = [(b"content-type", b"application/json")]
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
BEGIN_SECONDS = 1.0
"""A stream begins when the model says something, or after so long: what goes wrong before has a status of its own."""

Headers = list[tuple[bytes, bytes]]


class Slow(Exception):
    """The client does not read."""


async def send_whole(send: Send, status: int, body: bytes, headers: Headers, seconds: float) -> None:
    """A reply in one piece. Raises Slow."""
    told = [*_PLAIN, (b"content-length", b"%d" % len(body)), *headers]
    async with _reading(seconds):
        await send({"type": "http.response.start", "status": status, "headers": told})
        await send({"type": "http.response.body", "body": body})


class _reading(deadline):
    """What a client may take to read."""

    __slots__ = ()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        except TimeoutError:
            raise Slow from None


class Work:
    """What is done for a client while it is there."""

    def __init__(self, receive: Receive, work: Coroutine[Any, Any, Any]) -> None:
        """`receive` gives nothing any more but that the client has hung up."""
        self.gone = False
        """It has hung up."""
        self.task = asyncio.create_task(work)
        self._watch = asyncio.create_task(self._until_gone(receive))

    def end(self) -> None:
        """Ends it, wherever it is."""
        self._watch.cancel()
        self.task.cancel()

    async def done(self) -> None:
        """When the work has ended, however."""
        await asyncio.wait((self.task,))

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.task.cancel()


class Outbox:
    """A stream of bytes to one client: whoever writes never waits."""

    def __init__(self, send: Send, headers: Headers, idle: Callable[[], bytes], ping: float, slow: float) -> None:
        """`idle` is what means nothing, said after `ping` seconds of silence; a client has `slow` seconds to read."""
        self.began = False
        """The client has been told something."""
        self._send = send
        self._headers = headers
        self._idle = idle
        self._ping = ping
        self._slow = slow
        self._pieces: list[bytes] = []
        self._held = True
        """What is written waits for more."""
        self._closed = False
        self._quiet = True
        self._waiter: asyncio.Future[None] | None = None
        loop = asyncio.get_running_loop()
        self._timers = [loop.call_later(BEGIN_SECONDS, self._release), loop.call_later(ping, self._beat)]

    def open(self, data: bytes) -> None:
        """What the stream begins with: it may wait for what follows."""
        self._pieces.append(data)

    def put(self, data: bytes) -> None:
        """More of it."""
        if data:
            self._pieces.append(data)
            self._quiet = False
            self._release()

    def close(self) -> None:
        """Nothing follows."""
        self._closed = True
        self._wake()

    async def run(self) -> None:
        """Sends until it is closed. Raises Slow when the client does not read."""
        try:
            while not self._closed:
                if self._pieces and not self._held:
                    await self._flush()
                else:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        finally:
            for timer in self._timers:
                timer.cancel()

    async def end(self) -> None:
        """Sends what is left, and that nothing follows. Raises Slow."""
        await self._flush()
        async with _reading(self._slow):
            await self._send({"type": "http.response.body", "body": b""})

    async def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        async with _reading(self._slow):
            if not self.began:
                self.began = True
                start = {"type": "http.response.start", "status": 200, "headers": [*_EVENTS, *self._headers]}
                await self._send(start)
            if data:
                await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _release(self) -> None:
        self._held = False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _beat(self) -> None:
        if self._quiet and self.began:
            self.put(self._idle())
        self._quiet = True
        self._timers[1] = asyncio.get_running_loop().call_later(self._ping, self._beat)
