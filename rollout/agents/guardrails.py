"""Checks between inputs, outputs and the model, and around tool calls.

    def no_secrets(text):  # on `input` or `output`
        return Block("it asks for a password") if "password" in text else Pass()

    def only_reads(arguments, tool):  # on `tool_input`; on `tool_output` it is given text, and the tool's name
        return Pass() if tool != "bash" or arguments["command"].startswith("ls") else Retry("only ls is allowed")

Guardrails run in the order in which they are declared. Each sees what the one before it made of the value; the first
that blocks or asks for another try is the last. One that raises, gives no answer in time or answers with anything but
a verdict blocks, unless it is told to let pass or to fail the episode.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import PositiveFloat

from rollout.agents.calling import asked
from rollout.errors import BoundaryError
from rollout.references import load_function
from rollout.sections import Section
from rollout.trajectory import Failure, FailureKind

On = Literal["input", "output", "tool_input", "tool_output"]


class GuardrailConfig(Section):
    """One guardrail of an agent."""

    name: str
    at: On = "input"
    """What it checks: what the agent is asked, what it answers, what a tool is given, what a tool gave."""
    check: str
    """A function, `module:function` or `file.py:function`, plain or async, that returns a verdict."""
    timeout: PositiveFloat = 30.0
    """Seconds it may take."""
    on_error: Literal["block", "pass", "fail"] = "block"
    """What it counts as when it breaks: a verdict, or a failure of the episode, which is then tried again."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Block:
    """It goes no further: `reason` stands in its place."""

    reason: str


@dataclass(frozen=True, slots=True)
class Modify:
    """It goes on as `value`: text, or a tool's arguments as a dict."""

    value: Any


@dataclass(frozen=True, slots=True)
class Retry:
    """The policy is told `message` and may try again. Not for inputs, which it did not write."""

    message: str


Verdict = Pass | Block | Modify | Retry


@dataclass(frozen=True, slots=True)
class GuardrailEvent:
    """What one guardrail decided, for the row."""

    name: str
    on: On
    decision: Literal["pass", "block", "modify", "retry"]
    reason: str
    """Why it was blocked or is to be tried again; empty otherwise."""
    ms: float
    before: str | None = None
    """What a modified value was, as text or JSON."""
    call_id: str | None = None
    """The tool call it is about."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """What came through: `value` is as the guardrails left it, `verdict` the last one's word."""

    value: Any
    verdict: Pass | Block | Retry
    events: tuple[GuardrailEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A check and when it is made."""

    name: str
    check: Callable[..., Any]
    on: On = "input"
    seconds: float = 30.0
    on_error: Literal["block", "pass", "fail"] = "block"


@dataclass(frozen=True, slots=True)
class Guardrails:
    """The guardrails of an agent, in order."""

    each: tuple[Guardrail, ...]
    clock: Callable[[], float] = time.perf_counter
    _at: dict[On, tuple[Guardrail, ...]] = field(init=False, default_factory=dict[On, tuple[Guardrail, ...]])

    def __post_init__(self) -> None:
        for one in self.each:
            self._at[one.on] = (*self._at.get(one.on, ()), one)

    @staticmethod
    def of(configs: Sequence[GuardrailConfig], key: str = "agent.guardrails") -> Guardrails | None:
        """With their functions loaded; None when there are none. Raises UserError as `load_function` does."""
        each = (
            Guardrail(one.name, load_function(one.check, f"{key}.{one.name}.check"), one.at, one.timeout, one.on_error)
            for one in configs
        )
        return Guardrails(tuple(each)) if configs else None

    def on(self, on: On) -> bool:
        """Whether there is a guardrail there."""
        return on in self._at

    async def check(self, on: On, value: Any, tool: str | None = None, call_id: str | None = None) -> Guarded:
        """Asks the guardrails there, one after another. For those around tools, `tool` is the tool's name.

        Raises BoundaryError when one breaks that is to fail the episode.
        """
        events: list[GuardrailEvent] = []
        for one in self._at.get(on, ()):
            began = self.clock()
            verdict = await _verdict(one, value, tool)
            ms = (self.clock() - began) * 1000
            match verdict:
                case Pass():
                    events.append(GuardrailEvent(one.name, on, "pass", "", ms, call_id=call_id))
                case Modify(changed):
                    events.append(GuardrailEvent(one.name, on, "modify", "", ms, _text(value), call_id))
                    value = changed
                case Block(reason):
                    events.append(GuardrailEvent(one.name, on, "block", reason, ms, call_id=call_id))
                    return Guarded(value, verdict, tuple(events))
                case Retry(message):
                    events.append(GuardrailEvent(one.name, on, "retry", message, ms, call_id=call_id))
                    return Guarded(value, verdict, tuple(events))
        return Guarded(value, Pass(), tuple(events))


async def _verdict(guardrail: Guardrail, value: Any, tool: str | None) -> Verdict:
    where = f"guardrail {guardrail.name}"
    try:
        own = _own(value)
        given = (own,) if tool is None else (own, tool)
        answer = await asked(guardrail.check, given, guardrail.seconds, where)
        if (wrong := _wrong(answer, guardrail.on)) is not None:
            raise BoundaryError(Failure(FailureKind.AGENT, where, wrong))
    except BoundaryError as error:
        if guardrail.on_error == "fail":
            raise
        return Pass() if guardrail.on_error == "pass" else Block(f"Guardrail error: {error.failure.message}")
    return answer


def _own(value: Any) -> Any:
    """A copy of what is JSON: a check that changes what it is given changes nobody else's."""
    if isinstance(value, dict):
        return {key: _own(entry) for key, entry in cast(dict[str, Any], value).items()}
    return [_own(entry) for entry in cast(list[Any], value)] if isinstance(value, list) else value


def _wrong(answer: Any, on: On) -> str | None:
    """What is wrong with what a check returned."""
    if not isinstance(answer, Pass | Block | Modify | Retry):
        return f"expected Pass, Block, Modify or Retry, found {type(answer).__name__}"
    if isinstance(answer, Retry) and on == "input":
        return "an input cannot be tried again; expected Pass, Block or Modify"
    if not isinstance(answer, Modify):
        return None
    value: Any = answer.value
    if not isinstance(value, dict if on == "tool_input" else str):
        expected = "dict" if on == "tool_input" else "text"
        return f"expected Modify with a {expected}, found {type(value).__name__}"
    try:
        _text(value)
    except (TypeError, ValueError) as error:
        return f"expected Modify with a JSON object: {error}"
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
