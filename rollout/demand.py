"""How many groups may be begun ahead of a trainer, so that none is begun that would be too old when it is read.

A trainer reads batches of B groups and publishes a version after each. The oldest groups are read first, so of the
groups that are begun and not read yet the s-th waits for s // B further versions. It may wait for `max_behind` of
them, less what was read since the last version: the stock is at most (max_behind + 1) * B - read.
Counted from the start of a run that is AReaL's capacity (max_behind + version + 1) * B (arXiv 2505.24298, section 5.1);
counted from the last version it holds as well for trainers that read several batches a version, or none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Demand:
    """What a trainer has asked for and what is on the way to it, in groups. Nothing is begun before it first asks."""

    max_behind: int
    version: int = 0
    """Of the weights that the replicas have."""
    stock: int = 0
    """Groups that were begun, and neither read nor set aside."""
    closed: bool = False
    """Nothing may be begun: there are no weights to begin it with."""
    _waiting: int = 0
    _batch: int = 0
    _read: int = 0
    """Since the last version."""

    @property
    def limit(self) -> int:
        """Groups that may be in stock. What a trainer waits for is begun in any case."""
        return max(self._waiting, (self.max_behind + 1) * self._batch - self._read)

    @property
    def room(self) -> bool:
        """True when another group may be begun."""
        return not self.closed and self.stock < self.limit

    def begin(self) -> None:
        """A group was begun."""
        self.stock += 1

    def set_aside(self, groups: int) -> None:
        """Groups of the stock that will not be read: others may be begun in their place."""
        self.stock -= groups

    def ask(self, groups: int) -> None:
        """The trainer waits for so many."""
        self._waiting = groups
        self._batch = max(self._batch, groups)

    def withdraw(self) -> None:
        """The trainer waits no more."""
        self._waiting = 0

    def read(self, groups: int) -> None:
        """The trainer has got so many."""
        self.stock -= groups
        self._read += groups
        self._waiting = 0

    def publish(self, version: int) -> None:
        """The replicas have new weights. What was read for them tells how large a trainer's step is."""
        self._batch = self._read or self._batch
        self._read = 0
        self.version = version
