"""The prompts of one program: what was sampled for it stands in them as it was sampled.

Every call that has ended is a place from which a conversation can go on: its prompt's ids, the sampled ids, and then
only what the program said behind them (`ChatTemplate.continuation`). Places share what they have in common, so that a
conversation of many turns is held once.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from rollout.errors import UserError
from rollout.external.comparing import Key, answered, keys, opening_key
from rollout.gateway.scribe import as_read
from rollout.serving.capture import Called
from rollout.serving.written_calls import as_sampled
from rollout.template import ChatTemplate
from rollout.turn import Json, Message, ToolSpec


@dataclass(frozen=True, slots=True)
class _Place:
    """The end of a call: what its prompt and completion add to the place that it went on from."""

    before: _Place | None
    added: array[int]
    ended: bool
    """The sampled ids hold the end of turn."""

    def ids(self) -> array[int]:
        """All from the beginning."""
        pieces: list[array[int]] = []
        place: _Place | None = self
        while place is not None:
            pieces.append(place.added)
            place = place.before
        whole = array("i")
        for piece in reversed(pieces):
            whole.extend(piece)
        return whole


@dataclass(slots=True)
class Prompts:
    """All conversations of one program. Pure: it neither counts nor refuses."""

    template: ChatTemplate
    _places: dict[Key, _Place] = field(default_factory=dict[Key, _Place])
    _arguments: dict[str, str] = field(default_factory=dict[str, str])
    """Of all calls that were sampled, by their ids."""

    def prompt(
        self, messages: Sequence[Message], tools: tuple[ToolSpec, ...], variables: Mapping[str, Json]
    ) -> array[int]:
        """Ids of a prompt that shows these messages: the longest conversation that they begin with and that was sampled
        here, and what follows it; where they begin with none all of it is rendered anew, calls as they were written.

        Raises UserError when the template refuses the conversation.
        """
        template = self.template.using(variables) if variables else self.template
        place, told = self._longest(messages, tools, variables)
        if place is not None:
            with suppress(UserError):  # what cannot be put behind a turn can perhaps be shown as a whole
                following = template.continuation(as_read(template, messages[told:]), place.ended)
                ids = place.ids()
                ids.extend(following)
                return ids
        written = cast(Sequence[Message], as_sampled(messages, self._arguments))
        return array("i", template.opening(as_read(template, written), tools))

    def add(self, called: Called) -> None:
        """Conversations can go on from this call."""
        prompt, sampled = called.completion.prompt_ids or (), called.completion.ids or ()
        before, _ = self._longest(called.messages, called.tools, called.variables)
        added = array("i", prompt)
        if before is not None:
            held = before.ids()
            if added[: len(held)] == held:
                added = added[len(held) :]
            else:
                before = None
        added.extend(sampled)
        place = _Place(before, added, bool(sampled) and sampled[-1] in self.template.eos_ids)
        start = opening_key(called.tools, called.variables)
        told = keys(start, called.messages)
        for key in answered(told[-1][0] if told else start, called):
            self._places[key] = place
        self._arguments |= {part.call.id: part.call.arguments for part in called.segments if part.call is not None}

    def _longest(
        self, messages: Sequence[Mapping[str, Json]], tools: tuple[ToolSpec, ...], variables: Mapping[str, Json]
    ) -> tuple[_Place | None, int]:
        for key, told in reversed(keys(opening_key(tools, variables), messages)):
            if (place := self._places.get(key)) is not None:
                return place, told
        return None, 0
