"""Conversations of a person or a program with an agent: what was said, by both sides, and what is remembered of it.

A conversation is the fold of its events. Events are numbered from 0 and only added, each written when it happens, so
that whoever goes on after a crash has all that was said. What is derived (messages, state, summaries of the turns) is
never stored as a second truth. `rollout.agents.conversation_stores` keeps them; `rollout.agents.traces` counts them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, cast
from uuid import uuid4

from rollout.errors import RolloutError, UserError, nearest
from rollout.trajectory import Json, Message

Kind = Literal["opened", "message", "state", "turn"]
KINDS: tuple[Kind, ...] = ("opened", "message", "state", "turn")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Conflict(RolloutError):
    """A conversation has gone on elsewhere: the event that was to be added is not the next one."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, at `at` seconds since 1970.

    `data` by kind: opened {app, user}; message, a chat message as it is; state {key, value}, or {key} alone where the
    key is gone; turn, a TurnSummary.
    """

    kind: Kind
    at: float
    data: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class UsedTool:
    """A tool call of a turn."""

    name: str
    arguments: str
    result: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TurnSummary:
    """From what the agent was told to what it answered: one or more model calls. Tokens are None where nobody counted
    them, the cost in USD is None where no price is known."""

    agent: str
    model: str
    input: str
    output: str
    tools: tuple[UsedTool, ...] = ()
    model_calls: int = 1
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost: float | None = None
    seconds: float = 0.0
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as its events make it."""

    id: str
    app: str
    user: str
    created_at: float
    updated_at: float
    messages: tuple[Message, ...] = ()
    state: Mapping[str, Json] = field(default_factory=dict[str, Json])
    turns: tuple[TurnSummary, ...] = ()
    events: int = 0
    """How many there are: the number of the next one."""
    under_way: bool = False
    """Something was said since a turn has ended last."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a list of conversations tells of one."""

    id: str
    app: str
    user: str
    created_at: float
    updated_at: float


class ConversationLog(Protocol):
    """Where an agent keeps its conversations."""

    async def append(self, id: str, number: int, event: Event) -> None:
        """Writes the event down, as the conversation's `number`th; when it returns a crash does not lose it.

        Raises Conflict when another event has that number, or the one before is not there. The same event again is no
        conflict: a caller who heard no answer may repeat itself.
        """
        ...

    async def load(self, id: str) -> Conversation | None:
        """A conversation; None when there is none."""
        ...


class ConversationShelf(Protocol):
    """What keeps order among conversations."""

    async def headers(self) -> Sequence[Header]:
        """All that are kept, those that were last spoken in first."""
        ...

    async def delete(self, id: str) -> bool:
        """Removes all of a conversation; False when there is none."""
        ...


def opened(app: str, user: str, at: float) -> Event:
    """The first event of every conversation."""
    return Event("opened", at, {"app": app, "user": user})


def said(message: Message, at: float) -> Event:
    """A message of either side. Raises UserError for one that is no JSON."""
    return Event("message", at, cast(Mapping[str, Json], checked_json(dict(message), "message")))


def state_set(key: str, value: Json, at: float) -> Event:
    """A value of the state. Raises UserError for one that is no JSON: nothing is dropped in silence."""
    return Event("state", at, {"key": key, "value": checked_json(value, f"state.{key}")})


def state_removed(key: str, at: float) -> Event:
    """A key of the state that is gone."""
    return Event("state", at, {"key": key})


def turn_ended(turn: TurnSummary, at: float) -> Event:
    """What a turn came to."""
    return Event("turn", at, asdict(turn))


def new_id() -> str:
    """An id that no other conversation has."""
    return uuid4().hex


def checked_id(id: str) -> str:
    """The id, as a file's name can be. Raises UserError for one that cannot."""
    if not _ID.fullmatch(id):
        raise UserError(f"conversation {id!r}: expected an id of letters, digits, '.', '_' and '-', 128 at most")
    return id


def checked_json(value: Any, where: str) -> Json:
    """The value, if JSON gives it back as it is. Raises UserError that names the place in it which it would not."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise UserError(f"{where}: expected JSON, found {value}")
    if isinstance(value, list):
        items = cast(list[Any], value)
        return [checked_json(item, f"{where}[{place}]") for place, item in enumerate(items)]
    if isinstance(value, dict):
        entries = cast(dict[Any, Any], value)
        if (wrong := next((key for key in entries if not isinstance(key, str)), None)) is not None:
            raise UserError(f"{where}: expected keys that are text, found {wrong!r}")
        return {key: checked_json(item, f"{where}.{key}") for key, item in entries.items()}
    raise UserError(f"{where}: expected JSON, found {type(value).__name__}")


def folded(id: str, events: Iterable[Event]) -> Conversation | None:
    """The conversation that the events make; None without events."""
    conversation: Conversation | None = None
    messages: list[Message] = []
    state: dict[str, Json] = {}
    turns: list[TurnSummary] = []
    count, under_way = 0, False
    for event in events:
        data, count = event.data, count + 1
        if event.kind in ("message", "turn"):
            under_way = event.kind == "message"
        if event.kind == "message":
            messages.append(cast(Message, dict(data)))
        elif event.kind == "turn":
            turns.append(_turn(data))
        elif event.kind == "state" and "value" in data:
            state[data["key"]] = data["value"]
        elif event.kind == "state":
            state.pop(data["key"], None)
        created = event.at if conversation is None else conversation.created_at
        first = data if conversation is None else {"app": conversation.app, "user": conversation.user}
        conversation = Conversation(id, first.get("app", ""), first.get("user", ""), created, event.at)
    if conversation is None:
        return None
    head = (conversation.app, conversation.user, conversation.created_at, conversation.updated_at)
    return Conversation(id, *head, tuple(messages), state, tuple(turns), count, under_way)


def to_line(event: Event) -> str:
    """An event as one line of JSON, without the line's end."""
    return json.dumps(asdict(event), allow_nan=False)


def from_line(line: str, where: str) -> Event:
    """An event of such a line. Raises UserError that begins with `where` for one that is none."""
    try:
        told: Any = json.loads(line)
        if told["kind"] not in KINDS:
            raise UserError(f"{where}: no such event '{told['kind']}'{nearest(str(told['kind']), KINDS)}")
        event = Event(told["kind"], float(told["at"]), dict(told["data"]))
        if event.kind == "turn":
            _turn(event.data)
        return event
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: expected an event of a conversation: {error}") from None


def selected(headers: Iterable[Header], app: str | None = None, user: str | None = None) -> tuple[Header, ...]:
    """Those of one app, one user, or both."""
    return tuple(header for header in headers if app in (None, header.app) and user in (None, header.user))


async def clean_up(
    shelf: ConversationShelf, now: float, max_age: float | None = None, before: float | None = None
) -> tuple[str, ...]:
    """Deletes the conversations that nobody has spoken in for `max_age` seconds, or since `before`; their ids.

    Raises UserError unless exactly one of the two is given.
    """
    if (max_age is None) == (before is None):
        raise UserError(
            f"clean_up: expected either max_age or before, found {'neither' if max_age is None else 'both'}"
        )
    until = before if before is not None else now - cast(float, max_age)
    old = [header.id for header in await shelf.headers() if header.updated_at < until]
    return tuple([id for id in old if await shelf.delete(id)])


def _turn(data: Mapping[str, Json]) -> TurnSummary:
    tools = tuple(UsedTool(**tool) for tool in data["tools"])
    fields: dict[str, Any] = {**data, "tools": tools}
    return TurnSummary(**fields)
