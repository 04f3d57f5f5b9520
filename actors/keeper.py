"""What the driver does with the run's table: commits, and merging of small files while the run goes on.

Both wait for a disk or an object store, so both run in threads; one lock keeps them one after the other where it
must be so: at the commit. Reading and writing the rows of a merge goes on beside the commits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deltalake.exceptions import DeltaError
from pyarrow import ArrowException

from rollout.compaction import due, merge_apart
from rollout.dataset import Committer, RowFile
from rollout.errors import describe
from rollout.sections import DatasetConfig
from rollout.thread import DISK_SECONDS, threaded

SWEEP_SECONDS = 600.0
"""How often replaced files and old entries of the log are looked for."""
LATER_SECONDS = 60.0
"""How long a merge that failed is left alone."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Keeper:
    """The table of a run in the hands of its driver."""

    committer: Committer
    config: DatasetConfig
    clock: Callable[[], float] = time.monotonic
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _unseen: int | None = None
    """Files committed since the table was last looked at; None before it was looked at."""
    _not_before: float = 0.0
    _next_sweep: float = 0.0

    async def commit(self, files: Sequence[RowFile]) -> None:
        """Makes files part of the table. Raises as Committer.commit does."""
        async with self._lock:
            await threaded(lambda: self.committer.commit(files), DISK_SECONDS, "disk")
        if self._unseen is not None:
            self._unseen += len(files)

    async def tidy(self, go_on: Callable[[], bool]) -> None:
        """One step of what is due: small files into one, or what nobody needs any more deleted; mostly nothing.

        A step that fails is logged and tried again later: the run does not depend on it. Raises Fenced when another
        driver has taken the run over.
        """
        if not self.config.compact_files or self.clock() < self._not_before:
            return
        try:
            if self._unseen is None or self._unseen >= self.config.compact_files // 2:
                await self._merge(go_on)
            elif self.clock() >= self._next_sweep:
                self._next_sweep = self.clock() + SWEEP_SECONDS
                await threaded(lambda: self.committer.sweep(self.config.keep_hours), DISK_SECONDS, "disk")
        except (OSError, ArrowException, DeltaError) as error:
            log.warning("small files stay for now: %s", describe(error))
            self._not_before = self.clock() + LATER_SECONDS

    async def _merge(self, go_on: Callable[[], bool]) -> None:
        async with self._lock:
            files = await threaded(self.committer.files, DISK_SECONDS, "disk")
            self._unseen = 0
        old = due(files, self.config.file_mib << 20, self.config.compact_files)
        if not old:
            return
        self._unseen = None  # there may be more
        new = await threaded(lambda: merge_apart(self.committer.folder, old, go_on), DISK_SECONDS, "disk")
        if new is not None:
            async with self._lock:
                await threaded(lambda: self.committer.replace(old, new), DISK_SECONDS, "disk")
