"""The seams: what an episode needs of the outside. Each has at most five methods and a real fake that ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rollout.trajectory import (
    Completion,
    Message,
    Prompt,
    Score,
    Segment,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
    Transcript,
)


class Policy(Protocol):
    """A model somewhere. Raises for anything that is not the model's own doing, ContextExceeded for a prompt that
    does not fit it."""

    async def complete(self, prompt: Prompt) -> Completion:
        """Samples one completion."""
        ...


@runtime_checkable
class Placing(Protocol):
    """A policy that keeps a place for the calls of a session."""

    def closed(self, session_id: str) -> None:
        """No further call of the session comes. Nothing for one that is not known."""
        ...


class Session(Protocol):
    """One seeded session of a resource. Idempotent close; the others raise ResourceDown when the host is gone."""

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        """Runs one tool. What the tool or its arguments did wrong is in the result.

        Beside it comes the session's state, of resources that give snapshots, unless another call is still running.
        """
        ...

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        """Judges the episode."""
        ...

    async def close(self) -> None:
        """Frees the session."""
        ...


@dataclass(frozen=True, slots=True)
class Seeded:
    """A fresh session, the conversation it opens with and the tools it offers."""

    session: Session
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    text_tool: str | None
    instructions: str | None


class Sessions(Protocol):
    """Where sessions come from: a resource in this process or a host elsewhere."""

    async def seed_session(self, task: Task, seed: int, seconds: float) -> Seeded:
        """A fresh session that lives at most `seconds`.

        Raises Unavailable when asking again may help. Cancelling it leaves no session open.
        """
        ...

    async def restore_session(self, task: Task, seed: int, snapshot: bytes, seconds: float) -> Seeded:
        """The same with a session that goes on from a snapshot. Raises NotRestored when none can be made from it."""
        ...


class Ledger(Protocol):
    """The record of one conversation, and the only author of its prompts."""

    def begin(self, messages: Sequence[Message], tools: tuple[ToolSpec, ...], reason: str) -> None:
        """Shows the policy these messages instead of all that was said: a new segment, and why it is one."""
        ...

    def extend(self, messages: Sequence[Message], tools: tuple[ToolSpec, ...]) -> None:
        """Appends messages the policy did not write."""
        ...

    def prompt(self) -> tuple[Sequence[int], Sequence[Message]]:
        """The next model call's prompt, as token ids (empty without a tokenizer) and as messages."""
        ...

    def record(self, completion: Completion) -> Recorded:
        """Takes a completion in and tells what it says."""
        ...

    def count(self, messages: Sequence[Message], tools: tuple[ToolSpec, ...]) -> int:
        """Tokens of a prompt that shows these messages; without a tokenizer about as many as the endpoint counts."""
        ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """A completion as the ledger understood it."""

    completion: Completion
    prompt_ids: Sequence[int] | None
    """What was appended since the last turn of the segment; the whole prompt at a new segment."""
    segments: tuple[Segment, ...]
    segment: int
    segment_break: str | None
    message: Message
