"""`rollout replay`: a run's episodes against their environment, every difference on a line of its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import msgspec
from rich.console import Console

from rollout.database import Database, opened
from rollout.episode_view import visible
from rollout.recorded import Played, judged_batches, played
from rollout.recorded_world import Code, Load, Recorded, recorded
from rollout.replaying import Departure, World, compare
from rollout.storage import Place
from rollout.window import windowed

_encode = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says."""

    resource: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    episodes: int | None = None
    environment: str | None = None
    concurrency: int = 64
    as_json: bool = False


@dataclass(slots=True)
class Replays:
    """What became of the episodes that were played again."""

    episodes: int = 0
    calls: int = 0
    differing: int = 0
    """Episodes."""
    kinds: Counter[str] = field(default_factory=Counter[str])
    """Differences by what differs."""


def replay_run(run: Place, asked: Asked, load: Load, code: Code, console: Console | None = None) -> bool:
    """Plays a run's judged episodes against its environment, or the one that is asked for; prints every difference.

    True when there is none. Raises UserError for what does not fit.
    """
    console = console or Console(highlight=False)
    told = recorded(run, asked.environment)
    told.require_plain("cannot be replayed")
    with told.world(asked.resource, asked.options, load, code) as (world, digest), opened(run) as database:
        if not asked.as_json:
            _warn(console, told, asked.resource, digest)
        found = asyncio.run(_replay(console, database, told, world, asked))
    if not asked.as_json:
        _print_result(console, found)
    return not found.differing


async def _replay(console: Console, database: Database, told: Recorded, world: World, asked: Asked) -> Replays:
    found = Replays()
    batches = _batches(database, told, asked.episodes)
    async with aclosing(windowed(batches, partial(_compared, world), asked.concurrency)) as ended:
        async for episode, departures in ended:
            found.episodes += 1
            found.calls += sum(len(turn.uses) for turn in episode.turns)
            found.differing += bool(departures)
            for one in departures:
                found.kinds[one.what] += 1
                line = _encode(asdict(one)).decode() if asked.as_json else visible(f"{one.episode_id} {one}")
                console.out(line, highlight=False)
    return found


async def _compared(world: World, episode: Played) -> tuple[Played, tuple[Departure, ...]]:
    return episode, await compare(world, episode)


def _batches(database: Database, told: Recorded, most: int | None) -> Iterator[Sequence[Played]]:
    rows = (row for table in judged_batches(database.files()) for row in table.to_pylist())
    end = told.end_task
    mine = (row for row in rows if row["task_index"] >= told.first_task and (end is None or row["task_index"] < end))
    wanted = islice(mine, most)
    while batch := list(islice(wanted, 64)):
        yield [played(row, told.seed) for row in batch]


def _warn(console: Console, told: Recorded, resource: str | None, digest: str) -> None:
    """Reasons for differences that are known beforehand."""
    if resource is None and told.digest not in (None, digest):
        console.print(f"the resource's code was {str(told.digest)[:12]} when these were played, is {digest[:12]} now")
    for line in told.run.forced:
        if line.startswith("run.seed "):
            console.print(f"the run was forced to go on: {line}; what was played before had other seeds")


def _print_result(console: Console, found: Replays) -> None:
    played_again = f"{found.episodes:,} episodes with {found.calls:,} tool calls played again"
    if not found.differing:
        console.print(f"{played_again}: all as recorded")
        return
    kinds = ", ".join(f"{what} {times:,}" for what, times in found.kinds.most_common())
    console.print(f"{played_again}: {found.differing:,} are not as recorded: {kinds}", soft_wrap=True, markup=False)
