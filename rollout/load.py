"""What an engine says about itself: the scheduler paces by it, the metrics show it."""

from __future__ import annotations

from dataclasses import dataclass


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
