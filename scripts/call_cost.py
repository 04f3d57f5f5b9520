"""What one turn costs by the way it travels: `python scripts/call_cost.py`.

A turn is a prompt of 2,000 token ids as int32 bytes, answered by the scripted engine. Four ways, in turn, in one run:
a bare call of an actor's method, the same through `actors.courier`, a bare call of a Ray Serve handle, and the
courier over the handle, which is what the engine uses. CPU time is the caller's, and that of all processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from actors.connection import connect, disconnect
from actors.courier import Courier, Mailbox
from actors.engine import GenerateRequest, ScriptedEngine, pack_ids
from rollout.trajectory import Sampling

Call = Callable[[GenerateRequest], Awaitable[Any]]
PROMPT = pack_ids(range(2000))
LINES = [list(range(100))]
LOADS = ((64, 0.0, 4000), (1000, 1.0, 4000))
"""In flight, seconds a turn takes, turns."""


class Target:
    """An engine that is called plainly, or through a mailbox."""

    def __init__(self, latency: float) -> None:
        self._engine = ScriptedEngine(LINES, latency, 0.0, 0)
        self._mailbox = Mailbox(self._engine.generate)

    async def generate(self, request: GenerateRequest) -> Any:
        return await self._engine.generate(request)

    async def exchange(self, client: str, letters: bytes, hold: float) -> bytes:
        return await self._mailbox.exchange(client, letters, hold)


async def spend(call: Call, in_flight: int, turns: int) -> tuple[float, float]:
    """CPU ms a turn: this process, and all."""
    left = iter(range(turns))

    async def one() -> None:
        for number in left:
            await call(GenerateRequest(str(number), str(number), 0, PROMPT, 100, Sampling()))

    mine, all_of_them = time.process_time(), total()
    await asyncio.gather(*(one() for _ in range(in_flight)))
    return 1000 * (time.process_time() - mine) / turns, 1000 * (total() - all_of_them) / turns


def total() -> float:
    """CPU seconds of this process and everything below it."""
    spent = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


async def measure(in_flight: int, latency: float, turns: int, rounds: int) -> None:
    """All ways, one after the other, `rounds` times; prints a line a way."""
    actor: Any = ray.remote(Target).options(max_concurrency=10_000, num_cpus=0).remote(latency)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    deployment = serve.deployment(Target, max_ongoing_requests=10_000, logging_config=quiet)
    handle: Any = await asyncio.to_thread(serve.run, deployment.bind(latency), name="cost", route_prefix=None)
    ways: dict[str, Call] = {
        "actor, bare call": actor.generate.remote,
        "actor, courier": Courier(actor.exchange.remote, "actor").ask,
        "Serve handle, bare call": handle.generate.remote,
        "Serve handle, courier": Courier(handle.exchange.remote, "replica").ask,
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in ways.values():
        await spend(way, in_flight, in_flight)
    for _ in range(rounds):
        for name, way in ways.items():
            seen[name].append(await spend(way, in_flight, turns))
    print(
        f"\n{in_flight} in flight, turns of {latency:g} s: CPU ms a turn, caller / all processes (median of {rounds})"
    )
    for name, spent in seen.items():
        caller, everyone = (statistics.median(column) for column in zip(*spent, strict=True))
        print(f"  {name:24} {caller:5.2f} / {everyone:5.2f}", flush=True)
    await asyncio.to_thread(partial(serve.delete, "cost"))
    ray.kill(actor)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    connect("local")
    serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False))
    try:
        for in_flight, latency, turns in LOADS:
            asyncio.run(measure(in_flight, latency, turns, rounds))
        print(f"\nRay {ray.__version__}, {os.cpu_count()} cores")
    finally:
        disconnect()


if __name__ == "__main__":
    main()
