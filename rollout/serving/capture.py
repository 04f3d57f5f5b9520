"""The model calls of a program that is not ours, as the turns of an episode.

All that a program asks under one episode's token belongs to that episode, whoever of its agents asks and in whatever
order. A call goes on in a segment when its prompt is, to the last token, what the segment has already and something
more; otherwise it begins a segment of its own and says why. So a summary of the conversation, an agent below another
and a history that is told anew are segments, and nothing is cut or rendered again: the rule of `rollout.tokens`, with
as many segments open as the program has begun.

Rows have the turns of a segment beside each other, in the order of the segments; within one they are in that of time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rollout.conduct import answer
from rollout.parsing import as_message, reformed
from rollout.serving.prefixes import Entry
from rollout.tool_use import skipped
from rollout.trajectory import (
    Completion,
    Json,
    Message,
    Sampling,
    Segment,
    ToolResult,
    ToolSpec,
    ToolUse,
    Turn,
)

UNTOLD = "the program never told what it answered"
"""Why a call of a program has no result that anybody has seen."""


@dataclass(frozen=True, slots=True)
class Called:
    """One model call of a program, with what came of it."""

    messages: Sequence[Entry]
    """What it asked, as it was rendered."""
    completion: Completion
    """With the ids of its prompt."""
    segments: tuple[Segment, ...]
    """What was sampled; calls have the ids that the program was told."""
    agent: str = "agent"
    """Who asks: the session within the program."""
    compaction: bool = False
    """It sums up a conversation."""
    sampling: Sampling = field(default_factory=Sampling)
    seconds: float = 0.0
    trainable: bool = True
    constrained: bool = False
    """A grammar left only some tokens to be drawn."""
    tools: tuple[ToolSpec, ...] = ()
    """What it might call,"""
    variables: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """and those of its chat template: with the messages, all that its prompt was made of."""


@dataclass(slots=True)
class _Open:
    """A segment: what the next prompt has to begin with, and what it has so far."""

    sealed: array[int]
    opening: tuple[Message, ...]
    turns: list[Turn]
    told: list[tuple[Message, ...]]
    """What the program said behind each turn but the last, beside the results of its calls."""
    last_prompt: array[int]


class Capture:
    """One episode of a program. `add` its calls as they end; `turns` and `messages` are those of its row."""

    def __init__(self) -> None:
        self._segments: list[_Open] = []

    def add(self, call: Called) -> int:
        """Takes a call in and tells the number of its segment.

        Raises AssertionError for a completion without the ids of its prompt and of what was sampled, or with more or
        fewer logprobs.
        """
        completion = call.completion
        assert completion.prompt_ids is not None, "a capture needs an engine that tells the ids of its prompts"
        assert completion.ids is not None, "a capture needs an engine that returns token ids"
        assert completion.logprobs is None or len(completion.logprobs) == len(completion.ids), "one logprob an id"
        assert completion.sampled_tokens in (None, len(completion.ids)), "the engine sampled another number of tokens"
        prompt = array("i", completion.prompt_ids)
        number = self._continued(prompt)
        if number is None:
            number = len(self._segments)
            reason = self._reason(prompt, call) if self._segments else None
            opening = tuple(_plain(call.messages, all_roles=not number))
            self._segments.append(_Open(array("i"), opening, [], [], prompt))
        else:
            reason = None
            self._answer(self._segments[number], call.messages)
        segment = self._segments[number]
        appended = prompt[len(segment.sealed) :]
        segment.turns.append(_turn(call, number, appended, reason))
        segment.sealed, segment.last_prompt = prompt + array("i", completion.ids), prompt
        return number

    @property
    def opening(self) -> int:
        """How many of the messages were there before the first call."""
        return len(self._segments[0].opening) if self._segments else 0

    def turns(self) -> tuple[Turn, ...]:
        """All turns; calls whose results the program never told have one that says so."""
        return tuple(_whole(turn) for segment in self._segments for turn in segment.turns)

    def messages(self) -> tuple[Message, ...]:
        """The conversation as a person reads it. A segment begins with what the program said in it, without the
        history that it told again."""
        said: list[Message] = []
        for segment in self._segments:
            said += segment.opening
            for number, turn in enumerate(map(_whole, segment.turns)):
                said.append(as_message(turn.segments))
                said += [answer(use) for use in turn.tool_uses]
                said += segment.told[number] if number < len(segment.told) else ()
        return tuple(said)

    def _continued(self, prompt: array[int]) -> int | None:
        """The segment that the prompt continues; the longest, should it continue several."""
        fits = [
            (len(segment.sealed), number)
            for number, segment in enumerate(self._segments)
            if prompt[: len(segment.sealed)] == segment.sealed
        ]
        return max(fits)[1] if fits else None

    def _reason(self, prompt: array[int], call: Called) -> str:
        if call.compaction:
            return "the program sums up the conversation"
        if all(turn.agent != call.agent for segment in self._segments for turn in segment.turns):
            return f"another agent of the program: {call.agent}"
        if any(prompt == segment.last_prompt for segment in self._segments):
            return "the program asked the same again"
        return "the program told the history anew"

    def _answer(self, segment: _Open, messages: Sequence[Entry]) -> None:
        """Takes the results of the last turn's calls from what the program says behind it, and all else it says."""
        spoken = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        behind = messages[spoken[-1] + 1 :] if spoken else ()
        results = {message.get("tool_call_id"): _text(message) for message in behind if message["role"] == "tool"}
        last = segment.turns[-1]
        calls = [part.call for part in last.segments if part.call is not None]
        uses = tuple(ToolUse(call, ToolResult(results[call.id])) for call in calls if call.id in results)
        segment.turns[-1] = replace(last, tool_uses=uses)
        segment.told.append(tuple(_plain(behind, all_roles=False)))


def _turn(call: Called, segment: int, appended: array[int], reason: str | None) -> Turn:
    prompt_tokens = len(call.completion.prompt_ids or ())
    return Turn(
        agent=call.agent,
        segment=segment,
        prompt_ids=appended,
        completion=replace(call.completion, prompt_tokens=prompt_tokens, prompt_ids=None),  # which `appended` holds
        segments=call.segments,
        segment_break=reason,
        sampling=call.sampling,
        model_seconds=call.seconds,
        constrained=call.constrained,
        trainable=call.trainable,
    )


def _whole(turn: Turn) -> Turn:
    """The turn with one result a call, in the order of the calls."""
    told: Mapping[str, ToolUse] = {use.call.id: use for use in turn.tool_uses}
    calls = [part.call for part in turn.segments if part.call is not None]
    uses = tuple(told.get(call.id, ToolUse(call, skipped(UNTOLD))) for call in calls)
    return replace(turn, tool_uses=uses)


def _plain(messages: Iterable[Entry], all_roles: bool) -> Iterable[Message]:
    """Messages as rows hold them; without `all_roles` only those that are not the policy's nor answers to it."""
    for message in messages:
        if not all_roles and message["role"] in ("assistant", "tool"):
            continue
        plain: Message = {"role": message["role"], "content": _text(message)}
        for key in ("reasoning_content", "tool_calls", "tool_call_id", "name"):
            if message.get(key):
                plain[key] = message[key]
        yield reformed(plain, "text")


def _text(message: Entry) -> str:
    """The text of a content, whose parts may be several."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")
