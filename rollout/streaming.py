"""One model call as it is sampled: what a policy tells of it, and what is made of that.

    policy.stream -> Delta* -> Reader.feed -> events as they happen
                  -> Completion -> the ledger's segments -> Reader.finish -> the rest of the events

There is one generation. Its completion is the one that `complete` would have given, and the events are of what the
ledger records: what was told early is told once, what was not is told at the end. So a policy or a parser that gives
nothing on the way costs the listener its patience and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rollout.protocols import Policy, Recorded, Session
from rollout.trajectory import (
    Completion,
    FinishReason,
    Prompt,
    Score,
    Segment,
    ToolCall,
    ToolResult,
    ToolUse,
    Transcript,
)


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of a tool call, from an endpoint that reads them itself. What is None was not told."""

    place: int
    """Among the calls of the completion."""
    id: str | None = None
    name: str | None = None
    arguments: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What came of a completion since the delta before: ids where prompts are tokens, the rest where they are chat."""

    ids: Sequence[int] = ()
    reasoning: str = ""
    content: str = ""
    calls: tuple[CallDelta, ...] = ()


Heard = Callable[[Delta], None]
"""Is called at once and must not block."""


@runtime_checkable
class StreamingPolicy(Protocol):
    """A Policy that can also be listened to."""

    async def stream(self, prompt: Prompt, heard: Heard) -> Completion:
        """Samples one completion as `complete` does; all of it was `heard` when it returns.

        What was heard is what is returned: once something was, nothing is sampled anew, and a call that cannot go on
        raises ResourceDown.
        """
        ...


async def sampled(policy: Policy, prompt: Prompt, heard: Heard | None) -> Completion:
    """One completion, heard as it comes where somebody listens and the policy can be listened to."""
    if heard is not None and isinstance(policy, StreamingPolicy):
        return await policy.stream(prompt, heard)
    return await policy.complete(prompt)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More content. `place` numbers the stretches of a completion in the order in which they began."""

    place: int
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More reasoning."""

    place: int
    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The policy has begun to write a call."""

    place: int


@dataclass(frozen=True, slots=True)
class SegmentDone:
    """Reasoning or content is over. This is what it was: its kind can be another than that of its deltas, where
    reasoning was closed that had never been opened."""

    place: int
    segment: Segment


@dataclass(frozen=True, slots=True)
class CallComplete:
    """A call is whole. `sampling`: the policy may still be saying more behind it."""

    place: int
    call: ToolCall
    sampling: bool = True


@dataclass(frozen=True, slots=True)
class TurnDone:
    """The model call is over, and recorded as turn `turn`. What follows are the results of its calls."""

    turn: int
    finish_reason: FinishReason
    sampled_tokens: int


@dataclass(frozen=True, slots=True)
class CallResult:
    """A call has its result."""

    use: ToolUse


StreamEvent = TextDelta | ReasoningDelta | CallStarted | SegmentDone | CallComplete | TurnDone | CallResult
Hears = Callable[[StreamEvent], None]
"""Is told events as they happen; is called at once and must not block."""


def both(one: Hears, other: Hears) -> Hears:
    """Tells two who listen."""

    def hears(event: StreamEvent) -> None:
        one(event)
        other(event)

    return hears


class Reader(Protocol):
    """Makes events of one completion."""

    def feed(self, delta: Delta) -> Sequence[StreamEvent]:
        """What `delta` shows."""
        ...

    def finish(self, segments: Sequence[Segment]) -> Sequence[StreamEvent]:
        """What `feed` has not told of the completion as it was recorded; calls among it are not `sampling`."""
        ...


@dataclass(slots=True)
class Hearing:
    """One model call that is listened to."""

    reader: Reader
    hears: Hears

    def heard(self, delta: Delta) -> None:
        """More of it came."""
        for event in self.reader.feed(delta):
            self.hears(event)

    def end(self, turn: int, recorded: Recorded) -> None:
        """It is recorded."""
        for event in self.reader.finish(recorded.segments):
            self.hears(event)
        self.hears(TurnDone(turn, recorded.completion.finish_reason, recorded.completion.num_sampled))


@dataclass(frozen=True, slots=True)
class HeardSession:
    """A session whose results are told as soon as they are there."""

    inner: Session
    hears: Hears

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        """See Session."""
        result, snapshot = await self.inner.call(call, seconds)
        self.hears(CallResult(ToolUse(call, result)))
        return result, snapshot

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        """See Session."""
        return await self.inner.verify(transcript, seconds)

    async def close(self) -> None:
        """See Session."""
        await self.inner.close()
