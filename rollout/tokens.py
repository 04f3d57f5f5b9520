"""The token ledger: what the policy was shown and what it sampled, in ids, once.

Within a segment the next prompt is always: ids so far + sampled ids + ids of what was appended. Sampled ids are
authoritative and never encoded again; text, reasoning and tool calls are read from them, not the other way round.
The rule is asserted at every call (design invariant 3).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.parsing import as_message, segments_of
from rollout.protocols import Recorded
from rollout.segments import Parser
from rollout.template import ChatTemplate
from rollout.trajectory import Completion, Message, ToolSpec

_CHARACTERS = 4.0
"""Characters for a token, until an endpoint has counted."""


@dataclass(slots=True)
class _Segment:
    """Numbers the segments of a conversation: one that has no turn is none."""

    number: int = 0
    begun: bool = False
    """It has a turn."""
    reason: str | None = None
    """Why it is not the one before, until its first turn has said so."""

    def begin(self, reason: str) -> None:
        if self.begun:
            self.number, self.begun = self.number + 1, False
        if self.number:
            self.reason = reason

    def turn(self) -> tuple[int, str | None]:
        reason, self.reason, self.begun = self.reason, None, True
        return self.number, reason


class TokenLedger:
    """A conversation with a policy that takes token ids. Nothing is ever rewritten: what is shown anew is a segment."""

    def __init__(self, template: ChatTemplate, parser: Parser) -> None:
        self._template = template
        self._parser = parser
        self._ids: array[int] = array("i")
        self._sealed: array[int] = array("i")
        """Prompt and completion of the last call: what the next prompt must start with."""
        self._ended = False
        self._opened = False
        self._turns = 0
        self._segment = _Segment()
        self._messages: list[Message] = []
        self._tools: tuple[ToolSpec, ...] = ()
        """What the policy may call: the arguments of some formats are read by it."""

    def begin(self, messages: Sequence[Message], tools: tuple[ToolSpec, ...], reason: str) -> None:
        """Shows the policy `messages` instead of all that was said: a new segment, and why.

        Raises UserError when the template cannot place them.
        """
        self._segment.begin(reason)
        self._messages, self._tools = list(messages), tools
        self._ids = array("i", self._template.opening(self._messages, tools))
        self._sealed, self._ended, self._opened = array("i"), False, True

    def extend(self, messages: Sequence[Message], tools: tuple[ToolSpec, ...]) -> None:
        """Appends messages the policy did not write. Raises UserError when the template cannot place them."""
        self._messages += messages
        self._tools = tools
        if self._opened and messages:
            self._ids.extend(self._template.continuation(messages, self._ended))
        elif not self._opened:
            self._ids = array("i", self._template.opening(self._messages, tools))
            self._opened = True

    def prompt(self) -> tuple[Sequence[int], Sequence[Message]]:
        """Ids of the next call, asserted to continue the last one."""
        assert self._ids[: len(self._sealed)] == self._sealed, "the prompt does not continue what was sampled"
        return self._ids[:], tuple(self._messages)

    def record(self, completion: Completion) -> Recorded:
        """Takes the sampled ids in. Raises AssertionError when the engine saw another prompt or lost a token."""
        assert completion.ids is not None, "a token ledger needs an engine that returns token ids"
        assert completion.prompt_tokens in (None, len(self._ids)), "the engine read another prompt than it was given"
        _assert_counts(completion)
        appended = self._ids[len(self._sealed) :]
        segments = self._parser(self._template.decode(completion.ids), self._turns, tools=self._tools)
        self._ids.extend(completion.ids)
        self._sealed = self._ids[:]
        self._ended = len(completion.ids) > 0 and completion.ids[-1] in self._template.eos_ids
        self._turns += 1
        message = as_message(segments)
        self._messages.append(message)
        return Recorded(completion, appended, segments, *self._segment.turn(), message)

    def count(self, messages: Sequence[Message], tools: tuple[ToolSpec, ...]) -> int:
        """Tokens of a prompt that shows these messages."""
        return len(self._template.opening(messages, tools))


class MessageLedger:
    """A conversation with an endpoint that takes messages and renders them itself.

    Where the endpoint tells its prompt ids, each turn either extends the last one exactly or opens a new segment
    and says so; where it does not, the row has no ids.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._sealed: array[int] | None = None
        self._first = True
        """The segment has no turn yet."""
        self._segment = _Segment()
        self._characters = _CHARACTERS
        """Of text and calls, for each token of a prompt."""

    def begin(self, messages: Sequence[Message], tools: tuple[ToolSpec, ...], reason: str) -> None:
        """Shows the policy `messages` instead of all that was said: a new segment, and why."""
        self._segment.begin(reason)
        self._messages, self._sealed, self._first = list(messages), None, True

    def extend(self, messages: Sequence[Message], tools: tuple[ToolSpec, ...]) -> None:
        """Appends messages the policy did not write."""
        self._messages += messages

    def prompt(self) -> tuple[Sequence[int], Sequence[Message]]:
        """No ids; all messages so far."""
        return (), tuple(self._messages)

    def record(self, completion: Completion) -> Recorded:
        """Takes the endpoint's message in, and its ids where it gives them."""
        message = completion.message
        assert message is not None, "a message ledger needs an endpoint that returns a message"
        _assert_counts(completion)
        if completion.prompt_tokens:
            self._characters = max(1.0, _length(self._messages) / completion.prompt_tokens)
        appended, broken = self._appended(completion)
        if broken is not None:
            self._segment.begin(broken)
        self._first = False
        self._messages.append(message)
        return Recorded(completion, appended, segments_of(message), *self._segment.turn(), message)

    def count(self, messages: Sequence[Message], tools: tuple[ToolSpec, ...]) -> int:
        """Tokens of a prompt that shows these messages, as the endpoint counted the last one for its length."""
        return round(_length(messages) / self._characters)

    def _appended(self, completion: Completion) -> tuple[Sequence[int] | None, str | None]:
        """What this turn's prompt adds to its segment, and why it opens a new one if it does."""
        sealed, first = self._sealed, self._first
        if completion.prompt_ids is None or completion.ids is None:
            self._sealed = None
            return None, None if sealed is None else "the endpoint gave no token ids"
        prompt = array("i", completion.prompt_ids)
        self._sealed = prompt + array("i", completion.ids)
        if sealed is None:
            return prompt, None if first else "the endpoint gave no token ids before"
        if prompt[: len(sealed)] == sealed:
            return prompt[len(sealed) :], None
        return prompt, "the endpoint rendered the history anew"


def _length(messages: Sequence[Message]) -> int:
    """Characters of messages, their calls included."""
    return len(json.dumps(messages, ensure_ascii=False))


def _assert_counts(completion: Completion) -> None:
    """One id and one logprob for each token the engine says it sampled, where it gives them."""
    if completion.ids is None:
        return
    assert completion.sampled_tokens in (None, len(completion.ids)), "the engine sampled another number of tokens"
    assert completion.logprobs is None or len(completion.logprobs) == len(completion.ids), (
        "logprobs and ids differ in length"
    )
