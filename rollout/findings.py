"""What a check of a dataset finds, and what it needs to know and keeps count of."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.trajectory import Limits


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that must hold and does not."""

    rule: str
    episode_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a run besides its rows; None for what is not."""

    run_id: str | None = None
    vocabulary: int | None = None
    """Token ids the model has."""
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What was looked at."""

    episodes: int = 0
    segments: int = 0
    """Of episodes with ids at every turn."""
    continued: int = 0
    """Segments of episodes whose prompts are together as long as the engine counted."""
    uncounted: int = 0
    """Segments whose engine counted no prompt tokens."""
    sampled: int = 0
    """Tokens the engine says it sampled in the episodes that have samples."""
    ones: int = 0
    """Ones in the loss masks of those samples."""

    def __add__(self, other: Checked) -> Checked:
        return Checked(
            self.episodes + other.episodes,
            self.segments + other.segments,
            self.continued + other.continued,
            self.uncounted + other.uncounted,
            self.sampled + other.sampled,
            self.ones + other.ones,
        )
