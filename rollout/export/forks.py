"""Episodes of several samples, for trainers that have place for one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Literal

from rollout.errors import UserError
from rollout.export.sample import Sample

Forks = Literal["keep", "longest", "last", "error"]
"""keep: all siblings. longest: the one with the most sampled tokens, of equals the last. last: the last one."""
FORKS: tuple[Forks, ...] = ("keep", "longest", "last", "error")


class Chosen:
    """The samples that are left of each episode, and what it cost."""

    def __init__(self, samples: Iterator[Sample], forks: Forks, trainer: str) -> None:
        """Siblings stand together in `samples`. `trainer` is named where an episode is refused."""
        self._samples = samples
        self._forks: Forks = forks
        self._trainer = trainer
        self.samples = 0
        self.episodes = 0
        self.groups = 0
        self.forked = 0
        """Episodes that had more samples than one, where only one was left."""
        self.lost = 0
        """Sampled tokens of the siblings that were left out."""

    def __iter__(self) -> Iterator[Sample]:
        """A sample that is left for its episode weighs as much as the episode. Raises UserError for `error`."""
        for _, episode in groupby(self._samples, key=lambda sample: sample.episode_number):
            siblings = list(episode)
            self.groups = siblings[0].group_number + 1
            self.episodes += 1
            for sample in siblings if len(siblings) == 1 or self._forks == "keep" else [self._one(siblings)]:
                yield replace(sample, number=self.samples)
                self.samples += 1

    def _one(self, siblings: list[Sample]) -> Sample:
        if self._forks == "error":
            raise UserError(
                f"{siblings[0].episode_id}: {len(siblings)} samples, of which {self._trainer} takes one an episode: "
                "choose --forks longest or last, or --breaks realign or truncate"
            )
        kept = siblings[-1] if self._forks == "last" else max(siblings, key=lambda one: (one.sampled, one.segment))
        self.forked += 1
        self.lost += sum(sibling.sampled for sibling in siblings) - kept.sampled
        return replace(kept, segment=0, num_segments=1, weight=1.0)
