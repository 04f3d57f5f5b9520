"""Memory: short texts that the policy keeps and finds again by words.

What a memory is asked is scored as NimbleAgents does it (src/storage/memory/scoring.jl, v0.2.0): the share of the
query's words that are in the text, and 0.3 more when the whole query is, 1 at most. What scores 0 is not found.

Whose memories they are is one string, the owner. Samples of one task must not learn from each other, so an episode
has an owner of its own unless the job says otherwise: `rollout.agents.memory_tools` opens memories by scope.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from rollout.errors import UserError, describe
from rollout.thread import threaded
from rollout.trajectory import Json

T = TypeVar("T")

_SUBSTRING = 0.3
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS memories "
    "(id INTEGER PRIMARY KEY, owner TEXT NOT NULL, content TEXT NOT NULL, metadata TEXT NOT NULL, at REAL NOT NULL)",
    "CREATE INDEX IF NOT EXISTS memories_of ON memories (owner)",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One text that is kept. `at` is seconds since 1970."""

    id: str
    owner: str
    content: str
    metadata: Mapping[str, Json] = field(default_factory=dict[str, Json])
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """An entry and how well it answers a query, above 0 and at most 1."""

    entry: Entry
    score: float


class Memory(Protocol):
    """Where memories are kept. What it raises is a failure of the episode's, never the policy's."""

    async def add(self, owner: str, content: str, metadata: Mapping[str, Json]) -> Entry:
        """Keeps a text."""
        ...

    async def search(self, owner: str, query: str, top_k: int) -> Sequence[Found]:
        """The owner's best `top_k` entries, best first; none that have nothing to do with the query."""
        ...

    async def close(self) -> None:
        """Frees what it holds; the entries stay where they last longer than a process."""
        ...


def relevance(query: str, content: str) -> float:
    """How well a text answers a query, from 0 to 1; see the head of this file."""
    asked = _words(query)
    if not asked:
        return 0.0
    told = set(_words(content))
    score = sum(word in told for word in asked) / len(asked)
    return min(1.0, score + _SUBSTRING * (query.lower() in content.lower()))


def best(entries: Iterable[Entry], query: str, top_k: int) -> tuple[Found, ...]:
    """The `top_k` entries that answer best, those that were kept first before others as good."""
    scored = [Found(entry, relevance(query, entry.content)) for entry in entries]
    return tuple(sorted((found for found in scored if found.score > 0), key=lambda found: -found.score)[:top_k])


def _words(text: str) -> list[str]:
    return [word for part in text.lower().split() if (word := re.sub(r"\W", "", part))]


@dataclass(slots=True)
class InMemory:
    """Memories that last as long as this object."""

    clock: Callable[[], float] = time.time
    _entries: list[Entry] = field(default_factory=list[Entry])
    _added: int = 0

    async def add(self, owner: str, content: str, metadata: Mapping[str, Json]) -> Entry:
        """Keeps a text."""
        self._added += 1
        entry = Entry(str(self._added), owner, content, dict(metadata), self.clock())
        self._entries.append(entry)
        return entry

    async def search(self, owner: str, query: str, top_k: int) -> tuple[Found, ...]:
        """The owner's best entries."""
        return best((entry for entry in self._entries if entry.owner == owner), query, top_k)

    async def entries(self, owner: str | None = None) -> tuple[Entry, ...]:
        """What is kept, of one owner or of all, oldest first."""
        return tuple(entry for entry in self._entries if owner in (None, entry.owner))

    async def delete(self, id: str) -> bool:
        """Forgets an entry; False when there is none."""
        kept = [entry for entry in self._entries if entry.id != id]
        gone = len(kept) < len(self._entries)
        self._entries = kept
        return gone

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class SqliteMemory:
    """Memories in a SQLite file, which several processes may use at once. Each call opens the file anew, in a thread
    of its own, and has `seconds`."""

    path: Path
    seconds: float = 10.0
    clock: Callable[[], float] = time.time

    async def add(self, owner: str, content: str, metadata: Mapping[str, Json]) -> Entry:
        """Keeps a text. Raises sqlite3.Error or TimeoutError when the file does not take it."""
        at, told = self.clock(), json.dumps(dict(metadata), allow_nan=False)

        def insert(database: sqlite3.Connection) -> Entry:
            values = (owner, content, told, at)
            cursor = database.execute("INSERT INTO memories (owner, content, metadata, at) VALUES (?, ?, ?, ?)", values)
            return Entry(str(cursor.lastrowid), owner, content, dict(metadata), at)

        return await self._run(insert)

    async def search(self, owner: str, query: str, top_k: int) -> tuple[Found, ...]:
        """The owner's best entries."""
        return await self._run(lambda database: best(_stored(database, owner), query, top_k))

    async def entries(self, owner: str | None = None) -> tuple[Entry, ...]:
        """What is kept, of one owner or of all, oldest first."""
        return await self._run(lambda database: tuple(_stored(database, owner)))

    async def delete(self, id: str) -> bool:
        """Forgets an entry; False when there is none."""
        return await self._run(
            lambda database: database.execute("DELETE FROM memories WHERE id = ?", (id,)).rowcount > 0
        )

    async def close(self) -> None:
        """Nothing is held."""

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def opened() -> T:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=self.seconds)) as database, database:
                for statement in _SCHEMA:
                    database.execute(statement)
                return work(database)

        return await threaded(opened, self.seconds, f"memory in {self.path}")


def _stored(database: sqlite3.Connection, owner: str | None) -> Iterator[Entry]:
    select = "SELECT id, owner, content, metadata, at FROM memories WHERE ? IS NULL OR owner = ? ORDER BY id"
    for row in database.execute(select, (owner, owner)):
        yield Entry(str(row[0]), row[1], row[2], json.loads(row[3]), row[4])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Memories as they were at one time: the same for whoever reads them, and nobody adds to them."""

    memories: tuple[Entry, ...]
    digest: str
    """SHA-256 of the file they came from: a part of the environment's version."""

    def search(self, query: str, top_k: int) -> tuple[Found, ...]:
        """The best entries, whoever kept them."""
        return best(self.memories, query, top_k)


def write_snapshot(path: Path, entries: Iterable[Entry]) -> None:
    """Writes a snapshot, one entry a line as JSON. Blocks on the disk."""
    path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries))


def read_snapshot(path: Path, key: str) -> Snapshot:
    """Reads a snapshot that a configuration's `key` names. Raises UserError with the line that is no entry."""
    try:
        content = path.read_bytes()
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path}: expected a snapshot of memories; {describe(error)}") from error
    entries = tuple(_entry(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip())
    return Snapshot(entries, hashlib.sha256(content).hexdigest())


def _entry(where: str, line: str) -> Entry:
    try:
        told: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: expected an entry as JSON; {error.msg}") from None
    fields = cast(dict[str, Any], told) if isinstance(told, dict) else {}
    content, metadata = fields.get("content"), fields.get("metadata", {})
    if not isinstance(content, str) or not isinstance(metadata, dict):
        raise UserError(f"{where}: expected an entry with content, a text")
    kept = cast(dict[str, Json], metadata)
    at = fields.get("at", 0.0)
    return Entry(str(fields.get("id", "")), str(fields.get("owner", "")), content, kept, at if _number(at) else 0.0)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
