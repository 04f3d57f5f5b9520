"""`rollout bench`: what the engine itself costs a turn.

A scripted model answers at once, so all that is left is ours: episodes, tokens, tool calls, rows. CPU time of every
process is read before the first lease and after the last commit. Two ways to the model: an OpenAI-compatible
endpoint on loopback, and replicas on Ray Serve. The model's own processes are left out, Ray's and Serve's own are
shown apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from actors.cluster import Cluster, started
from actors.connection import connect, disconnect
from actors.driver import Driver
from actors.setting import Names
from resources.catalog import load_resource
from rollout.config import JobConfig, validate
from rollout.dataset import Committer
from rollout.live import Live
from rollout.progress import Done
from rollout.scheduling import Scheduler, samples
from rollout.tally import Tally
from rollout.tasks import read_tasks

ADD = '<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
SUBMIT = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
GROUPS = (
    ("ray::EpisodeRunner", "runners"),
    ("ray::ResourceHost", "hosts"),
    ("ray::ServeReplica", "model"),
    ("rollout.scripted_endpoint", "model"),
    ("ray::ServeController", "serve"),
    ("ray::ProxyActor", "serve"),
    ("ray::", "ray"),
    ("gcs_server", "ray"),
    ("raylet", "ray"),
    ("ray/", "ray"),
)
OURS = ("driver", "runners", "hosts", "verifiers")
APART = {"Serve's controller and proxies": "serve", "Ray's own processes": "ray", "the model's processes": "model"}


def bench(paths: tuple[str, ...], episodes: int, in_flight: int, turns: int) -> None:
    """Runs the benchmark over each path, one after the other, and prints one table."""
    lines = [ADD] * (turns - 1) + [SUBMIT]
    measured: dict[str, dict[str, str]] = {}
    for path in paths:
        with tempfile.TemporaryDirectory() as folder, _model(path, lines) as model:
            config = _config(folder, model, episodes, in_flight, turns)
            connect("local")
            try:
                measured[path] = asyncio.run(_measure(config))
            finally:
                disconnect()
    table = Table("CPU ms a turn", *(f"through {path}" for path in paths))
    for name in next(iter(measured.values())):
        table.add_row(name, *(measured[path][name] for path in paths))
    console = Console()
    console.print(table)
    console.print(f"{episodes} episodes, {in_flight} at once, {turns} turns, one tool call a turn; rows committed.")
    console.print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")


@contextmanager
def _model(path: str, lines: list[str]) -> Iterator[dict[str, Any]]:
    """The model section of the job, and the endpoint process where one is needed."""
    if path == "serve":
        yield {"engine": "scripted", "turns": lines, "max_in_flight": 4096}
        return
    command = [sys.executable, "-m", "rollout.scripted_endpoint", "--port", "0", "--lines", *lines]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[-1]
            yield {"engine": "openai", "base_url": url, "name": "scripted"}
        finally:
            server.terminate()


def _config(folder: str, model: dict[str, Any], episodes: int, in_flight: int, turns: int) -> JobConfig:
    tree = {
        "run": {"dir": folder, "limits": {"max_turns": turns}},
        "model": model,
        "resource": {"name": "counter", "options": {"count": episodes, "target": turns - 1}},
        "scheduler": {"in_flight": in_flight},
    }
    return validate(tree, "bench")


async def _measure(config: JobConfig) -> dict[str, str]:
    table = str(Path(config.run.dir) / "episodes")
    async with started(config, "bench", table) as cluster, _runner(cluster) as runner:
        await _play(config, runner, Committer(table, "warm-up"), "warm-up", 2 * config.scheduler.in_flight)
        before, began = _cpu(), time.monotonic()
        tally = await _play(config, runner, Committer(table, "bench"), "bench", None)
        seconds, after = time.monotonic() - began, _cpu()
    each = {group: 1000 * (after[group] - before[group]) / tally.turns for group in after}
    ours = sum(each.get(group, 0.0) for group in OURS)
    figures = {**{f"  {group}": each.get(group, 0.0) for group in OURS}, "ours": ours}
    figures |= {name: each.get(group, 0.0) for name, group in APART.items()}
    shown = {name: f"{figure:.2f}" for name, figure in figures.items()}
    rows = DeltaTable(table).to_pyarrow_dataset().count_rows(filter=pc.field("run_id") == "bench")
    return shown | {"turns/s (wall)": f"{tally.turns / seconds:,.0f}", "rows on disk": f"{rows:,}"}


@asynccontextmanager
async def _runner(cluster: Cluster) -> AsyncIterator[Any]:
    runner = cluster.new_runner("bench")
    await runner.start.remote()
    try:
        yield runner
    finally:
        cluster.end_runner(runner)


async def _play(config: JobConfig, runner: Any, committer: Committer, run_id: str, count: int | None) -> Tally:
    resource = load_resource(config.resource.name, config.resource.options)
    tasks = read_tasks(config.tasks.model_copy(update={"count": count}), resource, 0)
    scheduler = Scheduler(samples(tasks, run_id, 1, 0, Done(), 1), config.scheduler.in_flight, 1)
    with Live(every=3600.0) as live:
        driver = Driver(
            scheduler=scheduler,
            committer=committer,
            new_runner=lambda name: runner,
            end_runner=lambda runner: None,
            live=live,
            names=Names("counter", "agent", "scripted"),
            total=None,
            start_seconds=60.0,
            silent_seconds=config.scheduler.silent_seconds,
        )
        await driver.run(1)
    return driver.tally


def _cpu() -> dict[str, float]:
    """CPU seconds by group, over this process and all that descend from it."""
    me = psutil.Process()
    spent: dict[str, float] = defaultdict(float)
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            spent[_group(process, me)] += times.user + times.system
    return spent


def _group(process: psutil.Process, me: psutil.Process) -> str:
    if process == me:
        return "driver"
    line = " ".join(process.cmdline())
    for mark, group in GROUPS:
        if mark in line:
            return group
    return "verifiers" if "spawn_main" in line else "ray"
