"""A resource for tests whose rewards are drawn: what an episode earns follows from its seed alone."""

from __future__ import annotations

from dataclasses import dataclass

from resources.counter import Count, Counter
from rollout.trajectory import Score, Task, Transcript


@dataclass(slots=True)
class Throw(Count):
    """A session and its luck."""

    lucky: bool = False


class Dice(Counter):
    """The counter, scored by chance; every third task is beyond all luck."""

    name = "dice"

    async def seed_session(self, task: Task, seed: int) -> Count:
        return Throw(int(task.data["target"]), lucky=bool(seed & 8) and task.index % 3 > 0)

    async def verify(self, session: Count, transcript: Transcript) -> Score:
        """1.0 or 0.0."""
        assert isinstance(session, Throw)
        return Score(float(session.lucky))
