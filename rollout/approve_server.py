"""`rollout approve RUN --serve PORT`: people answer over HTTP.

    GET  /requests         {"requests": [...]}, the oldest first
    POST /requests/ID      {"answer": "approve" | text | {"decision": ...}, "by": "who"}

200 when the answer counts, 400 for one that says nothing, 401 without the key, 403 for another host's name, 409 where
there is nothing to answer.
Whoever may reach the port may approve: beyond this machine it takes a key. A browser that was led here by another page
may not, as it can neither send JSON to another origin unasked nor say that it came for this host.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any, cast

from aiohttp import web
from rich.console import Console

from rollout.agents.approval_queue import answer, pending
from rollout.agents.decisions import decision
from rollout.errors import UserError
from rollout.thread import DISK_SECONDS, threaded

_MOST_BYTES = 1 << 20
"""Of an answer."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Doors:
    """Where requests come in."""

    port: int
    """0 takes one that is free."""
    host: str = "127.0.0.1"
    key_env: str | None = None
    """The variable that holds the key they have to bring."""


def serve(place: str, doors: Doors, by: str | None = None) -> None:
    """Serves the requests in the folder `place` until it is stopped; `by` stands for who does not say who they are.

    Raises UserError for a port that cannot be had, and for one that others could reach without a key.
    """
    key = os.environ.get(doors.key_env) if doors.key_env is not None else None
    if doors.key_env is not None and not key:
        raise UserError(f"--key-env: the environment variable {doors.key_env} is not set")
    if key is None and not _own(doors.host):
        raise UserError(f"--host: {doors.host} can be reached by others; expected --key-env with a key they need")
    try:
        asyncio.run(_serve(routes(place, key, by), doors))
    except OSError as error:
        raise UserError(f"--serve: {doors.host}:{doors.port}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        return


def routes(place: str, key: str | None, by: str | None = None) -> web.Application:
    """The routes over a folder of requests; without a key they only answer whoever asks for this machine itself."""
    app = web.Application(client_max_size=_MOST_BYTES, middlewares=[_guarded(key)])
    app.router.add_get("/requests", partial(_list, place))
    app.router.add_post("/requests/{id}", partial(_answer, place, by))
    return app


async def _serve(app: web.Application, doors: Doors) -> None:
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, doors.host, doors.port).start()
        host, port = cast(tuple[Any, ...], runner.addresses[0])[:2]
        Console(stderr=True).print(f"http://{host}:{port}/requests", markup=False, soft_wrap=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _guarded(key: str | None) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if key is not None:
            brought = request.headers.get("Authorization", "")
            if not hmac.compare_digest(brought.encode(), f"Bearer {key}".encode()):
                return _told(401, "expected Authorization: Bearer KEY")
        elif not _own(request.url.host or ""):
            return _told(403, "expected a request for this machine")
        if request.method == "POST" and request.content_type != "application/json":
            return _told(400, "expected Content-Type: application/json")
        return await handler(request)

    return guard


async def _list(place: str, request: web.Request) -> web.StreamResponse:
    found = await threaded(lambda: pending(place), DISK_SECONDS, "list requests")
    return web.json_response({"requests": [asdict(one) for one in found]})


async def _answer(place: str, by: str | None, request: web.Request) -> web.StreamResponse:
    try:
        said = await request.json()
        reply = said["answer"]
        decision(reply)
        who = str(said.get("by") or by or "") or None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        line = str(error) if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError) else ""
        return _told(400, line or 'expected {"answer": ...} as JSON')
    try:
        await threaded(lambda: answer(place, request.match_info["id"], reply, who), DISK_SECONDS, "answer")
    except UserError as error:
        return _told(409, str(error))
    return web.json_response({})


def _told(status: int, line: str) -> web.Response:
    return web.json_response({"error": line}, status=status)


def _own(host: str) -> bool:
    """Whether only this machine itself is reached under that name."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
