"""The driver's side of the watchdog: passes on what runners tell, replaces what is to be replaced, writes the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from actors.runner import Report
from rollout.tally import Tally
from rollout.waits import HERE
from rollout.watch import Bounds, Mend, Outlook, Watchdog

_DRIVER = "driver"

log = logging.getLogger(__name__)


async def leave_alone(mend: Mend) -> str | None:
    """For jobs whose parts are not ours to replace."""
    return None


def patient() -> Watchdog:
    """A watchdog for runs that somebody else watches: it names what is slow and ends nothing."""
    return Watchdog(Bounds(stuck=float("inf")), time.monotonic())


@dataclass(slots=True)
class Watch:
    """Looks after one run."""

    dog: Watchdog = field(default_factory=patient)
    mend: Callable[[Mend], Awaitable[str | None]] = leave_alone
    """Replaces a part and says what was ended; None when that was not necessary."""
    _mending: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    _named: str | None = None

    def told(self, runner: str, report: Report) -> None:
        """A runner has reported."""
        if report.sight is not None:
            self.dog.see(runner, report.sight, time.monotonic())
        if _ended_well(report.tally):
            self.dog.ended(time.monotonic())

    def lost(self, runner: str) -> None:
        """A runner reports no more."""
        self.dog.forget(runner)
        HERE.forget(runner)

    def look(self) -> Outlook:
        """What the run waits for now. Starts to replace what is to be replaced; that goes on by itself."""
        self.dog.see(_DRIVER, HERE.sight(), time.monotonic())
        outlook = self.dog.look(time.monotonic())
        subject = outlook.waiting.partition(":")[0] if outlook.waiting else None
        if subject != self._named:
            log.info("waiting for %s", outlook.waiting) if subject else log.info("%s: waited for no more", self._named)
            self._named = subject
        for mend in outlook.mend:
            log.warning("%s; replacing it", mend.why)
            task = asyncio.create_task(self._replace(mend))
            self._mending.add(task)
            task.add_done_callback(self._mending.discard)
        return outlook

    async def _replace(self, mend: Mend) -> None:
        if (ended := await self.mend(mend)) is not None:
            log.warning("%s: %s was ended, another takes its place", mend.part, ended)
        else:
            log.warning("%s: left as it is: it answers, or it is starting", mend.part)
            self.dog.well(mend.part, time.monotonic())


def _ended_well(tally: Tally) -> bool:
    return tally.episodes > tally.failed
