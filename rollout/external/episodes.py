"""The episodes that programs are playing now, by the token that opens each."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Protocol

from rollout.external.captured import CapturedEpisode
from rollout.trajectory import ToolCall, ToolResult, ToolSpec

_BYTES = 24


class Tools(Protocol):
    """The tools of an episode's environment."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What may be called."""
        ...

    async def call(self, call: ToolCall) -> ToolResult:
        """Calls one, whatever the call is. Never raises for what is wrong with it."""
        ...


@dataclass(frozen=True, slots=True)
class Open:
    """What a token opens."""

    scribe: CapturedEpisode
    tools: Tools


@dataclass(slots=True)
class OpenEpisodes:
    """See Episodes. A token is drawn for each attempt at an episode and worth nothing when that has ended."""

    _open: dict[str, Open] = field(default_factory=dict[str, Open])

    def open(self, scribe: CapturedEpisode, tools: Tools) -> str:
        """The episode's token."""
        token = secrets.token_urlsafe(_BYTES)
        self._open[token] = Open(scribe, tools)
        return token

    def close(self, token: str) -> None:
        """It opens nothing any more."""
        if (found := self._open.pop(token, None)) is not None:
            found.scribe.close()

    def find(self, token: str) -> CapturedEpisode | None:
        """See Episodes."""
        found = self._open.get(token)
        return None if found is None else found.scribe

    def tools(self, token: str) -> Tools | None:
        """The tools of the environment of the episode that this token opens."""
        found = self._open.get(token)
        return None if found is None else found.tools
