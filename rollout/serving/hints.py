"""What the one who asks tells of a request beside its prompt: how urgent it is, how long it will be, whose it is.

Hints are read from the body's `nvext` (NVIDIA Dynamo's request extensions), from vLLM's own fields and from the headers
in which coding agents name their sessions. A hint never changes what is sampled: a program that gives none is served
all the same, and hints that nobody here knows are passed over, as those of a newer program have to be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field

from rollout.errors import UserError
from rollout.sections import Section
from rollout.turn import Json

_I32, _U32 = 2**31 - 1, 2**32 - 1
_LONGEST = 256
"""Characters of a session's name at most: it is kept for as long as the session."""
_SHOWN = 60

_CLAUDE_CODE = "x-claude-code-session-id"
_SESSIONS = (
    ("x-rollout-session-id", "x-rollout-parent-session-id"),
    ("x-dynamo-session-id", "x-dynamo-parent-session-id"),
    (_CLAUDE_CODE, ""),
    ("thread-id", "x-codex-parent-thread-id"),
    ("x-session-id", "x-parent-session-id"),
)
"""Headers that name a session and the one it was begun from: ours, Dynamo's, Claude Code's (see `_claude_code`),
Codex's, then OpenCode's, of which vLLM and Ray Serve know the first. The first that is there counts."""
_FINAL = ("x-rollout-session-final", "x-dynamo-session-final")
_TENANTS = ("x-tenant-id",)


@dataclass(frozen=True, slots=True)
class Hints:
    """What is told of one request."""

    priority: int = 0
    """Higher is more important."""
    strict_priority: int = 0
    """A tier: nothing of a lower one goes before."""
    osl: int | None = None
    """Tokens that it will sample, as far as anybody knows."""
    speculative_prefill: bool = False
    """Whether the engine is to read what the answer adds to the conversation while its tools run."""
    cache_salt: str | None = None
    """Prompts share a prefix cache only with those of the same salt."""
    session: str | None = None
    parent: str | None = None
    """The session this one was begun from: that of a sub-agent's caller."""
    final: bool = False
    """No request of the session follows."""
    compaction: bool = False
    """The request sums up its session."""


class HintsConfig(Section):
    """How far the hints of programs are followed."""

    priority: Annotated[int, Field(ge=0, le=10_000)] = 100
    """A priority counts as this at most, above and below 0; 0 takes none."""
    tiers: Annotated[int, Field(ge=0, le=100)] = 0
    """A strict priority counts as this at most; 0 takes none."""


def read_hints(body: Mapping[str, Json], headers: Mapping[str, str]) -> Hints:
    """The hints of a request with this body and these headers, whose names are in any case.

    Where a header and the body say the same thing, the header counts: it may come from a proxy that knows more than the
    program. Raises UserError, one line that names the field, for a value that cannot be.
    """
    named = {name.lower(): value.strip() for name, value in headers.items() if value.strip()}
    nvext = _object(body.get("nvext"), "nvext")
    told = _object(nvext.get("agent_hints"), "nvext.agent_hints")
    control = _object(nvext.get("session_control"), "nvext.session_control")
    session, parent = _session(named)
    given = _text(control.get("session_id", body.get("session_id")), "session_id")
    return Hints(
        priority=_priority(body, told, named),
        strict_priority=_strict(told, named),
        osl=_whole(told.get("osl"), "nvext.agent_hints.osl", 0, _U32),
        speculative_prefill=_flag(told.get("speculative_prefill"), "nvext.agent_hints.speculative_prefill"),
        cache_salt=_salt(body, nvext, named),
        session=session or given,
        parent=parent,
        final=control.get("action") == "close" or any(named.get(name, "").lower() == "true" for name in _FINAL),
        compaction=_compacts(named),
    )


def vllm_priority(hints: Hints, config: HintsConfig) -> int:
    """The `priority` of vLLM's generate: lower goes earlier, requests without hints have 0. Within config's bounds.

    It has an effect only in an engine with `scheduling_policy: priority`; another one refuses every value but 0.
    """
    most = config.priority
    tier = min(hints.strict_priority, config.tiers)
    return -(max(-most, min(hints.priority, most)) + tier * (2 * most + 1))


def episode_hints(
    session: str, turn: int, sampled: int, expected: float, usual: float, parent: str | None = None
) -> Hints:
    """The hints of the engine's own episode before its turn `turn`, counted from 0, with `sampled` tokens so far.

    A late turn goes before an early one: it ends an episode, and frees the cache that all its turns hold. Of turns of
    the same number that of an episode that takes long goes first, by `expected` and `usual` seconds
    (`rollout.expectation`): each doubling counts as a turn, at most two. Its length is the mean of those so far.
    """
    longer = math.log2(expected / usual) if expected > 0 and usual > 0 else 0.0
    return Hints(
        priority=turn + round(max(-2.0, min(longer, 2.0))),
        osl=math.ceil(sampled / turn) if turn else None,
        session=session,
        parent=parent,
    )


def _priority(body: Mapping[str, Json], told: Mapping[str, Json], named: Mapping[str, str]) -> int:
    """Dynamo's, with the older word for it, or else vLLM's, which counts the other way."""
    if (text := named.get("x-dynamo-request-priority")) is not None:
        return _header(text, "x-dynamo-request-priority", -_I32, _I32)
    if (said := _whole(told.get("priority"), "nvext.agent_hints.priority", -_I32, _I32)) is not None:
        return said
    if (sensitivity := told.get("latency_sensitivity")) is not None:
        return round(_finite(sensitivity, "nvext.agent_hints.latency_sensitivity"))
    if (text := named.get("x-vllm-priority")) is not None:
        return -_header(text, "x-vllm-priority", -_I32, _I32)
    return -(_whole(body.get("priority"), "priority", -_I32, _I32) or 0)


def _strict(told: Mapping[str, Json], named: Mapping[str, str]) -> int:
    if (text := named.get("x-dynamo-request-strict-priority")) is not None:
        return _header(text, "x-dynamo-request-strict-priority", 0, _U32)
    return _whole(told.get("strict_priority"), "nvext.agent_hints.strict_priority", 0, _U32) or 0


def _salt(body: Mapping[str, Json], nvext: Mapping[str, Json], named: Mapping[str, str]) -> str | None:
    for name in _TENANTS:
        if name in named:
            return _text(named[name], name)
    return _text(nvext.get("cache_salt"), "nvext.cache_salt") or _text(body.get("cache_salt"), "cache_salt")


def _session(named: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The session that headers name, and its parent."""
    for session, parent in _SESSIONS:
        if session == _CLAUDE_CODE and session in named:
            return _claude_code(named)
        if session in named:
            return _name(named[session], session), _name(named[parent], parent) if parent in named else None
    return None, None


def _claude_code(named: Mapping[str, str]) -> tuple[str, str | None]:
    """A session of Claude Code has agents, each with a conversation of its own, and one of them may begin another."""
    session = _name(named[_CLAUDE_CODE], _CLAUDE_CODE)
    if (agent := named.get("x-claude-code-agent-id")) is None:
        return session, None
    above = named.get("x-claude-code-parent-agent-id")
    parent = session if above is None else f"{session}/{_name(above, 'x-claude-code-parent-agent-id')}"
    return f"{session}/{_name(agent, 'x-claude-code-agent-id')}", parent


def _compacts(named: Mapping[str, str]) -> bool:
    """Codex says in a JSON header what a request is for. What else is in it, and whether it can be read, is its own."""
    try:
        said: Any = json.loads(named.get("x-codex-turn-metadata", "null"))
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and cast(dict[str, Any], said).get("request_kind") == "compaction"


def _object(value: Json, key: str) -> Mapping[str, Json]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong(key, "an object", value)
    return cast(Mapping[str, Json], value)


def _whole(value: Json, key: str, least: int, most: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _wrong(key, f"a whole number from {least} to {most}", value)
    return value


def _header(text: str, name: str, least: int, most: int) -> int:
    try:
        value = int(text) if len(text) < 20 else None
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise _wrong(name, f"a whole number from {least} to {most}", text)
    return value


def _finite(value: Json, key: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _I32:
        raise _wrong(key, f"a number of at most {_I32}", value)
    return float(value)


def _flag(value: Json, key: str) -> bool:
    if not isinstance(value, bool | None):
        raise _wrong(key, "true or false", value)
    return bool(value)


def _text(value: Json, key: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong(key, "text", value)
    return _name(value, key)


def _name(value: str, key: str) -> str:
    if len(value) > _LONGEST or not value.isprintable():
        raise _wrong(key, f"at most {_LONGEST} printable characters", value)
    return value


def _wrong(key: str, expected: str, found: Json) -> UserError:
    return UserError(f"{key}: expected {expected}, found {repr(found)[:_SHOWN]}")
