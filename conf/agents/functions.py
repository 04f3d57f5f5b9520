"""Functions that the examples beside it name: tools, hooks, guardrails, and one that approves calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rollout.agents.approval_queue import Request
from rollout.agents.guardrails import Block, Modify, Pass, Retry, Verdict
from rollout.agents.open_session import at_hand
from rollout.streaming import CallComplete, StreamEvent
from rollout.trajectory import Agent, Message

log = logging.getLogger("examples")
MOST = 1000


# -- tools: name, docstring and annotations are what the policy sees


def look_up(topic: str) -> str:
    """Look a topic up in the handbook.

    Args:
        topic: What to look for.
    """
    return f"{topic}: see the handbook, where this is told at length. " * 5


def jot(text: str) -> str:
    """Keep a note for the whole session.

    Args:
        text: What to note.
    """
    session = at_hand()
    assert session is not None, "the job keeps sessions"
    notes = [*session.state.get("notes", ()), text]
    session.state["notes"] = notes
    return f"{len(notes)} noted"


def hand_in(answer: str) -> str:
    """Hand the answer in.

    Args:
        answer: The answer, a sentence.
    """
    return f"Handed in: {answer}"


def erase(name: str) -> str:
    """Erase a file.

    Args:
        name: Its name.
    """
    return f"{name} is gone"


# -- hooks


def show(agent: Agent, iteration: int, messages: Sequence[Message]) -> Sequence[Message]:
    """What the model is shown: as it was said, then with a reminder, then little more than the task."""
    if iteration == 2:  # what only adds goes on in its segment
        return [*messages, {"role": "user", "content": "Check the sum before you answer."}]
    if iteration == 3:  # what leaves something out begins another
        task = next(message for message in messages if message["role"] == "user")
        return [messages[0], task, {"role": "user", "content": "You have worked out 42. Answer now."}]
    return messages


def note(agent: Agent, *told: Any) -> None:
    """Writes down what happened, in the log of whoever plays the episode."""
    log.info("%s: %s", agent.name, told)


# -- guardrails: a function of what is checked, which gives a verdict


def no_passwords(text: str) -> Verdict:
    """On what the agent is asked."""
    return Block("I do not talk about passwords.") if "password" in text.lower() else Pass()


def small_numbers(arguments: Mapping[str, Any], tool: str) -> Verdict:
    """On what tools are given."""
    large = [name for name, value in arguments.items() if isinstance(value, int) and value > MOST]
    return Block(f"{large[0]} is more than {MOST}") if large else Pass()


def with_unit(text: str, tool: str) -> Verdict:
    """On what tools give."""
    return Modify(f"{text} apples")


def a_sentence(text: str) -> Verdict:
    """On the answer."""
    return Pass() if text.endswith(".") else Retry("Answer with a whole sentence.")


# -- listening


async def hear(agent: Agent, text: str) -> None:
    """Is told what the agent says, token by token."""
    log.info("%s says %r", agent.name, text)


async def watch(agent: Agent, event: StreamEvent) -> None:
    """Is told of every call when it is whole, while others may still be written."""
    if isinstance(event, CallComplete):
        log.info("%s calls %s, still sampling: %s", agent.name, event.call.name, event.sampling)


# -- approval


def small_sums(request: Request) -> str | dict[str, Any]:
    """Approves sums of small numbers."""
    if max(json.loads(request.arguments).values()) > MOST:
        return {"decision": "deny", "reason": f"numbers up to {MOST} only"}
    return "approve"
