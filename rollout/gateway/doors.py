"""What comes in over HTTP before it is a request: headers, keys and bodies. Plain ASGI."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from rollout.deadlines import deadline
from rollout.errors import UserError
from rollout.wire.errors import Kind, Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gone(Exception):
    """The client hung up before it had said what it wants."""


def sealed(key: str) -> bytes:
    """What of a key is kept and sent to where requests come in: enough to know it again."""
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape")).digest()


def key_of(host: str, key_env: str | None) -> bytes | None:
    """The key that requests have to bring, sealed; None on loopback, where none is named.

    Raises UserError for a variable that is not set, and for a host that others reach without a key.
    """
    key = os.environ.get(key_env) if key_env is not None else None
    if key_env is not None and not key:
        raise UserError(f"gateway.key_env: the environment variable {key_env} is not set")
    if key is None and not is_own(host):
        raise UserError(f"gateway.host: {host} can be reached by others; expected gateway.key_env with a key they need")
    return sealed(key) if key is not None else None


def is_own(host: str) -> bool:
    """Whether only this machine itself is reached under that name."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def headers_of(scope: Scope) -> dict[str, str]:
    """Headers by their names in small letters."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def brought(headers: Mapping[str, str]) -> str:
    """The key that a request brings; empty when it brings none."""
    if (key := headers.get("x-api-key")) is not None:
        return key
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def check_key(headers: Mapping[str, str], key: bytes | None) -> None:
    """Raises Refused for a request without the key.

    Where none is needed, pages in a browser on this machine are kept out: they say where they are from, or ask for
    this machine by a name of their own.
    """
    if key is not None:
        if not hmac.compare_digest(sealed(brought(headers)), key):
            raise Refused(Kind.AUTHENTICATION, "expected the key, as Authorization: Bearer KEY or x-api-key: KEY")
        return
    origin, host = headers.get("origin"), headers.get("host", "")
    if not is_own(_hostname(f"//{host}")) or (origin is not None and not is_own(_hostname(origin))):
        raise Refused(Kind.PERMISSION, "without a key this server answers this machine alone")


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that do not close
        return ""


async def body_of(receive: Receive, headers: Mapping[str, str], most: int, seconds: float) -> bytes:
    """The body of a request. Raises Refused for one of more than `most` bytes, in an encoding, or that does not come
    within `seconds`, Gone when the client hangs up."""
    if headers.get("content-encoding", "identity") != "identity":
        raise Refused(Kind.INVALID, f"content-encoding: expected none, got '{headers['content-encoding'][:40]}'")
    told = headers.get("content-length", "")
    large = Refused(Kind.TOO_LARGE, f"the body has more than {most} bytes")
    if told.isdecimal() and int(told[:19]) > most:
        raise large
    parts: list[bytes] = []
    size = 0
    try:
        async with deadline(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > most:
                    raise large
                parts.append(part)
                if not message.get("more_body", False):
                    return part if size == len(part) else b"".join(parts)
    except TimeoutError:
        raise Refused(Kind.TIMEOUT, f"the body did not come within {seconds:g} s") from None
