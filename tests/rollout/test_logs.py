"""Log lines that name their episode."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator

import pytest

from rollout import logs

log = logging.getLogger("a.resource.of.somebody")
FORMAT = "%(message)s %(run)s %(episode)s %(attempt)s %(turn)s"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the root logger's only handler writes."""
    text, root = io.StringIO(), logging.getLogger()
    handler, before, level = logging.StreamHandler(text), root.handlers, root.level
    names: dict[str, str] = dict.fromkeys(("run", "episode", "attempt", "turn"), "-")
    handler.setFormatter(logging.Formatter(FORMAT, defaults=names))
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logs.mark_lines()
    yield text
    root.handlers = before
    root.setLevel(level)


async def play(episode: str, gate: asyncio.Barrier) -> None:
    logs.about(("run", episode, 1, 0))
    await gate.wait()
    log.info("seeded")
    logs.turn(1)
    await gate.wait()
    await asyncio.create_task(tool())


async def tool() -> None:
    log.info("called")


async def test_lines_of_episodes_at_once_each_name_their_own(written: io.StringIO) -> None:
    gate = asyncio.Barrier(3)
    await asyncio.gather(*(asyncio.create_task(play(name, gate)) for name in "abc"))
    log.info("idle")
    lines = written.getvalue().splitlines()
    assert sorted(lines[:-1]) == [
        f"{said} run {name} 1 {turn}" for said, turn in (("called", 1), ("seeded", 0)) for name in "abc"
    ]
    assert lines[-1] == "idle - - - -"


async def test_what_a_line_brings_itself_stays(written: io.StringIO) -> None:
    logs.about(("run", "a", 1, 0))
    log.info("mine", extra={"turn": "seventh"})
    logs.about(None)
    assert written.getvalue() == "mine run a 1 seventh\n"


def test_debug_lines_are_those_of_our_own_code(written: io.StringIO) -> None:
    ours, root = logging.getLogger("rollout"), logging.getLogger()
    level = ours.level
    root.setLevel(logging.DEBUG)
    try:
        logs.mark_lines()
        logging.getLogger("httpcore.http11").debug("Authorization: Bearer sk-1")
        logging.getLogger("rollout.episode").debug("a turn")
        log.info("a tool")
    finally:
        for package in ("rollout", "actors", "resources"):
            logging.getLogger(package).setLevel(level)
    assert written.getvalue() == "a turn - - - -\na tool - - - -\n"


async def test_outside_of_episodes_there_is_no_turn() -> None:
    logs.turn(3)
    assert logs.ids() is None
