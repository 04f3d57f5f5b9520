"""The seam between an episode and a program that makes its own model calls: it is played instead of the turn loop.

    seed_session -> the program runs -> verify -> close

The turns are those calls, as whoever took them down has them; `rollout.external` is who does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from rollout.conduct import NOTHING, Ended
from rollout.protocols import Seeded
from rollout.trajectory import Lease, Message, StopReason, Turn


@dataclass(frozen=True, slots=True)
class Played:
    """What a program has done."""

    turns: tuple[Turn, ...] = ()
    messages: tuple[Message, ...] = ()
    opening: int = 0
    """How many of them there were before the policy's first turn."""
    rewards: tuple[float, ...] = ()
    """Step rewards of the environment, in order."""
    tool_seconds: float = 0.0
    """What the environment's tools took."""
    ended: Ended = NOTHING
    workspace: str | None = None
    """The folder it worked in, as it is left."""


class Program(Protocol):
    """One attempt of a program at an episode."""

    async def play(self, seeded: Seeded, seconds: float) -> StopReason:
        """Runs the program to its end, for `seconds` at most.

        Raises BoundaryError for what broke outside of program and policy. Nothing of it runs any more afterwards, also
        when this is cancelled.
        """
        ...

    def played(self) -> Played:
        """What it has done, however it ended."""
        ...


Programs = Callable[[Lease], AbstractAsyncContextManager[Program]]
"""What an attempt needs is there within the block, which is left when the episode was judged."""
