"""A model call made: what is sampled, read as it comes, in the events that all three APIs are written from.

    Begun, the events of the completion's parts ->  hears
    Finished                                    ->  returned, with the ids that were sampled

One machine reads the completion, whether somebody listens or not, and of the text the same: so a reply that is streamed
is the reply that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rollout.deadlines import deadline
from rollout.errors import BoundaryError, ContextExceeded, ResourceDown
from rollout.gateway.asking import Call
from rollout.gateway.scribe import Room
from rollout.gateway.served import Served
from rollout.gateway.stops import Stops
from rollout.parsing import Event as Read
from rollout.parsing import Machine, as_segments
from rollout.serving.capture import Called
from rollout.soundness import check_completion
from rollout.stream_reading import Detokenizer
from rollout.streaming import Delta, StreamingPolicy
from rollout.template import ChatTemplate
from rollout.turn import Completion, FinishReason, Segment
from rollout.wire.errors import Kind, Refused
from rollout.wire.reply import Begun, Event, Finished, Usage

Hears = Callable[[Event], None]
"""Is told events as they happen; is called at once and must not block."""

_RETRY_SECONDS = 1.0
"""When asking again may help: a replica is replaced in about so long."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How a call ended."""

    finished: Finished
    ids: Sequence[int]
    """What was sampled."""


async def answer(served: Served, call: Call, hears: Hears, listens: bool) -> Answered:
    """Makes the call and tells all that comes of it; `listens` when it is to be told as it comes.

    Raises Refused when there is no room for it, when the model gives no answer within the prompt's seconds, or none at
    all.
    """
    with call.whose.scribe.call(call.prompt.max_tokens) as room:
        return await _answer(served, _within(call, room), hears, listens)


def _within(call: Call, room: Room) -> Call:
    prompt = call.prompt
    tokens = prompt.max_tokens if room.tokens is None else room.tokens
    seconds = prompt.seconds if room.seconds is None else room.seconds
    within = replace(prompt, max_tokens=min(prompt.max_tokens, tokens), seconds=min(prompt.seconds, seconds))
    return replace(call, prompt=within)


async def _answer(served: Served, call: Call, hears: Hears, listens: bool) -> Answered:
    prompt, policy = call.prompt, served.policy
    began = time.monotonic()
    hears(Begun(len(prompt.ids)))
    reader = _Reader(served.template, _machine(served, call), prompt.sampling.stop, hears)
    try:
        async with deadline(prompt.seconds):
            if listens and isinstance(policy, StreamingPolicy):
                completion = await policy.stream(prompt, reader.heard)
            else:
                completion = await policy.complete(prompt)
        check_completion(prompt, completion, served.vocabulary)
    except (ContextExceeded, ResourceDown, BoundaryError, TimeoutError) as error:
        raise refusal(error, prompt.seconds) from error
    if completion.finish_reason is FinishReason.ABORT:
        raise Refused(Kind.OVERLOADED, "the model gave the request up", retry_after=_RETRY_SECONDS)
    text = reader.finish(completion.ids or ())
    segments = reader.segments
    if segments is None:  # told piece by piece
        machine = _machine(served, call)
        segments = as_segments((*machine.feed(text), *machine.finish()))
    if call.whose.scribe is not served.anew:
        call.whose.scribe.keep(_called(call, completion, segments, time.monotonic() - began))
    finished = _finished(served.template, completion, segments, len(prompt.ids), reader.stop)
    return Answered(finished, completion.ids or ())


def refusal(error: Exception, seconds: float) -> Refused:
    """What a client is told of a model call that failed."""
    if isinstance(error, ContextExceeded):
        return Refused(Kind.INVALID, f"prompt is too long: {error}", "messages", "context_length_exceeded")
    if isinstance(error, TimeoutError):
        return Refused(Kind.TIMEOUT, f"no answer within {seconds:g} s")
    return Refused(Kind.OVERLOADED, f"the model cannot be reached: {error}", retry_after=_RETRY_SECONDS)


class _Reader:
    """Makes events of the ids of one completion."""

    def __init__(self, template: ChatTemplate, machine: Machine, stop: tuple[str, ...], hears: Hears) -> None:
        self._template = template
        self._detokenizer = Detokenizer(template)
        self._machine = machine
        self._stops = Stops(stop)
        self._hears = hears
        self._told = 0
        """Characters that were decoded on the way."""

    @property
    def stop(self) -> str | None:
        """The stop that was met."""
        return self._stops.found

    segments: tuple[Segment, ...] | None = None
    """Those of a completion that came whole."""

    def heard(self, delta: Delta) -> None:
        """More ids came."""
        if text := self._detokenizer.feed(delta.ids):
            self._told += len(text)
            if text := self._stops.feed(text):
                for event in self._machine.feed(text):
                    self._hears(event)

    def finish(self, ids: Sequence[int]) -> str:
        """Tells the rest of a completion, which has these ids; its text up to the stop that was met."""
        whole = self._template.decode(ids)
        rest = self._stops.feed(whole[self._told :]) + self._stops.finish()
        events: tuple[Read, ...] = (*self._machine.feed(rest), *self._machine.finish())
        if not self._told:
            self.segments = as_segments(events)
        for event in events:
            self._hears(event)
        if self._stops.found is None:
            return whole
        again = Stops((self._stops.found,))
        return again.feed(whole)


def _machine(served: Served, call: Call) -> Machine:
    return served.machine(call.turn, call.prompt.tools, call.in_reasoning)


def _called(call: Call, completion: Completion, segments: tuple[Segment, ...], seconds: float) -> Called:
    hints, prompt = call.whose.hints, call.prompt
    return Called(
        messages=prompt.messages,
        completion=replace(completion, prompt_ids=prompt.ids),
        segments=segments,
        agent=hints.session or "agent",
        compaction=hints.compaction,
        sampling=prompt.sampling,
        seconds=seconds,
        constrained=prompt.extras.grammar is not None,
        tools=prompt.tools,
        variables=call.asked.template_variables,
    )


def _finished(
    template: ChatTemplate, completion: Completion, segments: Sequence[Segment], prompt: int, stop: str | None
) -> Finished:
    """The end of a reply. Its tokens of reasoning are those that the text of it makes by itself."""
    sampled = completion.num_sampled
    thought = sum(len(template.encode(part.text)) for part in segments if part.kind == "reasoning")
    usage = Usage(prompt, completion.cached_tokens or 0, sampled, min(thought, sampled))
    return Finished(completion.finish_reason if stop is None else FinishReason.STOP, usage, stop)
