"""Log lines that say which run, episode and turn they are about.

Whoever plays an episode says so once for its task (`about`). Records that are written while it runs, also those a
resource's own code makes in a tool, then have the attributes `run`, `episode`, `attempt` and `turn`, which Ray's
formatters append to a line of text and make keys of a line of JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

Ids = tuple[str, str, int, int]
"""Run, episode, attempt and turn; a plain tuple, for it travels with every call to a host."""

_OURS = ("rollout", "actors", "resources")
_NAMES = ("run", "episode", "attempt", "turn")
_ids: ContextVar[Ids | None] = ContextVar("rollout_ids", default=None)


def about(ids: Ids | None) -> None:
    """Log lines of this task, and of those it starts from now on, are about this; None ends it."""
    _ids.set(ids)


@contextmanager
def within(ids: Ids) -> Generator[None]:
    """Log lines of the block are about this."""
    before = _ids.set(ids)
    try:
        yield
    finally:
        _ids.reset(before)


def turn(number: int) -> None:
    """From now on they are about this turn of the episode."""
    if (ids := _ids.get()) is not None:
        _ids.set((*ids[:3], number))


def ids() -> Ids | None:
    """What log lines are about here; None outside of episodes."""
    return _ids.get()


def mark_lines() -> None:
    """Lets the root logger's handlers, as they are now, write the ids. For a process that plays or serves episodes.

    Debug lines are written of our own code only: those of HTTP and cloud libraries hold headers, and so keys.
    """
    root = logging.getLogger()
    for handler in root.handlers:
        handler.addFilter(_mark)
    if root.level == logging.DEBUG:
        root.setLevel(logging.INFO)
        for package in _OURS:
            logging.getLogger(package).setLevel(logging.DEBUG)


def _mark(record: logging.LogRecord) -> bool:
    """Adds the ids; whoever made the record with attributes of these names keeps theirs."""
    if (ids := _ids.get()) is not None:
        for name, value in zip(_NAMES, ids, strict=True):
            if not hasattr(record, name):
                setattr(record, name, value)
    return True
