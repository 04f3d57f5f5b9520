"""A person's functions that are called as an agent goes along.

Observers are told and change nothing: one that breaks is logged, or fails the episode where the conf says so. There is
one transformer, `before_llm_call`: it gives the messages that the model is shown, and what it did to them is read from
the result (`compared`). `should_interrupt` is a question of approval: see `rollout.agents.approval`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import PositiveFloat

from rollout.agents.calling import asked
from rollout.errors import BoundaryError, UserError
from rollout.references import load_function
from rollout.sections import Section
from rollout.trajectory import Agent, Message

log = logging.getLogger(__name__)

Observer = Literal[
    "after_llm_call", "on_token", "on_event", "on_tool_call", "on_tool_result", "on_complete", "on_error", "on_stop"
]


class HooksConfig(Section):
    """Functions, each `module:function` or `file.py:function`, plain or async, called with the agent first."""

    before_llm_call: str | None = None
    """(agent, iteration, messages) -> the messages the model is shown; iterations count from 1."""
    after_llm_call: str | None = None
    """(agent, iteration, response), before the tools of the response are used."""
    on_token: str | None = None
    """(agent, text), as it is sampled: what the agent says, without reasoning and calls."""
    on_event: str | None = None
    """(agent, event), as it happens: one of the events of `rollout.streaming`."""
    should_interrupt: str | None = None
    """(tool_name, arguments) -> whether a person is asked before the call is made."""
    on_tool_call: str | None = None
    """(agent, tool_name, arguments), before the call is made."""
    on_tool_result: str | None = None
    """(agent, tool_name, result), with the whole text."""
    on_complete: str | None = None
    """(agent, result), at every end but an error."""
    on_error: str | None = None
    """(agent, failure), when something outside the policy broke."""
    on_stop: str | None = None
    """(agent, stop_reason), whatever the end is."""
    on_hook_error: Literal["log", "fail"] = "log"
    """What an observer that breaks costs: a line in the log, or the episode, which is then tried again."""
    timeout: PositiveFloat = 30.0
    """Seconds each may take."""
    guarded: Literal["hold", "passthrough"] = "hold"
    """Text that guardrails on the output are to judge is told to `on_token` and `on_event` when they have, or at once.
    """

    def named(self) -> dict[str, str]:
        """The references that are given, by hook."""
        given = self.model_dump(exclude={"on_hook_error", "timeout", "guarded"}, exclude_none=True)
        return cast(dict[str, str], given)


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of an agent, loaded."""

    agent: Agent
    functions: Mapping[str, Callable[..., Any]]
    on_error: Literal["log", "fail"] = "log"
    seconds: float = 30.0
    holds: bool = True
    """Text that guardrails are to judge is told when they have."""

    @staticmethod
    def of(config: HooksConfig, agent: Agent, key: str = "agent.hooks") -> Hooks | None:
        """With their functions loaded; None when there are none. Raises UserError as `load_function` does."""
        functions = {name: load_function(reference, f"{key}.{name}") for name, reference in config.named().items()}
        if not functions:
            return None
        return Hooks(agent, functions, config.on_hook_error, config.timeout, config.guarded == "hold")

    @property
    def listens(self) -> bool:
        """Whether model calls are listened to."""
        return "on_token" in self.functions or "on_event" in self.functions

    @property
    def should_interrupt(self) -> Callable[..., Any] | None:
        """What says whether a call needs a person's approval."""
        return self.functions.get("should_interrupt")

    @property
    def rewrites(self) -> bool:
        """Whether a hook has a word in what the model is shown."""
        return "before_llm_call" in self.functions

    async def before_llm_call(self, iteration: int, messages: Sequence[Message]) -> list[Message]:
        """The messages that the model is to be shown; a hook that changes its list in place changes a copy.

        Raises BoundaryError when the hook breaks, UserError when it does not return messages.
        """
        function = self.functions.get("before_llm_call")
        if function is None:
            return list(messages)
        given = copy.deepcopy(list(messages))
        answer = await asked(function, (self.agent, iteration, given), self.seconds, "hook before_llm_call")
        return _messages(answer)

    async def observe(self, name: Observer, *told: Any) -> None:
        """Calls an observer, if there is one, with the agent and what is told.

        Raises BoundaryError when it breaks and hooks are to fail the episode.
        """
        if (function := self.functions.get(name)) is None:
            return
        try:
            await asked(function, (self.agent, *told), self.seconds, f"hook {name}")
        except BoundaryError as error:
            if self.on_error == "fail":
                raise
            log.warning("%s", error)


@dataclass(frozen=True, slots=True)
class Appended:
    """The view goes on: these messages are new, often none. The segment stays."""

    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The view is another from message `since` on: a new segment begins with all of `messages`."""

    messages: tuple[Message, ...]
    since: int


def compared(view: Sequence[Message], returned: Sequence[Message]) -> Appended | Rewritten:
    """What was done to the messages that a model would have been shown."""
    for place, (before, after) in enumerate(zip(view, returned, strict=False)):
        if before != after:
            return Rewritten(tuple(returned), place)
    if len(returned) < len(view):
        return Rewritten(tuple(returned), len(returned))
    return Appended(tuple(returned[len(view) :]))


def _messages(answer: Any) -> list[Message]:
    if not isinstance(answer, list | tuple):
        wrong = f"returned {'None' if answer is None else type(answer).__name__}, expected the list of messages"
        raise UserError(f"agent.hooks.before_llm_call: {wrong}")
    found = cast(Sequence[Any], answer)
    for place, one in enumerate(found):
        message = cast(dict[str, Any], one) if isinstance(one, dict) else {}
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise UserError(f"agent.hooks.before_llm_call: message {place} has no text for role and content")
    if not found:
        raise UserError("agent.hooks.before_llm_call: returned no messages, expected at least one")
    return [cast(Message, one) for one in found]
