"""Structured output: how an answer of a given form is asked for, read, and asked for again.

A state machine without IO. `Parsing.ask` says what a model call needs beside its messages, `Parsing.read` takes what
the model said. Three modes:

- `tool`: the policy gets one more tool, and its call to that tool is the answer.
- `native`: the engine samples under the schema's grammar. A grammar leaves no room for tool calls, so a policy with
  tools is free until it answers; an answer that happens to fit is taken, after any other it is asked for under the
  grammar, tools off.
- `two_phase`: the policy works until it calls no tool any more, then one more call extracts the answer: the tool
  forced, or the grammar where prompts are tokens. Without tools there is only that call.

Every failed attempt stays in the conversation, so the prompt is only ever extended; the state says which turns they
are. A grammar changes the distribution that tokens are drawn from: `Ask.constrained` goes on the record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from rollout.agents.output_schema import OutputSchema, load_schema
from rollout.agents.replies import answered, refused, skipped, tool_messages
from rollout.sections import Section
from rollout.trajectory import Json, Message, ToolCall, ToolSpec, ToolUse

FINAL_TOOL = "final_answer"
"""The tool whose call is the answer."""
Mode = Literal["tool", "native", "two_phase"]


class OutputConfig(Section):
    """What form an agent's answer has."""

    output_schema: str | dict[str, Any] | None = None
    """A pydantic model, dataclass or TypedDict as `module:Class` or `file.py:Class`, a JSON schema, or a file with one
    (.json, .yaml); answers are free text when not given."""
    output_mode: Mode = "tool"
    """Asked for as a `tool` call, under a grammar (`native`), or by one more call at the end (`two_phase`)."""
    max_parse_retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts after an answer that is not valid."""
    train_failed_parses: bool = True
    """Whether the tokens of attempts that failed are trained on."""
    parse_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the reward for each attempt that failed."""

    def form(self, key: str) -> Output | None:
        """The form, loaded; None for free text. Raises UserError that begins with `key`, the section's place."""
        if self.output_schema is None:
            return None
        schema = load_schema(self.output_schema, f"{key}.output_schema")
        return Output(schema, self.output_mode, self.max_parse_retries, self.train_failed_parses, self.parse_penalty)


@dataclass(frozen=True, slots=True)
class Output:
    """The form of an agent's answer and how it is insisted on."""

    schema: OutputSchema
    mode: Mode = "tool"
    max_parse_retries: int = 2
    train_failed_parses: bool = True
    parse_penalty: float = 0.0

    @property
    def tool(self) -> ToolSpec:
        """The tool whose call is the answer."""
        description = "Gives the final answer and ends the work. Call it once, when everything else is done."
        return ToolSpec(FINAL_TOOL, str(self.schema.schema.get("description") or description), self.schema.schema)

    @property
    def hint(self) -> str:
        """The form in words, for a policy that has no tool which shows it."""
        schema = json.dumps(self.schema.schema, ensure_ascii=False)
        return f"Give the result as one JSON object that fits this JSON schema, and nothing else:\n{schema}"


@dataclass(frozen=True, slots=True)
class Ask:
    """What one model call needs for the sake of its answer's form."""

    tools: tuple[ToolSpec, ...]
    body: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Goes into the body of a request to /chat/completions."""
    structured_outputs: Mapping[str, Json] | None = None
    """Where prompts are tokens: arguments of vLLM's StructuredOutputsParams, or this key of a body to /completions."""

    @property
    def constrained(self) -> bool:
        """Tokens are not drawn from the policy's own distribution, but from what a grammar leaves of it."""
        return self.structured_outputs is not None


@dataclass(frozen=True, slots=True)
class ParseError:
    """An attempt that failed: in which turn, the how manieth it was (from 1), and everything that was wrong."""

    turn: int
    attempt: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What became of a turn: the answer's `value`, something to `ask`, or a `parse_error` that ends the run."""

    kind: Literal["value", "ask", "parse_error"]
    parsing: Parsing
    """The state from here on."""
    value: Json = None
    uses: tuple[ToolUse, ...] = ()
    """A result for every call of the turn: none of them goes to the environment."""
    messages: tuple[Message, ...] = ()
    """What the policy is told next; not sampled, so masked."""


@dataclass(frozen=True, slots=True)
class Parsing:
    """Where a run stands on the way to its answer. `tools` are the agent's own."""

    output: Output
    tools: tuple[ToolSpec, ...] = ()
    extracting: bool = False
    """The next call can only be the answer: its own tools are off."""
    failed: tuple[ParseError, ...] = ()

    @staticmethod
    def of(output: Output, tools: tuple[ToolSpec, ...]) -> Parsing:
        """The state at the start of a run; an agent without tools has nothing to do but answer."""
        return Parsing(output, tools, extracting=not tools and output.mode != "tool")

    def ask(self) -> Ask:
        """How the next model call is asked."""
        output, schema = self.output, self.output.schema
        if output.mode == "tool":
            return Ask((*self.tools, output.tool))
        if not self.extracting:
            return Ask(self.tools)
        grammar = {"json": schema.schema}
        if output.mode == "two_phase":
            choice = {"type": "function", "function": {"name": FINAL_TOOL}}
            return Ask((*self.tools, output.tool), {"tool_choice": choice}, grammar)
        form = {"type": "json_schema", "json_schema": {"name": schema.name, "schema": schema.schema, "strict": True}}
        off = {"tool_choice": "none"} if self.tools else {}  # still in the prompt, which is only ever extended
        return Ask(self.tools, {"response_format": form, **off}, grammar)

    @property
    def hint(self) -> str:
        """What the system message says of the form where nothing else does: a grammar is not part of a prompt."""
        return self.output.hint if self.extracting and not self.failed else ""

    def read(self, turn: int, text: str, calls: Sequence[ToolCall]) -> Reading | None:
        """Takes what the model said in `turn`: its content and its calls.

        None when the calls are the agent's own tools' and the run goes on with them. A call to the final tool ends
        the turn: calls beside it do not run. Raises what `OutputSchema.check` raises.
        """
        final = next((call for call in calls if call.name == FINAL_TOOL), None)
        if final is not None and self.output.mode != "native":
            return self._judged(turn, final.arguments, final, calls)
        if calls and not self.extracting:
            return None
        if calls:
            return self._refused(turn, (f"expected the answer, found a call to '{calls[0].name}'",), None, calls)
        if self.output.mode == "tool":
            return self._refused(turn, (f"expected a call to {FINAL_TOOL}, found text",), None, calls)
        if not self.extracting:
            return self._answered(text)
        return self._judged(turn, text, None, calls)

    @property
    def untrained_turns(self) -> frozenset[int]:
        """Turns whose sampled tokens have loss mask 0 because their attempt failed."""
        return frozenset() if self.output.train_failed_parses else frozenset(error.turn for error in self.failed)

    @property
    def penalty(self) -> float:
        """What the failed attempts take from the reward."""
        return self.output.parse_penalty * len(self.failed)

    def _answered(self, text: str) -> Reading:
        """The work is done, and the form was not asked for yet: what does not fit is no failed attempt."""
        if self.output.mode == "native" and not (checked := self.output.schema.check(text)).errors:
            return Reading("value", self, checked.value)
        asked: Message = {"role": "user", "content": self.output.hint}
        return Reading("ask", replace(self, extracting=True), messages=(asked,))

    def _judged(self, turn: int, text: str, final: ToolCall | None, calls: Sequence[ToolCall]) -> Reading:
        checked = self.output.schema.check(text)
        if checked.errors:
            return self._refused(turn, checked.errors, final, calls)
        uses = _uses(calls, final, None)
        return Reading("value", self, checked.value, uses, tool_messages(uses))

    def _refused(
        self, turn: int, errors: tuple[str, ...], final: ToolCall | None, calls: Sequence[ToolCall]
    ) -> Reading:
        failed = (*self.failed, ParseError(turn, len(self.failed) + 1, errors))
        by_tool = final is not None or self.output.mode == "tool"
        how = f"Call {FINAL_TOOL} with the whole answer." if by_tool else "Answer with nothing but the JSON."
        told = "\n".join(["the answer is not valid:", *(f"- {error}" for error in errors), how])
        uses = _uses(calls, final, told)
        unbound: Message = {"role": "user", "content": f"error: {told}"}
        messages = tool_messages(uses) if final is not None else (*tool_messages(uses), unbound)
        kind = "parse_error" if len(failed) > self.output.max_parse_retries else "ask"
        return Reading(kind, replace(self, failed=failed), uses=uses, messages=messages)


def _uses(calls: Sequence[ToolCall], final: ToolCall | None, error: str | None) -> tuple[ToolUse, ...]:
    """A result for each call of a turn: the final one's, and for the others that they did not run."""
    why = f"not run: {FINAL_TOOL} was called in the same turn" if final is not None else "not run: tools are off"
    own = refused if error is not None else answered
    return tuple(own(call, error or "the answer was taken") if call is final else skipped(call, why) for call in calls)
