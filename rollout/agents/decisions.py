"""What may be decided about a tool call, and how a decision is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from rollout.agents.arguments import as_arguments
from rollout.errors import nearest


@dataclass(frozen=True, slots=True)
class Approved:
    """The call is made."""


@dataclass(frozen=True, slots=True)
class Denied:
    """It is not; the policy is told the reason as the call's result."""

    reason: str


@dataclass(frozen=True, slots=True)
class Modified:
    """It is made with other arguments, a JSON object as text."""

    arguments: str


@dataclass(frozen=True, slots=True)
class Redirected:
    """No call of the turn is made; behind their results the policy is told `text`."""

    text: str


@dataclass(frozen=True, slots=True)
class Terminated:
    """No call of the turn is made, and the run ends."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Nobody decided within so many seconds."""

    seconds: float


Decision = Approved | Denied | Modified | Redirected | Terminated
"""What somebody may answer."""
WORDS = ("approve", "deny", "modify", "redirect", "terminate")


def decision(reply: Any) -> Decision:
    """A reply as the decision that it says.

    The text `approve`, in any case, approves; any other text is a redirect. Otherwise a JSON object with `decision`,
    one of approve, deny (reason), modify (arguments), redirect (text) and terminate (reason). Raises ValueError.
    """
    match reply:
        case Approved() | Denied() | Modified() | Redirected() | Terminated():
            return reply
        case str() if reply.strip().lower() == "approve":
            return Approved()
        case str() if reply.strip():
            return Redirected(reply)
        case Mapping():
            return _worded(cast(Mapping[str, Any], reply))
        case _:
            raise ValueError(f"expected a decision, text or a JSON object, found {type(reply).__name__}")


def _worded(reply: Mapping[str, Any]) -> Decision:
    match reply.get("decision"):
        case "approve":
            return Approved()
        case "deny":
            return Denied(_text(reply, "reason", "not permitted"))
        case "modify":
            return Modified(_arguments(reply.get("arguments")))
        case "redirect":
            return Redirected(_text(reply, "text", None))
        case "terminate":
            return Terminated(_text(reply, "reason", ""))
        case other:
            raise ValueError(f"decision: '{other}' is none{nearest(str(other), WORDS)}")


def _text(reply: Mapping[str, Any], key: str, default: str | None) -> str:
    found = reply.get(key, default)
    if not isinstance(found, str) or (default is None and not found.strip()):
        raise ValueError(f"{key}: expected text")
    return found


def _arguments(found: Any) -> str:
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    if not text or as_arguments(text) is None:
        raise ValueError("arguments: expected a JSON object")
    return text
