"""Going on behind the turns that an earlier attempt has left.

The episode is played again from its record: the ledger takes the very ids that were sampled, tools are called again
(`replay`) or the session goes on from a snapshot and their answers are taken from the record. Either way the turn that
comes out must be the recorded one, so that nobody who reads the row can tell where it was broken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rollout.errors import RolloutError
from rollout.saved import Saved
from rollout.tool_use import ToolsUsed
from rollout.trajectory import Completion, Message, Restores, ToolUse, Turn


class Diverged(RolloutError):
    """What was rebuilt is not what was recorded: the episode has to start again."""


@dataclass(frozen=True, slots=True)
class Record:
    """The turns an attempt goes on behind; the empty one is `Record()`."""

    turns: tuple[Saved, ...] = ()
    snapshot: bytes | None = None
    """State of the session after them; None where a fresh one is to be used."""
    replays: bool = True
    """Tools are called again."""

    @staticmethod
    def of(saved: Sequence[Saved], restores: Restores | None) -> Record:
        """As many of the saved turns as the resource can go on behind."""
        if restores is None:
            return Record()
        if restores == "replay":
            return Record(tuple(saved))
        kept = list(saved)
        while kept and kept[-1].snapshot is None and any(not use.result.skipped for use in kept[-1].turn.tool_uses):
            kept.pop()  # it changed the session, and how is not known
        snapshot = next((one.snapshot for one in reversed(kept) if one.snapshot is not None), None)
        return Record(tuple(kept), snapshot, replays=False)

    def completion(self, number: int) -> Completion | None:
        """What the policy said in a recorded turn."""
        return self.turns[number].turn.completion if number < len(self.turns) else None

    def used(self, number: int) -> ToolsUsed | None:
        """What the tools of a recorded turn answered; None where they are to be called."""
        if self.replays or number >= len(self.turns):
            return None
        return ToolsUsed(self.turns[number].turn.tool_uses)

    def checked(self, number: int, turn: Turn, opening: tuple[Message, ...]) -> Turn:
        """The recorded turn, with its times, in place of the one that was rebuilt from it. Raises Diverged."""
        saved = self.turns[number]
        if number == 0 and opening != saved.opening:
            raise Diverged("the conversation opens otherwise")
        for name, now, then in _compared(turn, saved.turn):
            if now != then:
                raise Diverged(f"turn {number}: {name} was {then!r}, is {now!r}"[:500])
        return saved.turn


def _compared(turn: Turn, recorded: Turn) -> list[tuple[str, object, object]]:
    """Everything but times, which the completion alone cannot settle."""
    return [
        ("its prompt", _listed(turn.prompt_ids), _listed(recorded.prompt_ids)),
        ("what it said", turn.segments, recorded.segments),
        ("its segment", (turn.segment, turn.segment_break), (recorded.segment, recorded.segment_break)),
        ("what the tools answered", _timeless(turn.tool_uses), _timeless(recorded.tool_uses)),
    ]


def _listed(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else list(ids)


def _timeless(uses: Sequence[ToolUse]) -> list[ToolUse]:
    return [replace(use, result=replace(use.result, seconds=0.0)) for use in uses]
