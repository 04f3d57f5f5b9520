"""What a process needs to hold thousands of episodes: files for their connections, and a patient garbage collector."""

from __future__ import annotations

import gc
import resource

_YOUNG, _MIDDLE, _OLD = 500_000, 10, 10_000
"""Allocations before the youngest objects are looked at; how many such looks before the middle ones are, and so on."""


def open_many_files() -> None:
    """Lifts the limit on open files as far as it goes: a connection is a file to the system, whose usual limit of
    1,024 is far below what is in flight."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def collect_rarely() -> None:
    """Leaves what is there now out of every later garbage collection, and all but ends full ones.

    A full collection walks everything that is alive. With 6,000 episodes in flight that took half of a runner's CPU
    and stopped its event loop for a second at a time; looking at young objects every 20,000 allocations took another
    seventh, as most of what an episode allocates lives as long as it does (decisions/0013). Episodes leave hardly any
    cycles behind, and the young ones are still found; Ray collects in full where a node is short of memory.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
