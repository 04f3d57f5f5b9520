"""A session's life around one episode: asked for until there is one, closed on every path (design invariant 6)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from rollout.errors import RolloutError, Unavailable, boundary
from rollout.protocols import Seeded, Session, Sessions
from rollout.tool_use import TRANSPORT_SECONDS
from rollout.trajectory import FailureKind, Lease, Limits

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds before a host that is not there is asked for a session again."""

log = logging.getLogger(__name__)
_closing: set[asyncio.Task[None]] = set()
"""Sessions being closed, also after their episode was cancelled: the event loop itself keeps no hold of its tasks."""


@asynccontextmanager
async def opened(
    sessions: Sessions, lease: Lease, limits: Limits, resource: str, snapshot: bytes | None = None
) -> AsyncGenerator[Seeded]:
    """A session for the lease's task, closed when the block is left, by whatever. With a snapshot it goes on from it.

    Raises BoundaryError when there is none within limits.seed_seconds.
    """
    seeded = await _seed(sessions, lease, limits, resource, snapshot)
    try:
        yield seeded
    finally:
        await _close(seeded.session, limits.close_seconds)


async def _seed(sessions: Sessions, lease: Lease, limits: Limits, resource: str, snapshot: bytes | None) -> Seeded:
    """Asks again while the host is unavailable: its restart must not cost the attempts of samples not yet on it."""
    # Time-to-live of a session whose runner dies: all an episode may take, and what its calls may be late.
    lifetime = limits.episode_seconds + 3 * TRANSPORT_SECONDS
    began, pause = time.monotonic(), _FIRST_PAUSE
    async with boundary(FailureKind.SEED, resource, limits.seed_seconds):
        while True:
            try:
                if snapshot is None:
                    return await sessions.seed_session(lease.task, lease.seed, lifetime)
                return await sessions.restore_session(lease.task, lease.seed, snapshot, lifetime)
            except Unavailable:
                if time.monotonic() - began + pause >= limits.seed_seconds:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


async def _close(session: Session, seconds: float) -> None:
    closing = asyncio.create_task(_close_within(session, seconds))
    _closing.add(closing)
    closing.add_done_callback(_closing.discard)
    await asyncio.shield(closing)


async def _close_within(session: Session, seconds: float) -> None:
    """A session that cannot be closed is left to its host's time-to-live: it must not cost the episode."""
    try:
        async with boundary(FailureKind.SEED, "close", seconds):
            await session.close()
    except RolloutError as error:
        log.info("a session was not closed: %s", error)
