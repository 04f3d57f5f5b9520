"""Who makes the prompt of a call, and is told what came of it: the seam between the gateway and capture.

The gateway reads a request, applies the prefix rules and asks a scribe for token ids; when the call has ended it hands
the scribe what came of it. A scribe that remembers a conversation puts the ids that were sampled where the program
sends text, so that a prompt continues what the policy said, to the token. `Anew` remembers nothing.

    POST /v1/...              the gateway's own scribe
    POST /e/{token}/v1/...    the scribe that `Episodes.find(token)` gives; 404 where it gives none
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rollout.parsing import reformed
from rollout.serving.capture import Called
from rollout.template import ChatTemplate
from rollout.turn import Json, Message, ToolSpec


@dataclass(frozen=True, slots=True)
class Room:
    """What one call may take. None leaves it to the gateway."""

    tokens: int | None = None
    """Sampled tokens at most,"""
    seconds: float | None = None
    """and seconds until it is given up."""


class Scribe(Protocol):
    """The author of prompts, of one program or of all. No method may block: they run in the gateway's loop."""

    def prompt(
        self, messages: Sequence[Message], tools: tuple[ToolSpec, ...], variables: Mapping[str, Json]
    ) -> Sequence[int]:
        """Token ids of the prompt that shows these messages, ending with the header of the policy's turn.

        `variables` are the request's, for the chat template. The call need not be made: a prompt that does not fit is
        refused, tokens may only be counted. Raises Refused (`rollout.wire.errors`) when nothing may be asked any more,
        UserError when the template refuses the conversation.
        """
        ...

    def call(self, tokens: int | None) -> AbstractContextManager[Room]:
        """Room for one call that would sample so many tokens at most, held until the block is left.

        The model is asked in the block, and `keep` is called there: what is raised in it is what the call failed with.
        Raises Refused when nothing may be asked any more.
        """
        ...

    def keep(self, called: Called) -> None:
        """Takes a call in when it has ended. One that failed or was cancelled is not told; one that the program cut
        short is, as far as it came, only where the engine itself ended it."""
        ...


class Episodes(Protocol):
    """The episodes of programs, by the token that opens each."""

    def find(self, token: str) -> Scribe | None:
        """The scribe of the episode that this token opens; None where there is none. Called at every request."""
        ...


@dataclass(frozen=True, slots=True)
class Anew:
    """Renders every conversation anew, as it was sent, and keeps nothing."""

    template: ChatTemplate

    def prompt(
        self, messages: Sequence[Message], tools: tuple[ToolSpec, ...], variables: Mapping[str, Json]
    ) -> Sequence[int]:
        """See Scribe."""
        template = self.template.using(variables) if variables else self.template
        return template.opening(as_read(template, messages), tools)

    @contextmanager
    def call(self, tokens: int | None) -> Generator[Room]:
        """There is room for all."""
        yield Room(tokens)

    def keep(self, called: Called) -> None:
        """Nothing is kept."""


def as_read(template: ChatTemplate, messages: Sequence[Message]) -> list[Message]:
    """Messages with earlier reasoning in the form that the template reads."""
    return [reformed(message, template.reasoning_form) for message in messages]
