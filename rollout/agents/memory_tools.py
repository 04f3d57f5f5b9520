"""An agent's memory: opened by scope for each episode, told at its start, and offered as tools.

    rollout          each attempt has memories of its own, which end with it. The snapshot is there too, to be read.
    group_readonly   all samples read the same snapshot and nobody keeps anything.
    user             memories last, and belong to a person: what an episode keeps, later ones find.

Only `user` makes an episode depend on those before it.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from rollout.agents.local_tools import LocalTools
from rollout.agents.memory import Found, InMemory, Memory, Snapshot, SqliteMemory, read_snapshot
from rollout.errors import ToolError, UserError, describe, nearest
from rollout.references import load_function
from rollout.sections import WHOLE, PathText, Section
from rollout.thread import threaded
from rollout.trajectory import Message

Scope = Literal["rollout", "group_readonly", "user"]
Inject = Literal["system", "user", "none"]
_SHIPPED = ("inmemory", "sqlite")


class MemoryConfig(Section):
    """What an agent remembers."""

    service: Annotated[str, Field(min_length=1)] = "inmemory"
    """`inmemory`, `sqlite`, or a class of your own as `module:Class`."""
    path: PathText | None = None
    """The file of `sqlite`."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of a class of your own."""
    scope: Scope = "rollout"
    """Who shares memories: nobody, the samples of a group but only to read, or all episodes of a user."""
    user: str = "default"
    """Whose memories they are with scope `user`, where nobody says it at the start of an episode."""
    top_k: PositiveInt = 5
    """How many memories are told at the start, and found where the policy names no number."""
    inject: Inject = "system"
    """Where the memories that suit the task are told at the start: in the system message, before what the user says, or
    not at all."""
    snapshot: PathText | None = None
    """A file of memories (JSON lines with content) that may be read and never change."""
    seconds: PositiveFloat = 10.0
    """What one look-up or entry may take."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.service == "sqlite" and self.path is None:
            raise PydanticCustomError(WHOLE, "memory.path: missing; service sqlite needs a file")
        if self.scope == "group_readonly" and self.snapshot is None:
            raise PydanticCustomError(WHOLE, "memory.snapshot: missing; scope group_readonly reads nothing else")
        return self


@dataclass(slots=True)
class EpisodeMemory:
    """The memory of one episode. `kept` is None where nothing may be kept."""

    owner: str
    config: MemoryConfig
    kept: Memory | None = None
    snapshot: Snapshot | None = None
    ends: bool = False
    """The memory ends with the episode."""

    async def recalled(self, query: str) -> str:
        """What the agent is told of its memories at the start; empty when none suits.

        Raises what the memory raises, and TimeoutError after `seconds`.
        """
        if self.config.inject == "none":
            return ""
        async with asyncio.timeout(self.config.seconds):
            found = await self._search(query, self.config.top_k)
        listed = "\n".join(f"{number}. {one.entry.content}" for number, one in enumerate(found, 1))
        return f"## Relevant Memories\n\nFrom earlier:\n\n{listed}" if found else ""

    def opening(self, messages: Sequence[Message], recalled: str) -> tuple[Message, ...]:
        """The opening messages with what `recalled` gave, where the configuration wants it."""
        if not recalled:
            return tuple(messages)
        role = self.config.inject
        places = [number for number, message in enumerate(messages) if message["role"] == role]
        if not places:
            return ({"role": role, "content": recalled}, *messages)
        # The system message is the first of its kind; what the user says now is the last.
        place = places[0] if role == "system" else places[-1]
        said = messages[place]["content"]
        content = f"{said}\n\n{recalled}" if role == "system" else f"{recalled}\n\n{said}"
        changed = cast(Message, {**messages[place], "content": content})
        return (*messages[:place], changed, *messages[place + 1 :])

    def tools(self) -> LocalTools:
        """`recall_memory`, and `save_memory` where something may be kept. Closing them closes the memory."""
        functions = (self._recall_memory(),) if self.kept is None else (self._save_memory(), self._recall_memory())
        return LocalTools.of(*functions, closes=self.close)

    async def close(self) -> None:
        """Ends memories that belong to the episode alone. Idempotent."""
        if self.ends and self.kept is not None:
            kept, self.kept = self.kept, None
            await kept.close()

    async def _search(self, query: str, top_k: int) -> list[Found]:
        found = list(self.snapshot.search(query, top_k)) if self.snapshot is not None else []
        if self.kept is not None:
            found += await self.kept.search(self.owner, query, top_k)
        return sorted(found, key=lambda one: -one.score)[:top_k]

    def _save_memory(self) -> Any:
        async def save_memory(seconds: float, content: str, metadata: dict[str, Any] | None = None) -> str:
            """Keep a fact for later.

            Args:
                content: The fact, as a sentence that can be understood by itself.
                metadata: Anything about it, as JSON.
            """
            if not content.strip():
                raise ToolError("content: expected a sentence, found nothing")
            if self.kept is None:
                raise ToolError("nothing can be kept any more")
            await self.kept.add(self.owner, _storable(content), _checked_metadata(metadata or {}))
            return "saved"

        return save_memory

    def _recall_memory(self) -> Any:
        async def recall_memory(seconds: float, query: str, top_k: int | None = None) -> str:
            """Find facts that were kept, by words.

            Args:
                query: Words to look for.
                top_k: How many facts at most.
            """
            found = await self._search(query, max(1, top_k or self.config.top_k))
            return "\n".join(f"{number}. {one.entry.content}" for number, one in enumerate(found, 1)) or "found nothing"

        return recall_memory


def _storable(text: str) -> str:
    """Half a surrogate pair, which JSON can write, is a character in Python but in no file."""
    return text.encode("utf-8", "replace").decode()


def _checked_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(metadata, allow_nan=False)
    except ValueError:  # pydantic reads NaN and Infinity, which no JSON has
        raise ToolError("metadata: expected JSON") from None
    return metadata


@dataclass(slots=True)
class Memories:
    """The memories of a job in one process: opens an episode's. See `open_memories`."""

    config: MemoryConfig
    make: Callable[[], Memory]
    snapshot: Snapshot | None = None
    shared: Memory | None = field(default=None, init=False)

    @property
    def digest(self) -> str | None:
        """What the snapshot was, for the run's record; None without one."""
        return self.snapshot.digest if self.snapshot is not None else None

    def open(self, owner: str, user: str | None = None) -> EpisodeMemory:
        """An episode's memory. `owner` names the attempt, and only it; `user` the person, with that scope."""
        config = self.config
        if config.scope == "group_readonly":
            return EpisodeMemory(owner, config, None, self.snapshot)
        if config.scope == "rollout":
            return EpisodeMemory(owner, config, self.make(), self.snapshot, ends=True)
        if self.shared is None:
            self.shared = self.make()
        return EpisodeMemory(user or config.user, config, self.shared, self.snapshot)

    async def close(self) -> None:
        """Closes what episodes share. Idempotent."""
        if self.shared is not None:
            shared, self.shared = self.shared, None
            await shared.close()


async def open_memories(config: MemoryConfig, key: str = "agent.memory") -> Memories:
    """Checks that the memory that section `key` describes can be used, and reads its snapshot.

    Raises UserError for a class that is no memory, a file that SQLite cannot use, a snapshot that cannot be read.
    """
    named = config.snapshot
    snapshot = None
    if named is not None:
        reading = f"{key}.snapshot"
        snapshot = await threaded(lambda: read_snapshot(Path(named), reading), config.seconds, reading)
    memories = Memories(config, await _maker(config, key), snapshot)
    if config.service not in _SHIPPED and config.scope != "group_readonly":
        await _tried(memories.make, f"{key}.service: {config.service}", config.seconds)
    return memories


async def _maker(config: MemoryConfig, key: str) -> Callable[[], Memory]:
    if config.service == "inmemory":
        return InMemory
    if config.service == "sqlite":
        assert config.path is not None, "it was validated"
        sqlite = SqliteMemory(Path(config.path), config.seconds)
        try:
            await sqlite.delete("")
        except (sqlite3.Error, OSError) as error:  # a deadline that passed is an OSError too
            raise UserError(f"{key}.path: {config.path}: expected a SQLite file; {describe(error)}") from error
        return lambda: sqlite
    if ":" not in config.service:
        raise UserError(f"{key}.service: {config.service!r}: no such memory{nearest(config.service, _SHIPPED)}")
    own = load_function(config.service, f"{key}.service")
    return lambda: cast(Memory, own(**config.options))


async def _tried(make: Callable[[], Memory], where: str, seconds: float) -> None:
    try:
        memory = make()
        lacking = [name for name in ("add", "search", "close") if not callable(getattr(memory, name, None))]
        if lacking:
            raise UserError(f"{where}: expected a class with add, search and close; it has no {', '.join(lacking)}")
        async with asyncio.timeout(seconds):
            await memory.close()
    except UserError:
        raise
    except Exception as error:  # a person's own code, before a start
        raise UserError(f"{where}: cannot be made and closed: {describe(error)}") from error
