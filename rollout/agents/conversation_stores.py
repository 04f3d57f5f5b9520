"""Where conversations are kept: in memory, in files of JSON lines, in SQLite. Each is a ConversationLog and a
ConversationShelf, writes each event when it comes, and gives every blocking call a deadline.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, PositiveFloat, model_validator
from pydantic_core import PydanticCustomError

from rollout.agents.conversations import (
    Conflict,
    Conversation,
    Event,
    Header,
    checked_id,
    clean_up,
    folded,
    from_line,
    to_line,
)
from rollout.errors import UserError, describe
from rollout.sections import WHOLE, PathText, Section
from rollout.thread import threaded

T = TypeVar("T")

_SUFFIX = ".jsonl"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS events "
    "(conversation TEXT NOT NULL, number INTEGER NOT NULL, event TEXT NOT NULL, PRIMARY KEY (conversation, number))"
    " WITHOUT ROWID"
)


class ConversationsConfig(Section):
    """Where conversations are kept, and how long."""

    store: Literal["memory", "json", "sqlite"] = "memory"
    """In this process, in a folder with a file of JSON lines each, or in a SQLite file."""
    path: PathText | None = None
    """The folder, or the SQLite file."""
    ttl: PositiveFloat | None = None
    """Seconds after which a conversation that nobody speaks in is deleted; kept for ever when not given."""
    seconds: Annotated[float, Field(gt=0)] = 10.0
    """What writing or reading one may take."""
    user: Annotated[str, Field(min_length=1)] = "default"
    """Whose the sessions are that begin here, and whose a chat may go on in."""
    history: Annotated[int, Field(ge=0)] | None = None
    """Messages of a session that are taken up at most, the last ones; all when not given."""
    task_key: Annotated[str, Field(min_length=1)] = "session"
    """Key of a task's data that names the session whose history opens the episode."""
    keep_rollouts: bool = False
    """Each episode of a job is kept as a session of its own too, EPISODE.ATTEMPT; else only its row has it."""

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if (self.store == "memory") != (self.path is None):
            told = "agent.sessions.path: "
            told += "missing; store {store} needs one" if self.path is None else "not for store memory"
            raise PydanticCustomError(WHOLE, told, {"store": self.store})
        if self.keep_rollouts and self.store == "memory":
            line = "agent.sessions.keep_rollouts: store memory ends with its process; expected json or sqlite"
            raise PydanticCustomError(WHOLE, line)
        return self


@dataclass(slots=True)
class MemoryStore:
    """Conversations that last as long as this object."""

    _events: dict[str, list[Event]] = field(default_factory=dict[str, list[Event]])

    async def append(self, id: str, number: int, event: Event) -> None:
        """Keeps an event. What is kept is a copy: later changes of a message are no events."""
        events = self._events.get(checked_id(id), [])
        event = from_line(to_line(event), id)
        if _is_next(id, number, event, len(events), events[number] if number < len(events) else None):
            self._events.setdefault(id, []).append(event)

    async def load(self, id: str) -> Conversation | None:
        """A conversation."""
        copied = [from_line(to_line(event), id) for event in self._events.get(id, ())]
        return folded(id, copied)

    async def headers(self) -> tuple[Header, ...]:
        """All that are kept."""
        return _headers(folded(id, events) for id, events in self._events.items())

    async def delete(self, id: str) -> bool:
        """Forgets a conversation."""
        return self._events.pop(id, None) is not None


@dataclass(frozen=True, slots=True)
class JsonStore:
    """A file of JSON lines for each conversation, one event a line; the file is locked while one is written.

    A line that a crash has cut is not an event that was written: the next one takes its place.
    """

    folder: Path
    seconds: float = 10.0

    async def append(self, id: str, number: int, event: Event) -> None:
        """Writes an event behind the others, through to the disk."""
        path, line = self._path(id), to_line(event)

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if number and not path.exists():  # nothing to come behind, and no empty file to leave
                _is_next(id, number, event, 0, None)
            with path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                whole = _whole_lines(path)
                known = from_line(whole[number], f"{path}:{number + 1}") if number < len(whole) else None
                if not _is_next(id, number, event, len(whole), known):
                    return
                file.truncate(sum(len(kept.encode(errors="surrogateescape")) + 1 for kept in whole))
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

        await threaded(write, self.seconds, f"conversation {id}")

    async def load(self, id: str) -> Conversation | None:
        """A conversation. Raises UserError for a line that is no event."""
        path = self._path(id)
        return await threaded(lambda: folded(id, _events(path)), self.seconds, f"conversation {id}")

    async def headers(self) -> tuple[Header, ...]:
        """All in the folder. Reads all of them."""

        def read() -> tuple[Header, ...]:
            paths = sorted(self.folder.glob(f"*{_SUFFIX}"))
            return _headers(folded(path.name.removesuffix(_SUFFIX), _events(path)) for path in paths)

        return await threaded(read, self.seconds, f"conversations in {self.folder}")

    async def delete(self, id: str) -> bool:
        """Removes the file."""
        path = self._path(id)

        def remove() -> bool:
            there = path.exists()
            path.unlink(missing_ok=True)
            return there

        return await threaded(remove, self.seconds, f"conversation {id}")

    def _path(self, id: str) -> Path:
        return self.folder / f"{checked_id(id)}{_SUFFIX}"


@dataclass(frozen=True, slots=True)
class SqliteStore:
    """Conversations in a SQLite file, which several processes may use at once."""

    path: Path
    seconds: float = 10.0

    async def append(self, id: str, number: int, event: Event) -> None:
        """Writes an event in a transaction of its own. Raises sqlite3.Error when the file does not take it."""
        line = to_line(event)

        def insert(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            (count,) = database.execute("SELECT COUNT(*) FROM events WHERE conversation = ?", (id,)).fetchone()
            select = "SELECT event FROM events WHERE conversation = ? AND number = ?"
            row = database.execute(select, (id, number)).fetchone()
            known = from_line(row[0], f"{self.path}: {id}") if row is not None else None
            if _is_next(id, number, event, count, known):
                database.execute("INSERT INTO events VALUES (?, ?, ?)", (id, number, line))

        checked_id(id)
        await self._run(insert)

    async def load(self, id: str) -> Conversation | None:
        """A conversation."""
        return await self._run(lambda database: folded(id, self._events(database, id)))

    async def headers(self) -> tuple[Header, ...]:
        """All in the file."""

        def read(database: sqlite3.Connection) -> tuple[Header, ...]:
            ids = [row[0] for row in database.execute("SELECT DISTINCT conversation FROM events ORDER BY conversation")]
            return _headers(folded(id, self._events(database, id)) for id in ids)

        return await self._run(read)

    async def delete(self, id: str) -> bool:
        """Removes its events."""
        remove = "DELETE FROM events WHERE conversation = ?"
        return await self._run(lambda database: database.execute(remove, (id,)).rowcount > 0)

    def _events(self, database: sqlite3.Connection, id: str) -> Iterator[Event]:
        select = "SELECT event FROM events WHERE conversation = ? ORDER BY number"
        for (line,) in database.execute(select, (id,)):
            yield from_line(line, f"{self.path}: {id}")

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def opened() -> T:
            with closing(sqlite3.connect(self.path, timeout=self.seconds)) as database, database:
                database.execute(_SCHEMA)
                return work(database)

        return await threaded(opened, self.seconds, f"conversations in {self.path}")


Store = MemoryStore | JsonStore | SqliteStore


async def open_store(config: ConversationsConfig, key: str = "sessions") -> Store:
    """The store that section `key` describes, cleaned of what is older than its `ttl`.

    Raises UserError when its path cannot be used.
    """
    if config.store == "memory":
        return MemoryStore()
    path = Path(config.path or "")
    store: Store = JsonStore(path, config.seconds) if config.store == "json" else SqliteStore(path, config.seconds)
    try:
        if isinstance(store, JsonStore):
            await threaded(lambda: path.mkdir(parents=True, exist_ok=True), config.seconds, f"{key}.path")
        await store.headers()
        if config.ttl is not None:
            await clean_up(store, time.time(), max_age=config.ttl)
    except (OSError, sqlite3.Error) as error:
        expected = "a folder" if config.store == "json" else "a SQLite file"
        raise UserError(f"{key}.path: {path}: expected {expected}; {describe(error)}") from error
    return store


def _is_next(id: str, number: int, event: Event, count: int, known: Event | None) -> bool:
    """Whether the event is to be written; False when it is already. Raises Conflict when it is not the next one."""
    if number == count:
        return True
    if known is not None and to_line(known) == to_line(event):
        return False
    raise Conflict(f"conversation {id} has {count} events: number {number} is not the next, it has gone on elsewhere")


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    whole, end, _ = path.read_bytes().rpartition(b"\n")
    return whole.decode(errors="surrogateescape").split("\n") if end else []


def _events(path: Path) -> Iterator[Event]:
    for number, line in enumerate(_whole_lines(path), 1):
        yield from_line(line, f"{path}:{number}")


def _headers(conversations: Iterable[Conversation | None]) -> tuple[Header, ...]:
    told = [
        Header(one.id, one.app, one.user, one.created_at, one.updated_at) for one in conversations if one is not None
    ]
    return tuple(sorted(told, key=lambda header: -header.updated_at))
