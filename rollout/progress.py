"""Which samples are done, in memory that follows what is in flight and not how many there have been."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Done:
    """A set of sample numbers (task index x samples per task + sample index) as sorted disjoint ranges.

    Samples are handed out in order, so what is done is one long range and a few beyond it.
    """

    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    """Exclusive."""

    @staticmethod
    def of(numbers: npt.NDArray[np.int64]) -> Done:
        """From numbers in any order, repeated or not."""
        if not len(numbers):
            return Done()
        unique = np.unique(numbers)
        cuts = np.flatnonzero(np.diff(unique) > 1)
        starts = np.concatenate(([0], cuts + 1))
        ends = np.concatenate((cuts, [len(unique) - 1]))
        return Done(tuple(unique[starts].tolist()), tuple((unique[ends] + 1).tolist()))

    def __or__(self, other: Done) -> Done:
        """What is in either; ranges that touch become one."""
        if not self.starts or not other.starts:
            return self if self.starts else other
        starts = np.array(self.starts + other.starts, dtype=np.int64)
        order = np.argsort(starts, kind="stable")
        starts = starts[order]
        reach = np.maximum.accumulate(np.array(self.ends + other.ends, dtype=np.int64)[order])
        opens = np.concatenate(([True], starts[1:] > reach[:-1]))
        closes = np.concatenate((opens[1:], [True]))
        return Done(tuple(starts[opens].tolist()), tuple(reach[closes].tolist()))

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self.starts, number) - 1
        return at >= 0 and number < self.ends[at]

    def __len__(self) -> int:
        return sum(self.ends) - sum(self.starts)
