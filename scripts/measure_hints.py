"""What the episode loop's own hints buy where model calls wait for an engine: late turns first, or as they come.

    python scripts/measure_hints.py [--vllm]

One replica with fewer places than there are episodes at once, in this process: the scripted engine, whose completions
take a drawn time, or with --vllm the bundled model. The same episodes are played with hints and without, in turn.
`episode`: seconds of an episode in the mean, its waits for the engine included. `all`: seconds until the last ended.
`first half`: seconds until half of them had ended.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from measuring.talks import Played, Shape, Steered, play
from rich.console import Console
from rich.table import Table

from actors.engine import Engine, ScriptedEngine
from actors.model import ModelReplica
from actors.served_policy import ServedPolicy
from rollout.config import VllmConfig
from rollout.template import BUNDLED, load_template
from rollout.trajectory import Prompt

SAMPLED = 32


def shape_of(options: argparse.Namespace) -> Shape:
    """Long tails, quick tools."""
    return Shape(options.turns, options.spread, 40, SAMPLED, 100, options.tool, system=200)


def served(engine: Engine, options: argparse.Namespace) -> ServedPolicy:
    """A policy over one replica here."""
    replica = ModelReplica(lambda: engine, options.places, 1.0, priority_seconds=options.priority_seconds)
    handle: Any = SimpleNamespace(exchange=SimpleNamespace(remote=replica.exchange))
    handle.options = lambda session_id: handle
    return ServedPolicy(handle, 1)


def engine_of(options: argparse.Namespace) -> Engine:
    """What samples."""
    if not options.vllm:
        line = load_template(BUNDLED).encode("I add one to the total and look at what it is now. " * 4)
        return ScriptedEngine([line], options.latency, 0.5, options.seed)
    from actors.vllm_engine import VllmEngine, check_config

    config = VllmConfig(
        kv_cache_gib=options.kv_mib / 1024, max_in_flight=options.places, priority_seconds=options.priority_seconds
    )
    return cast(Engine, VllmEngine(config, check_config(config), options.seed))


async def main(options: argparse.Namespace) -> None:
    """Plays and prints."""
    template, engine = load_template(BUNDLED), engine_of(options)
    policy = served(engine, options)
    found: dict[bool, list[Played]] = {True: [], False: []}
    for number in range(options.rounds):
        for hints in (True, False) if number % 2 else (False, True):
            name = f"{number}-{hints}"  # another salt: neither finds what the other has computed

            def change(prompt: Prompt, hints: bool = hints, name: str = name) -> Prompt:
                return replace(prompt, priority=prompt.priority if hints else 0, salt=name)

            steered = Steered(policy, SAMPLED, change)
            played = await play(
                steered, template, shape_of(options), options.groups, options.each, options.at_once, number, name
            )
            found[hints].append(played)
    await engine.stop()
    show(found, options)


def show(found: dict[bool, list[Played]], options: argparse.Namespace) -> None:
    """A line an arm, in the mean over rounds, and their ratio, with that of each round."""
    table = Table("calls", "episode", "first half", "all", "waiting", "cached")
    lines = {hints: [figures(played) for played in rounds] for hints, rounds in found.items()}
    for hints, name in ((False, "as they come"), (True, "late turns first")):
        middle = [mean(column) for column in zip(*lines[hints], strict=True)]
        table.add_row(name, *(f"{value:.1f} s" for value in middle[:4]), f"{middle[4]:.1%}")
    cells: list[str] = []
    for with_, without in zip(zip(*lines[True], strict=True), zip(*lines[False], strict=True), strict=True):
        each = [one / other if other else 1.0 for one, other in zip(with_, without, strict=True)]
        cells.append(f"{sum(with_) / sum(without) if sum(without) else 1.0:.2f} ({min(each):.2f}-{max(each):.2f})")
    table.add_row("ratio", *cells)
    console = Console(width=120)
    console.print(table)
    turns = sum(len(one.turns) for one in found[True][0].episodes)
    console.print(
        f"{options.groups * options.each} episodes with {turns} turns, {options.at_once} at once, {options.places} "
        f"places, {options.priority_seconds:g} s a turn of priority, {options.rounds} rounds"
    )


def figures(played: Played) -> tuple[float, ...]:
    """As the table's columns."""
    turns = [turn for one in played.episodes for turn in one.turns]
    ends = sorted(one.finished_at for one in played.episodes)
    first = min(one.started_at for one in played.episodes)
    waiting = float(np.mean([one.seconds.queue for one in played.episodes]))
    cached = sum(turn.completion.cached_tokens or 0 for turn in turns)
    prompts = sum(turn.completion.prompt_tokens or 0 for turn in turns)
    return played.mean_seconds, ends[len(ends) // 2] - first, played.seconds, waiting, cached / prompts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vllm", action="store_true", help="the bundled model instead of the scripted engine")
    parser.add_argument("--groups", type=int, default=24)
    parser.add_argument("--each", type=int, default=4, help="episodes of a group")
    parser.add_argument("--at-once", type=int, default=48, help="episodes")
    parser.add_argument("--places", type=int, default=12, help="calls at work at once")
    parser.add_argument("--turns", type=float, default=6.0, help="of an episode in the mean")
    parser.add_argument("--spread", type=float, default=0.7, help="sigma of the log-normal of that")
    parser.add_argument("--tool", type=float, default=0.1, help="seconds a tool takes in the mean")
    parser.add_argument("--latency", type=float, default=0.3, help="seconds a completion of the scripted engine takes")
    parser.add_argument("--kv-mib", type=float, default=256.0, help="KV cache of vLLM")
    parser.add_argument("--priority-seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(main(parser.parse_args()))
