"""Going on behind the turns that an earlier attempt has left.

The episode is played again from its record: the ledger takes the very ids that were sampled, tools are called again
(`replay`) or the session goes on from a snapshot and their answers are taken from the record. Either way the turn that
comes out must be the recorded one, so that nobody who reads the row can tell where it was broken off. The last turn may
be one whose calls waited for somebody: it was sampled, and its calls are made now. What counts as the same answer of a
tool is said here once, for `rollout.replaying` too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from rollout.conduct import Then
from rollout.errors import RolloutError
from rollout.saved import Saved
from rollout.trajectory import Completion, Prompt, Restores, ToolUse, Turn


class Diverged(RolloutError):
    """What was rebuilt is not what was recorded: the episode has to start again."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that a tool call gives otherwise now."""

    call: int
    """Its place among the calls of its turn."""
    what: str
    """`call`, `content`, `error`, `done`, `reward` or `skipped`."""
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"call {self.call}: {self.what} was {self.then!r}, is {self.now!r}"[:500]


RESULT = ("content", "error", "done", "reward", "skipped")
"""What is compared of a tool's result: all but its seconds."""


def differences(
    then: Sequence[ToolUse], now: Sequence[ToolUse], compared: Sequence[str] = RESULT
) -> Iterator[Difference]:
    """What differs between the recorded tool calls of a turn and those of now, in the order of the calls."""
    for place, (before, after) in enumerate(zip_longest(then, now)):
        if before is None or after is None or before.call != after.call:
            yield Difference(place, "call", before and before.call, after and after.call)
            continue
        for name in compared:
            if (old := getattr(before.result, name)) != (new := getattr(after.result, name)):
                yield Difference(place, name, old, new)


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

    def completion(self, prompt: Prompt) -> Completion | None:
        """What the policy said in a recorded turn. Raises Diverged when that was to another prompt."""
        if prompt.turn >= len(self.turns):
            return None
        saved = self.turns[prompt.turn]
        if prompt.turn == 0 and tuple(prompt.messages) != saved.opening:
            raise Diverged("the conversation opens otherwise")
        if not _ends_prompt(saved.turn, prompt.ids):
            raise Diverged(f"turn {prompt.turn}: its prompt is another")
        return saved.turn.completion

    def then(self, number: int) -> Then | None:
        """What became of the calls of a recorded turn; None where they had no results."""
        if number >= len(self.turns) or not self.turns[number].answered:
            return None
        saved = self.turns[number]
        return Then(saved.turn.tool_uses, saved.decided, self.replays)

    def checked(self, number: int, turn: Turn) -> Turn:
        """The recorded turn, with its times, in place of the one that was rebuilt from it. Raises Diverged."""
        recorded = self.turns[number].turn
        if turn.segments != recorded.segments:
            raise Diverged(f"turn {number}: what the policy said is read otherwise")
        if not self.turns[number].answered:
            return replace(recorded, tool_uses=turn.tool_uses)
        if (first := next(differences(recorded.tool_uses, turn.tool_uses), None)) is not None:
            raise Diverged(f"turn {number}: {first}")
        return recorded


def _ends_prompt(recorded: Turn, ids: Sequence[int]) -> bool:
    """A prompt of ids is the recorded one when it ends in what the turn added: what stands before was compared."""
    added, told = recorded.prompt_ids, recorded.completion.prompt_tokens
    if not ids or added is None:
        return True  # the endpoint renders the prompt; what it is made from is compared
    return list(ids[len(ids) - len(added) :]) == list(added) and told in (None, len(ids))
