"""One episode of a program: the scribe behind its token. It writes the prompts, holds the limits and keeps the calls.

A call takes its place (`call`) before it is sampled: one of the turns and some of the tokens that the episode may still
have, until it has ended. So calls at the same time stay within the limits together, and what an engine breaks is known
here, also when the program makes light of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rollout.errors import RolloutError, describe
from rollout.external.prompts import Prompts
from rollout.gateway.scribe import Room
from rollout.serving.capture import Called, Capture
from rollout.template import ChatTemplate
from rollout.trajectory import Failure, FailureKind, Json, Limits, Message, StopReason, ToolSpec, Turn
from rollout.wire.errors import Kind, Refused

Priced = Callable[[Sequence[Turn]], float | None]
_LIMITS = {
    StopReason.MAX_TURNS: "run.limits.max_turns ({limits.max_turns} model calls)",
    StopReason.MAX_TOKENS: "run.limits.max_tokens ({limits.max_tokens} sampled tokens)",
    StopReason.TIMEOUT: "its time",
    StopReason.COST: "cost.episode_usd",
    StopReason.ENVIRONMENT: "the end of its environment",
    StopReason.FAILED: "something that broke",
}
_BROKEN = frozenset({Kind.OVERLOADED, Kind.TIMEOUT, Kind.INTERNAL, Kind.RATE_LIMIT})
"""What is refused with these is not the program's doing."""


@dataclass(slots=True)
class CapturedEpisode:
    """See Scribe."""

    template: ChatTemplate
    limits: Limits
    ends: float
    """When no call may begin any more, by `clock`."""
    model: str = ""
    agent: str = "agent"
    context: int | None = None
    """Tokens that the model reaches."""
    trainable: bool = True
    priced: Priced | None = None
    """What calls cost, in USD,"""
    usd: float | None = None
    """and what all of them may cost."""
    clock: Callable[[], float] = time.monotonic
    stop: StopReason | None = None
    """Why calls are refused, once some are."""
    broken: Failure | None = None
    """What failed in the last call that ended, if that was not the program's doing."""
    full: bool = False
    """The last prompt did not fit the model."""
    answer: str = ""
    """What was said last outside reasoning and calls."""
    _prompts: Prompts = field(init=False)
    _capture: Capture = field(default_factory=Capture)
    _turns: int = 0
    _sampled: int = 0
    _calling: int = 0
    _reserved: int = 0
    _closed: bool = False
    _names: dict[str, str] = field(default_factory=dict[str, str])
    """What rows call the sessions within the program, by their ids."""

    def __post_init__(self) -> None:
        self._prompts = Prompts(self.template)

    def prompt(
        self, messages: Sequence[Message], tools: tuple[ToolSpec, ...], variables: Mapping[str, Json]
    ) -> Sequence[int]:
        """See Scribe."""
        self._check_open()
        ids = self._prompts.prompt(messages, tools, variables)
        self.full = self.context is not None and len(ids) >= self.context
        return ids

    @contextmanager
    def call(self, tokens: int | None) -> Generator[Room]:
        """See Scribe."""
        self._check_open()
        limits = self.limits
        seconds, left = self.ends - self.clock(), limits.max_tokens - self._sampled - self._reserved
        if self._turns + self._calling >= limits.max_turns:
            raise self.end(StopReason.MAX_TURNS)
        if left <= 0:
            raise self.end(StopReason.MAX_TOKENS)
        if seconds <= 0:
            raise self.end(StopReason.TIMEOUT)
        if self.usd is not None and self.priced is not None and (self.priced(self.turns) or 0.0) >= self.usd:
            raise self.end(StopReason.COST)
        most = min(left, limits.turn_tokens, left if tokens is None else tokens)
        self._calling, self._reserved = self._calling + 1, self._reserved + most
        try:
            yield Room(most, min(seconds, limits.turn_seconds))
        except RolloutError as error:
            self._note(error)
            raise
        finally:
            self._calling, self._reserved = self._calling - 1, self._reserved - most

    def keep(self, called: Called) -> None:
        """See Scribe. Sessions within the program have ids of its own; the first one is the agent, the others are
        numbered."""
        if self._closed:  # nobody will read it: the row is written
            return
        number = len(self._names) + 1
        who = self._names.setdefault(called.agent, self.agent if number == 1 else f"{self.agent}.{number}")
        called = replace(called, agent=who, trainable=self.trainable)
        self._turns += 1
        self._sampled += called.completion.num_sampled
        self.broken, self.full = None, False
        self._prompts.add(called)
        self._capture.add(called)
        if text := "".join(part.text for part in called.segments if part.kind == "content").strip():
            self.answer = text

    def end(self, stop: StopReason) -> Refused:
        """No further call may begin, and why; what to refuse one with."""
        if self.stop is None:
            self.stop = stop
        what = _LIMITS[self.stop].format(limits=self.limits)
        # 403: no client tries again, and none takes it for a prompt that is too long.
        return Refused(Kind.PERMISSION, f"the episode may make no more model calls: it has reached {what}")

    def close(self) -> None:
        """The program is gone: nothing is asked, nothing kept any more."""
        self._closed = True

    @property
    def called(self) -> bool:
        """Some call was made and answered."""
        return self._turns > 0

    @property
    def num_turns(self) -> int:
        """How many calls were kept."""
        return self._turns

    @property
    def opening(self) -> int:
        """How many messages there were before the first of them."""
        return self._capture.opening

    @property
    def turns(self) -> tuple[Turn, ...]:
        """As the row has them."""
        return self._capture.turns()

    @property
    def messages(self) -> tuple[Message, ...]:
        """As the row has them."""
        return self._capture.messages()

    def _check_open(self) -> None:
        if self._closed:
            raise Refused(Kind.PERMISSION, "the episode is over")
        if self.stop is not None:
            raise self.end(self.stop)

    def _note(self, error: RolloutError) -> None:
        """Whose doing it is that a call failed."""
        refused = error if isinstance(error, Refused) else None
        if refused is not None and refused.code == "context_length_exceeded":
            self.full = True
        elif self.clock() >= self.ends:
            self.end(StopReason.TIMEOUT)
        elif refused is None or refused.kind in _BROKEN:
            self.broken = Failure(FailureKind.MODEL, self.model, describe(error))
