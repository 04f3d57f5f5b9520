"""A request as the model call that it comes down to: rules, template, room, grammar and hints, before anything runs."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from rollout.errors import UserError
from rollout.gateway.choices import grammar
from rollout.gateway.scribe import Scribe
from rollout.gateway.section import GatewayConfig
from rollout.gateway.served import Served
from rollout.parsing import shown as with_reasoning
from rollout.serving.hints import Hints, vllm_priority
from rollout.serving.prefixes import stabilized
from rollout.turn import Extras, Message, Prompt, ToolSpec
from rollout.wire.asked import Asked
from rollout.wire.errors import invalid, too_long


@dataclass(frozen=True, slots=True)
class Whose:
    """Who asks."""

    hints: Hints
    scribe: Scribe
    scope: str = ""
    """Keeps the sessions and stored responses of an episode apart from all others."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt as it is rendered."""

    ids: Sequence[int]
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    removed: Mapping[str, int]
    """Characters that rules took out of it, by rule."""

    @property
    def characters(self) -> int:
        """Of its messages."""
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True, slots=True)
class Call:
    """A model call that may be made."""

    asked: Asked
    whose: Whose
    prompt: Prompt
    turn: int
    """Makes the ids of its calls: the same for the same prompt, and no other prompt's of the conversation."""
    in_reasoning: bool
    """Its prompt ends within reasoning."""


def rendered(served: Served, asked: Asked, scribe: Scribe) -> Shown:
    """The prompt of a request. Raises Refused for one that the template does not take."""
    entries = [_entry(spec) for spec in asked.offered]
    stable = stabilized(asked.messages, entries, served.rules)
    messages = with_reasoning(cast(Sequence[Message], stable.messages), served.keep)
    tools = tuple(
        spec if told is entry else ToolSpec(**told)
        for spec, entry, told in zip(asked.offered, entries, stable.tools, strict=True)
    )
    try:
        ids = scribe.prompt(messages, tools, asked.template_variables)
    except UserError as error:
        raise invalid("messages", str(error)) from error
    return Shown(ids, tuple(messages), tools, stable.removed)


def call_of(served: Served, asked: Asked, whose: Whose, shown: Shown, id: str, config: GatewayConfig) -> Call:
    """The model call of a request; `id` is nobody else's. Raises Refused for one that cannot be made."""
    ids, messages = shown.ids, shown.messages
    reach, most = served.profile.context, served.profile.max_output
    if len(ids) >= reach:
        raise too_long(len(ids), reach)
    in_reasoning = served.opens_reasoning(ids)
    form = grammar(asked, served.format_name, in_reasoning)
    session, group = _places(messages, whose)
    prompt = Prompt(
        request_id=id,
        session_id=session,
        turn=sum(message["role"] == "assistant" for message in messages),
        ids=ids,
        messages=messages,
        tools=shown.tools,
        max_tokens=min(asked.max_tokens or most, most, reach - len(ids)),
        sampling=asked.drawing.over(served.sampling, asked.stop),
        seconds=config.seconds,
        extras=Extras(vllm=asked.drawing.vllm, grammar=form),
        group=group,
        priority=vllm_priority(whose.hints, config.hints),
        salt=whose.hints.cache_salt,
    )
    return Call(asked, whose, prompt, zlib.crc32(array("i", ids).tobytes()), in_reasoning)


def _entry(spec: ToolSpec) -> dict[str, Any]:
    return {"name": spec.name, "description": spec.description, "parameters": spec.parameters}


def _places(messages: Sequence[Message], whose: Whose) -> tuple[str, str]:
    """The session that a replica is to remember, and the group of those that begin alike.

    A program that names no session has one all the same: its conversation, by what stands in it up to the first thing
    that a user said.
    """
    group = 0
    if messages and messages[0]["role"] == "system":
        group = zlib.crc32(messages[0]["content"].encode("utf-8", "replace"))
    session = whose.hints.session
    if session is None:
        first = next((message["content"] for message in messages if message["role"] == "user"), "")
        session = f"{zlib.crc32(first.encode('utf-8', 'replace'), group):08x}"
    return f"{whose.scope}{session}", f"{group:08x}"
