"""What engines and resource hosts say about themselves: the scheduler paces by it, the metrics show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

FRESH_SECONDS = 15.0
"""A replica with work of ours is heard of every few seconds; one that was silent so long has none, or is gone."""

_Told = TypeVar("_Told")


@dataclass(frozen=True, slots=True)
class Load:
    """One replica's engine at one moment."""

    running: int
    """Completions being sampled."""
    waiting: int
    """Completions that wait for a place in the engine or before it."""
    kv_usage: float
    """Share of the KV cache in use, 0 to 1."""
    preemptions: int
    """Completions thrown out of the KV cache to be computed again, since the engine started."""


@dataclass(frozen=True, slots=True)
class HostLoad:
    """One resource host at one moment."""

    open: int
    """Sessions open."""
    expired: int
    """Sessions it had to close at the end of their time, since it started: nobody else had."""
    offloaded: int
    """Verifier calls in its processes, or waiting for one."""


@dataclass(slots=True)
class Heard(Generic[_Told]):
    """The newest word of each part, by name, as long as it is fresh. The clock is passed in, in seconds."""

    fresh_seconds: float = FRESH_SECONDS
    _told: dict[str, tuple[float, _Told]] = field(default_factory=dict[str, tuple[float, _Told]])

    def hear(self, told: Mapping[str, _Told], now: float) -> None:
        """Takes news in."""
        for name, word in told.items():
            self._told[name] = (now, word)

    def fresh(self, now: float) -> dict[str, _Told]:
        """What still holds; what does not is forgotten."""
        self._told = {name: entry for name, entry in self._told.items() if now - entry[0] < self.fresh_seconds}
        return {name: word for name, (_, word) in self._told.items()}
