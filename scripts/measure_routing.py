"""Where calls go, on real engines: four replicas of the bundled model on Ray Serve, and multi-turn episodes.

    python scripts/measure_routing.py [--episodes 192]

The same episodes are played in turn by several ways to route: all on one replica, which is what the others are held
against, round robin, the one of two that has fewer calls (power of two), and `rollout.serving.routing`. Each has a salt
of its own, so none finds what another has computed. `cached`: share of prompt tokens that the replicas had computed.
`of ideal`: that share over the one on a single replica, of the same round. `balance`: tokens that the busiest replica
computed (of prompts, what was not cached, and all that was sampled) over the mean, of the calls that ended before the
last episode began, or of all where all begin at once. `moved`: calls on another replica than the call before.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from measuring.talks import Played, Shape, Steered, play
from rich.console import Console
from rich.table import Table

from actors.connection import connect, disconnect
from actors.model import deploy, undeploy
from actors.served_policy import ServedPolicy
from rollout.config import validate
from rollout.serving.routing import Route, Router, Why
from rollout.template import BUNDLED, load_template
from rollout.trajectory import Prompt, Turn


@dataclass(slots=True)
class Chosen(Router):
    """Another way to route, which takes no notice of sessions."""

    choose: Callable[[dict[str, int]], str] = min
    """From calls under way by replica."""

    def route(self, session: str, group: str | None, now: float) -> Route | None:
        """See Router."""
        name = self.choose({name: replica.under_way for name, replica in self._replicas.items()})
        self._replicas[name].under_way += 1
        return Route(name, Why.PLACED)


def round_robin() -> Router:
    """One after the other."""
    turn = itertools.count()
    return Chosen(choose=lambda calls: sorted(calls)[next(turn) % len(calls)])


def power_of_two() -> Router:
    """Of two that are drawn, the one with fewer calls."""
    random = np.random.default_rng(0)

    def choose(calls: dict[str, int]) -> str:
        return min(random.choice(sorted(calls), 2), key=lambda name: calls[name])

    return Chosen(choose=choose)


WAYS: dict[str, Callable[[], Router]] = {
    "one replica": Router,
    "round robin": round_robin,
    "power of two": power_of_two,
    "router": Router,
}


def figures(played: Played) -> dict[str, float]:
    """What was found cached, how even the work was, and how long it took."""
    cached = prompts = moved = calls = 0
    work = defaultdict[str, float](float)
    last = max(played.began) + min(one.started_at for one in played.episodes)
    at_once = max(played.began) < 1.0
    for episode in played.episodes:
        ends = np.cumsum([turn.model_seconds for turn in episode.turns]) + episode.started_at
        for number, turn in enumerate(episode.turns):
            completion = turn.completion
            cached += completion.cached_tokens or 0
            prompts += completion.prompt_tokens or 0
            calls += 1
            moved += number > 0 and completion.replica != episode.turns[number - 1].completion.replica
            if at_once or ends[number] < last:
                work[completion.replica] += computed(turn)
    busy = list(work.values())
    return {
        "cached": cached / prompts,
        "balance": max(busy) / (sum(busy) / len(busy)),
        "moved": moved / calls,
        "seconds": played.seconds,
    }


def computed(turn: Turn) -> int:
    """Tokens that went through the model."""
    completion = turn.completion
    return (completion.prompt_tokens or 0) - (completion.cached_tokens or 0) + completion.num_sampled


async def measure(handle: Any, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """All ways, in turn, every round with other episodes."""
    template = load_template(BUNDLED)
    shape = Shape(options.turns, options.spread, 24, 32, 160, options.tool, options.system, options.opening)
    found = defaultdict[str, list[dict[str, float]]](list)
    routes = Counter[str]()
    for number in range(options.rounds):
        for name, new_router in WAYS.items():
            slots = 1 if name == "one replica" else options.replicas
            policy = ServedPolicy(handle, slots, router=new_router())
            salt = f"{number} {name}"

            def change(prompt: Prompt, salt: str = salt) -> Prompt:
                return replace(prompt, salt=salt)

            steered = Steered(policy, 32, change)
            groups = options.episodes // options.each
            played = await play(steered, template, shape, groups, options.each, options.at_once, number, salt)
            found[name].append(figures(played))
            if name == "router":
                routes.update(policy.take_routed())
    print(f"the router's calls: {dict(routes)}")
    return found


def show(found: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Medians over the rounds; shares of the ideal and balance with their range."""
    table = Table("routing", "cached", "of ideal", "balance", "moved", "seconds")
    ideal = [one["cached"] for one in found["one replica"]]
    for name, rounds in found.items():
        of_ideal = [one["cached"] / best for one, best in zip(rounds, ideal, strict=True)]
        balance = [one["balance"] for one in rounds]
        table.add_row(
            name,
            f"{median(one['cached'] for one in rounds):.1%}",
            f"{median(of_ideal):.3f} ({min(of_ideal):.3f}-{max(of_ideal):.3f})",
            "" if name == "one replica" else f"{median(balance):.2f} ({min(balance):.2f}-{max(balance):.2f})",
            f"{median(one['moved'] for one in rounds):.1%}",
            f"{median(one['seconds'] for one in rounds):.1f}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{options.replicas} replicas, {options.episodes} episodes in groups of {options.each}, {options.at_once} at "
        f"once, {options.turns:g} turns in the mean (sigma {options.spread:g}), {options.rounds} rounds, median (range)"
    )


async def main(options: argparse.Namespace) -> None:
    """Starts the replicas and plays."""
    model = {
        "engine": "vllm",
        "replicas": options.replicas,
        "cpus_per_replica": 1 / options.replicas,
        "kv_cache_gib": options.kv_gib,
    }
    config = validate({"run": {"dir": "unused"}, "model": model, "resource": {"name": "counter"}}, "measure_routing")
    handle = await deploy(config, "measure-routing", tell=print)
    try:
        show(await measure(handle, options), options)
    finally:
        await asyncio.wait_for(asyncio.to_thread(undeploy, "measure-routing"), 120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--each", type=int, default=4, help="episodes of a group")
    parser.add_argument("--at-once", type=int, default=64, help="episodes")
    parser.add_argument("--turns", type=float, default=6.0, help="of an episode in the mean")
    parser.add_argument("--spread", type=float, default=0.5, help="sigma of the log-normal of that")
    parser.add_argument("--tool", type=float, default=0.2, help="seconds a tool takes in the mean")
    parser.add_argument("--system", type=int, default=1500, help="characters that all episodes share")
    parser.add_argument("--opening", type=int, default=1000, help="characters that a group shares")
    parser.add_argument("--kv-gib", type=float, default=0.5, help="KV cache of a replica")
    parser.add_argument("--rounds", type=int, default=3)
    connect("local")
    try:
        asyncio.run(main(parser.parse_args()))
    finally:
        disconnect()
