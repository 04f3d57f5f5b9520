"""Where responses are kept that requests may go on from, so that any replica of a gateway finds them.

Each keeps what it added to the conversation and which one it goes on from. A conversation that nobody has gone on with
for `keep_seconds` is forgotten as a whole, all its branches with it.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import msgspec

from rollout.thread import threaded
from rollout.turn import Message

T = TypeVar("T")

MONTH = 30 * 86400.0
"""As long as OpenAI keeps them."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One response: what was asked in it, what was answered, and its body as the client got it."""

    id: str
    previous: str | None
    messages: tuple[Message, ...]
    """The request's new messages and the reply; no instructions."""
    body: dict[str, Any]


class ResponseStore(Protocol):
    """Responses by their id."""

    async def put(self, kept: Kept) -> None:
        """Keeps a response."""
        ...

    async def chain(self, id: str) -> tuple[Kept, ...]:
        """The response and those before it, oldest first; empty when it or one before it is not kept."""
        ...

    async def delete(self, id: str) -> bool:
        """Forgets a response: False when there is none. Those that go on from it have no beginning then."""
        ...


def conversation(chain: tuple[Kept, ...]) -> tuple[Message, ...]:
    """All that was said up to the last response of a chain."""
    return tuple(message for kept in chain for message in kept.messages)


@dataclass(slots=True)
class MemoryResponses:
    """Responses that last as long as this object. For one gateway, or behind whatever many gateways share."""

    keep_seconds: float = MONTH
    clock: Callable[[], float] = time.time
    _kept: dict[str, tuple[str, Kept]] = field(default_factory=dict[str, tuple[str, Kept]])
    _used: dict[str, float] = field(default_factory=dict[str, float])
    """When a conversation was gone on with, by its first response; the longest unused comes first."""

    async def put(self, kept: Kept) -> None:
        """Keeps a response."""
        self._forget()
        root = self._kept[kept.previous][0] if kept.previous in self._kept else kept.id
        self._kept[kept.id] = (root, kept)
        self._used.pop(root, None)
        self._used[root] = self.clock()

    async def chain(self, id: str) -> tuple[Kept, ...]:
        """The response and those before it."""
        self._forget()
        found: list[Kept] = []
        at: str | None = id
        while at is not None:
            if at not in self._kept:
                return ()
            found.append(self._kept[at][1])
            at = found[-1].previous
        return tuple(reversed(found))

    async def delete(self, id: str) -> bool:
        """Forgets a response."""
        self._forget()
        return self._kept.pop(id, None) is not None

    def _forget(self) -> None:
        old = self.clock() - self.keep_seconds
        roots: set[str] = set()
        for root, used in self._used.items():
            if used >= old:
                break
            roots.add(root)
        if roots:
            self._kept = {id: entry for id, entry in self._kept.items() if entry[0] not in roots}
            self._used = {root: used for root, used in self._used.items() if root not in roots}


_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, previous TEXT, root TEXT NOT NULL, messages BLOB NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS responses_by_root ON responses (root);
CREATE TABLE IF NOT EXISTS roots (root TEXT PRIMARY KEY, used REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS roots_by_use ON roots (used);
"""
_CHAIN = """
WITH RECURSIVE chain (id, previous, messages, body, depth) AS (
    SELECT id, previous, messages, body, 0 FROM responses WHERE id = ?
    UNION ALL
    SELECT r.id, r.previous, r.messages, r.body, chain.depth + 1
    FROM responses r JOIN chain ON r.id = chain.previous)
SELECT id, previous, messages, body FROM chain ORDER BY depth DESC
"""
_messages = msgspec.json.Decoder(tuple[dict[str, Any], ...])


@dataclass(slots=True)
class SqliteResponses:
    """Responses in a SQLite file, which all processes of one machine may use at once.

    One connection a process, made when it is first needed. Every call raises TimeoutError when the file does not answer
    within `seconds`, and sqlite3.Error when it cannot be used.
    """

    path: Path
    keep_seconds: float = MONTH
    seconds: float = 10.0
    clock: Callable[[], float] = time.time
    _database: sqlite3.Connection | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def put(self, kept: Kept) -> None:
        """Keeps a response, in a transaction of its own."""
        messages, body = msgspec.json.encode(kept.messages), msgspec.json.encode(kept.body)

        def insert(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            self._forget(database)
            row = database.execute("SELECT root FROM responses WHERE id = ?", (kept.previous,)).fetchone()
            root = row[0] if row is not None else kept.id
            told = (kept.id, kept.previous, root, messages, body)
            database.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?)", told)
            database.execute("INSERT OR REPLACE INTO roots VALUES (?, ?)", (root, self.clock()))

        await self._run(insert)

    async def chain(self, id: str) -> tuple[Kept, ...]:
        """The response and those before it."""

        def read(database: sqlite3.Connection) -> list[tuple[str, str | None, bytes, bytes]]:
            alive = "SELECT 1 FROM responses JOIN roots USING (root) WHERE id = ? AND used >= ?"
            if database.execute(alive, (id, self.clock() - self.keep_seconds)).fetchone() is None:
                return []
            return database.execute(_CHAIN, (id,)).fetchall()

        rows = await self._run(read)
        if not rows or rows[0][1] is not None:  # the oldest goes on from one that is gone
            return ()
        return tuple(
            Kept(
                found,
                previous,
                cast(tuple[Message, ...], _messages.decode(messages)),
                msgspec.json.decode(body),
            )
            for found, previous, messages, body in rows
        )

    async def delete(self, id: str) -> bool:
        """Forgets a response."""
        remove = "DELETE FROM responses WHERE id = ?"
        return await self._run(lambda database: database.execute(remove, (id,)).rowcount > 0)

    async def close(self) -> None:
        """Closes this process's connection; the next call makes another."""

        def shut() -> None:
            with self._lock:
                if self._database is not None:
                    self._database.close()
                    self._database = None

        await threaded(shut, self.seconds, f"responses in {self.path}")

    def _forget(self, database: sqlite3.Connection) -> None:
        old = "FROM roots WHERE used < ?"
        when = (self.clock() - self.keep_seconds,)
        if database.execute(f"SELECT 1 {old} LIMIT 1", when).fetchone() is not None:
            database.execute(f"DELETE FROM responses WHERE root IN (SELECT root {old})", when)
            database.execute(f"DELETE {old}", when)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def locked() -> T:
            with self._lock:
                if self._database is None:
                    self._database = self._opened()
                with self._database:
                    return work(self._database)

        return await threaded(locked, self.seconds, f"responses in {self.path}")

    def _opened(self) -> sqlite3.Connection:
        # Readers are not kept waiting by a writer; what a power cut takes is answers, not the file.
        database = sqlite3.connect(self.path, timeout=self.seconds, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(_SCHEMA)
        return database
