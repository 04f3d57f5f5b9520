"""The sessions of a job: which one an episode or a chat begins with, and what of it is kept.

A chat goes on in the session it names. An episode never does: it begins with a copy of the session that its task names,
so that no sample learns what another one said, and every attempt begins alike. The copy ends with the episode, whose
row has all of it, or is kept as a session of its own, EPISODE.ATTEMPT, where `keep_rollouts` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.agents.conversation_stores import ConversationsConfig, Store, open_store
from rollout.agents.conversations import Conversation, Header, checked_id, selected
from rollout.agents.open_session import OpenSession, taken_up, unanswered
from rollout.errors import BoundaryError, UserError, boundary, nearest
from rollout.trajectory import Failure, FailureKind, Lease

_LISTED = 1000
"""Ids among which the nearest is looked for."""


@dataclass(frozen=True, slots=True)
class StoredSessions:
    """See `open_sessions`."""

    config: ConversationsConfig
    store: Store
    app: str
    """Name of the agent that new sessions are with."""

    async def named(self, id: str) -> OpenSession:
        """The session to go on in: what is said next is written behind it. One that is not there begins.

        Raises UserError for an id that is none, for a session of another user, and for one that cannot be read.
        """
        found = await self._load(checked_id(id))
        if found is None:
            return OpenSession(id, self.app, self.config.user, log=self.store, seconds=self.config.seconds)
        if found.user != self.config.user:
            raise UserError(f"session {id} is of user '{found.user}'; agent.sessions.user is '{self.config.user}'")
        return self._opened(found)

    async def of_rollout(self, lease: Lease) -> OpenSession:
        """The session of an attempt at an episode. Raises BoundaryError of kind seed when the one that its task names
        is not there or cannot be read."""
        own = f"{lease.episode_id}.{lease.attempt}"
        base = OpenSession(own, self.app, self.config.user, seconds=self.config.seconds)
        try:
            async with boundary(FailureKind.SEED, "session", 3 * self.config.seconds):
                if self.config.keep_rollouts:  # a run that was resumed counts its attempts anew
                    await self.store.delete(own)
                if (name := lease.task.data.get(self.config.task_key)) is not None:
                    base = self._opened(await self._there(name))
        except UserError as error:  # one task's, not the job's
            raise BoundaryError(Failure(FailureKind.SEED, "session", str(error))) from error
        return await base.copied(own, self.store if self.config.keep_rollouts else None)

    async def listed(self) -> Sequence[Header]:
        """Those of the user, the last that were spoken in first."""
        async with boundary(FailureKind.SEED, "sessions", 2 * self.config.seconds):
            return selected(await self.store.headers(), user=self.config.user)
        raise AssertionError("a boundary swallows nothing")

    async def _there(self, name: object) -> Conversation:
        if not isinstance(name, str):
            raise UserError(f"data.{self.config.task_key}: expected a session's id, found {type(name).__name__}")
        if (found := await self._load(checked_id(name))) is None:
            known = [header.id for header in (await self.store.headers())[:_LISTED]]
            raise UserError(f"data.{self.config.task_key}: there is no session '{name}'{nearest(name, known)}")
        return found

    async def _load(self, id: str) -> Conversation | None:
        async with boundary(FailureKind.SEED, f"session {id}", 2 * self.config.seconds):
            return await self.store.load(id)
        raise AssertionError("a boundary swallows nothing")

    def _opened(self, found: Conversation) -> OpenSession:
        history = taken_up(found.messages, self.config.history)
        return OpenSession(
            found.id,
            found.app,
            found.user,
            history,
            dict(found.state),
            self.store,
            found.events,
            found.under_way and unanswered(history),
            self.config.seconds,
        )


async def open_sessions(config: ConversationsConfig, app: str, key: str = "agent.sessions") -> StoredSessions:
    """The sessions that section `key` describes. Raises UserError when their place cannot be used."""
    return StoredSessions(config, await open_store(config, key), app)
