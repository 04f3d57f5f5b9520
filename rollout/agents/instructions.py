"""What an agent is told before anything else: instructions, then its skills, then what it remembers.

Instructions are text that stands as it is, a template that is filled in (jinja2, sandboxed as chat templates are), or
what a function gives. A template's values are data: nothing in them is read as a template. What is rendered later in
a run may differ from what the prompt opened with, and then opens a new segment; so they are rendered once a rollout
unless the job says otherwise, and the digest tells whether they are the same.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self, cast

from jinja2 import StrictUndefined, Template, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import model_validator

from rollout.errors import UserError, boundary
from rollout.references import load_function
from rollout.sections import Section
from rollout.thread import threaded
from rollout.trajectory import FailureKind, Json, Message, Task

Scope = Literal["rollout", "run"]


class InstructionsSource(Section):
    """Instructions that are made for each rollout. Exactly one of the two."""

    template: str | None = None
    """Text with {{ task.data.city }}, {{ session.state.x }}, {{ user.name }}, {{ agent }} and {{ now }}."""
    ref: str | None = None
    """`module:function` or `file.py:function`: takes the Facts, gives the text; may be a coroutine."""

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if (self.template is None) == (self.ref is None):
            raise ValueError("expected either template or ref")
        return self


class InstructionsConfig(Section):
    """What the system message begins with."""

    instructions: str | InstructionsSource | None = None
    """Text as it is, {template: ...} or {ref: module:function}; the resource's own when not given."""
    instructions_scope: Scope = "rollout"
    """How often they are rendered: once a `rollout`, or for every `run` of an agent in it."""

    def loaded(self, key: str) -> Instructions | None:
        """As a run takes them; None leaves it to the resource. Raises UserError that begins with `key`, the section's
        place, for a template that cannot be read and a function that is not there."""
        given = self.instructions
        if given is None:
            return None
        if isinstance(given, str):
            return Instructions(given, self.instructions_scope)
        if given.template is not None:
            return Instructions(_template(given.template, f"{key}.instructions.template"), self.instructions_scope)
        assert given.ref is not None, "it was validated"
        return Instructions(load_function(given.ref, f"{key}.instructions.ref"), self.instructions_scope)


@dataclass(frozen=True, slots=True)
class Facts:
    """What instructions may speak of."""

    task: Task
    agent: str
    now: datetime
    session: Mapping[str, Json] | None = None
    """The conversation's session: its id and its `state`; None outside of one."""
    user: Mapping[str, Json] = field(default_factory=dict[str, Json])


@dataclass(frozen=True, slots=True)
class Instructions:
    """Text, a template, or a function of Facts."""

    source: str | Template | Callable[[Facts], Any]
    scope: Scope = "rollout"

    async def rendered(self, facts: Facts, earlier: str | None, seconds: float) -> str:
        """The text for one run; `earlier` is what this rollout's first run got, None in the first.

        Raises BoundaryError of kind seed when a placeholder has no value, when the function raises, gives no text or
        has none after `seconds`.
        """
        if earlier is not None and self.scope == "rollout":
            return earlier
        async with boundary(FailureKind.SEED, "instructions", seconds):
            if isinstance(self.source, Template):
                values = {"task": facts.task, "agent": facts.agent, "now": facts.now}
                return self.source.render(values, session=facts.session, user=facts.user)
            if isinstance(self.source, str):
                return self.source
            return await _called(self.source, facts, seconds)
        raise AssertionError("a boundary swallows nothing")


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """The parts of the system message, in the order that they stand in it. Empty parts are left out."""

    instructions: str = ""
    skills: str = ""
    memory: str = ""
    output: str = ""
    """The form of the answer where no tool shows it: `Parsing.hint`."""

    @property
    def text(self) -> str:
        """All parts, an empty line between two."""
        parts = (self.instructions, self.skills, self.memory, self.output)
        return "\n\n".join(part for part in parts if part.strip())

    @property
    def messages(self) -> tuple[Message, ...]:
        """The system message, or none when there is nothing to say."""
        return ({"role": "system", "content": text},) if (text := self.text) else ()

    @property
    def digest(self) -> str:
        """SHA-256 of the text in hex: the same digest, the same bytes, the same segment."""
        return digest(self.text)


def digest(text: str) -> str:
    """SHA-256 in hex. Half a surrogate pair, which JSON can hold, counts too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _template(source: str, key: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise UserError(f"{key}: line {error.lineno}: {error.message}") from error


async def _called(function: Callable[[Facts], Any], facts: Facts, seconds: float) -> str:
    """A function may block, so it has a thread of its own; a coroutine function stays on the loop."""
    if inspect.iscoroutinefunction(function):
        text: object = await function(facts)
    else:
        text = await threaded(lambda: cast(object, function(facts)), seconds, "instructions")
    if not isinstance(text, str):
        raise TypeError(f"expected text, the function gave {type(text).__name__}")
    return text
