"""Replacing a part that does not answer. Nothing is replaced that answers when it is asked from here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import actors
from ray.exceptions import RayError

from rollout.errors import describe
from rollout.thread import threaded
from rollout.watch import Mend

PROBE_SECONDS = 10.0
"""What a part that is well may take to say so."""
ASK_SECONDS = 30.0
"""What Ray may take to tell about a part, or to take the order to end it."""

log = logging.getLogger(__name__)


def host_part(number: int) -> str:
    """What a resource host is called wherever it is waited for."""
    return f"host {number}"


def slot_part(slot: int) -> str:
    """What the replica behind a slot is called."""
    return f"model slot {slot}"


@dataclass(frozen=True, slots=True)
class Mender:
    """Replaces hosts and replicas of one job."""

    hosts: Sequence[Any]
    slots: int
    """0 for a model elsewhere, which is not ours to replace."""
    look: Callable[[], list[dict[str, Any]]]
    """What Serve tells about the model's replicas. Blocks."""

    @property
    def parts(self) -> frozenset[str]:
        """What can be replaced."""
        slots = map(slot_part, range(self.slots))
        return frozenset([*map(host_part, range(len(self.hosts))), *slots])

    async def mend(self, mend: Mend) -> str | None:
        """Ends what does not answer, so that Ray or Serve starts another; says what was ended.

        None when nothing had to be: it answers, or another is starting already. Never raises for what it meets.
        """
        kind, _, number = mend.part.rpartition(" ")
        try:
            if kind == "host":
                return await _mend_host(self.hosts[int(number)], mend.stalled)
            return await self._mend_replica(mend)
        except (RayError, OSError, ValueError, LookupError) as error:  # Ray itself does not answer
            log.warning("%s cannot be replaced: %s", mend.part, describe(error))
            return None

    async def _mend_replica(self, mend: Mend) -> str | None:
        """The one that answered last where it is alive and finishes nothing, or the only one; else all that do not
        answer."""
        running = await threaded(self._running, ASK_SECONDS, "Ray Serve")
        if mend.stalled:
            ill = [(told, actor) for told, actor in running if mend.who == told["replica_id"] or len(running) == 1]
        else:
            well = await asyncio.gather(*(_answers(actor.check_health.remote()) for _, actor in running))
            ill = [one for one, answers in zip(running, well, strict=True) if not answers]
        for _, handle in ill:
            await threaded(lambda handle=handle: ray.kill(handle), ASK_SECONDS, "Ray")
        ended = [f"replica {told['replica_id']} (process {told['pid']} on {told['node_ip']})" for told, _ in ill]
        return " and ".join(ended) or None

    def _running(self) -> list[tuple[dict[str, Any], Any]]:
        from ray.serve._private.constants import SERVE_NAMESPACE  # half a second for a job without replicas

        running = [told for told in self.look() if told["state"] == "RUNNING"]
        return [(told, ray.get_actor(told["actor_name"], namespace=SERVE_NAMESPACE)) for told in running]


async def _mend_host(host: Any, stalled: bool) -> str | None:
    if not stalled and await _answers(host.counts.remote()):
        return None
    told = await threaded(lambda: actors(host._actor_id.hex()), ASK_SECONDS, "Ray")
    if told["State"] != "ALIVE":
        return None  # it has no process: Ray is starting one, or has no place for it
    await threaded(lambda: ray.kill(host, no_restart=False), ASK_SECONDS, "Ray")
    return f"process {told['Pid']} on {told['Address']['IPAddress']}"


async def _answers(call: Awaitable[Any]) -> bool:
    """True also for an error: what raises is there, and whoever uses it hears of it."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await call
    except TimeoutError:
        return False
    except RayError:
        return True
    return True
