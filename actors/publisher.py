"""New weights to all replicas: one announcement, and the wait until everybody who lives has them.

RUN/weights.json holds the newest announcement, written before anybody hears of it, so that a service that comes back
gives no version twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

from ray.exceptions import RayError

from actors.weights import Edition, Taken
from rollout.errors import RolloutError, UserError, describe
from rollout.storage import Place, folder, inside
from rollout.thread import DISK_SECONDS, threaded

PUBLISH_SECONDS = 600.0
"""What all replicas may take to have new weights."""
LOOK_SECONDS = 0.05
"""How often they are looked at meanwhile."""
REMIND_SECONDS = 5.0
"""How often the announcement is repeated: the actor that holds it may have been restarted."""
ANSWER_SECONDS = 30.0
"""What that actor may take to answer."""
SERVE_SECONDS = 60.0
"""What Serve may take to tell which replicas there are."""
_FILE = "weights.json"

log = logging.getLogger(__name__)


def read_edition(run: Place) -> tuple[Edition, int]:
    """The newest announcement of a run and the highest version it ever gave; the job's own weights are version 0.

    Raises UserError for a file that says neither.
    """
    content = folder(run).read(_FILE)
    if content is None:
        return Edition(0, 0, None), 0
    try:
        told: dict[str, Any] = json.loads(content)
        highest = int(told.pop("highest"))
        return Edition(**told), highest
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{inside(run, _FILE)}: says not what weights are served: {describe(error)}") from error


class Publisher:
    """The service's side of `actors.weights`."""

    def __init__(
        self, weights: Any, run: Place, edition: Edition, highest: int, live: Callable[[], Collection[str]]
    ) -> None:
        """`live` gives the names of the replicas that serve; it blocks."""
        self._weights = weights
        self._run = run
        self._edition = edition
        self._highest = highest
        self._live = live

    async def remind(self) -> None:
        """Repeats the announcement for ever."""
        while True:
            await asyncio.sleep(REMIND_SECONDS)
            try:
                await self._announce()
            except (RolloutError, RayError, TimeoutError) as error:
                log.warning("the weights' actor does not answer: %s", describe(error))

    async def publish(self, place: str) -> int:
        """Has every replica take the weights in a folder; the version they have then.

        Raises RolloutError when a replica cannot use them: all go back to those of before. So it does when a replica
        neither takes them nor dies in time. Either way the number is used up: tokens may have been sampled under it.
        """
        before = self._edition
        edition = Edition(before.number + 1, self._highest + 1, place)
        refused = await self._spread(edition)
        if refused is None:
            return edition.version
        await self._spread(Edition(edition.number + 1, before.version, before.folder))
        raise RolloutError(f"{place}: {refused}; version {before.version} goes on serving")

    async def _spread(self, edition: Edition) -> str | None:
        """None when all replicas have it; why one of them has not."""
        self._edition = edition
        self._highest = max(self._highest, edition.version)
        note = json.dumps({**asdict(edition), "highest": self._highest}).encode()
        try:
            await threaded(lambda: folder(self._run).put(_FILE, note), DISK_SECONDS, "disk")
        except OSError as error:
            raise RolloutError(f"{inside(self._run, _FILE)}: cannot write: {error.strerror or error}") from error
        deadline = time.monotonic() + PUBLISH_SECONDS
        waiting: list[str] = []
        while time.monotonic() < deadline:
            taken = await self._announce()
            live = await threaded(self._live, SERVE_SECONDS, "Ray Serve")
            have = {name: one for name, one in taken.items() if name in live and one.number >= edition.number}
            for name, one in have.items():
                if one.error is not None:
                    return f"replica {name} cannot use it: {one.error}"
            waiting = sorted(set(live) - set(have))
            if live and not waiting:
                return None
            await asyncio.sleep(LOOK_SECONDS)
        who = f"replica {waiting[0]} has it not" if waiting else "no replica has it"
        raise RolloutError(f"version {edition.version} of the weights: {who} after {PUBLISH_SECONDS:g} s")

    async def _announce(self) -> dict[str, Taken]:
        return await asyncio.wait_for(self._weights.announce.remote(self._edition), ANSWER_SECONDS)
