"""`rollout bench`: what the engine itself costs, and what it holds.

A scripted model answers after a fixed latency, so all that is left is ours: episodes, tokens, tool calls, rows. CPU
time of every process is read before the first lease and after the last commit; memory is looked at while it runs.
Two ways to the model: an OpenAI-compatible endpoint on loopback, and replicas on Ray Serve. The model's own processes
are left out, Ray's and Serve's own are shown apart.
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
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow.compute as pc
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from actors.cluster import Cluster, started
from actors.connection import connect, disconnect
from actors.driver import Driver
from actors.keeper import Keeper
from actors.setting import Job, Names
from resources.catalog import load_resource
from rollout.agents.guardrails import Pass
from rollout.agents.pricing import PriceConfig, PricingConfig
from rollout.agents.rates import RateConfig
from rollout.config import AgentConfig, JobConfig, validate
from rollout.dataset import Committer
from rollout.live import Live
from rollout.progress import Done
from rollout.scheduling import Scheduler, samples
from rollout.tasks import read_tasks
from rollout.thread import threaded

ADD = '<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
SUBMIT = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
START_SECONDS = 60.0
"""What the runner may take to start."""
GROUPS = (
    ("ray::EpisodeRunner", "runners"),
    ("ray::ResourceHost", "hosts"),
    ("ray::_Restarting", "limits"),
    ("ray::ServeReplica", "model"),
    ("rollout.scripted_endpoint", "model"),
    ("ray::ServeController", "serve"),
    ("ray::ProxyActor", "serve"),
    ("ray::", "ray"),
    ("gcs_server", "ray"),
    ("raylet", "ray"),
    ("ray/", "ray"),
)
OURS = ("driver", "runners", "hosts", "verifiers", "limits")
APART = {"Serve's controller and proxies": "serve", "Ray's own processes": "ray", "the model's processes": "model"}
WARM_UP = 64
"""Episodes played before anything is measured: imports, compiled code paths, Serve's routes. Connections and sessions
of the measured episodes are not warmed up."""
LOOK_SECONDS = 5.0
"""How often memory is looked at; a look reads a few files of each process."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Asked:
    """What the benchmark asks of the engine."""

    episodes: int
    in_flight: int
    turns: int
    latency: float
    """Seconds a completion takes."""
    runners: int
    hosts: int

    @property
    def ideal(self) -> float:
        """Seconds it takes when nothing but the model takes time."""
        return self.turns * self.latency * -(-self.episodes // self.in_flight)


def bench(paths: tuple[str, ...], asked: Asked, rounds: int | None = None, compared: str = "turns") -> None:
    """Runs the benchmark over each path, one after the other, and prints one table.

    With `rounds` it plays all episodes so many times with what is `compared` and so many times without, in turn, and
    shows what it costs.
    """
    lines = [ADD] * (asked.turns - 1) + [SUBMIT]
    measured: dict[str, Measured] = {}
    for path in paths:
        with tempfile.TemporaryDirectory() as folder, _model(path, lines, asked) as model:
            config = _config(folder, model, asked)
            connect("local")
            try:
                measured[path] = asyncio.run(
                    _compare(config, asked, rounds, compared) if rounds else _measure(config, asked)
                )
            finally:
                disconnect()
    console = Console()
    table = Table("CPU ms a turn", *(f"through {path}" for path in paths))
    for name in next(iter(measured.values())).figures:
        table.add_row(name, *(measured[path].figures[name] for path in paths))
    console.print(table)
    for path in paths:
        if curve := measured[path].curve:
            console.print(f"driver, through {path}: {curve}", soft_wrap=True)
    console.print(
        f"{asked.episodes:,} episodes, {asked.in_flight:,} at once, {asked.turns} turns of {asked.latency:g} s, "
        f"one tool call a turn; rows committed. Runners: {asked.runners}, hosts: {asked.hosts}.",
        soft_wrap=True,
    )
    console.print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")


@contextmanager
def _model(path: str, lines: list[str], asked: Asked) -> Iterator[dict[str, Any]]:
    """The model section of the job, and the endpoint process where one is needed."""
    if path == "serve":
        yield {"engine": "scripted", "turns": lines, "max_in_flight": asked.in_flight, "latency_seconds": asked.latency}
        return
    command = [sys.executable, "-m", "rollout.scripted_endpoint", f"--latency={asked.latency}", "--lines", *lines]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[-1]
            yield {"engine": "openai", "base_url": url, "name": "scripted"}
        finally:
            server.terminate()


def _config(folder: str, model: dict[str, Any], asked: Asked) -> JobConfig:
    options = {"count": WARM_UP + asked.episodes, "target": asked.turns - 1}
    tree = {
        "run": {"dir": folder, "limits": {"max_turns": asked.turns}},
        "model": model,
        "resource": {"name": "counter", "options": options, "hosts": asked.hosts},
        "scheduler": {"in_flight": asked.in_flight, "runners": asked.runners},
    }
    return validate(tree, "bench")


@dataclass(frozen=True, slots=True)
class Measured:
    """What was seen on one path."""

    figures: dict[str, str]
    curve: str = ""
    """The driver's memory while episodes end."""


async def _measure(config: JobConfig, asked: Asked) -> Measured:
    table = str(Path(config.run.dir) / "episodes")
    idle = _memory()
    async with started(config, "bench", table) as cluster, _runners(cluster, asked.runners) as runners:
        await _player(config, runners, table, "warm-up", WARM_UP).run(asked.runners)
        driver = _player(config, runners, table, "bench", asked.episodes)
        looks = Looks(driver)
        looking = asyncio.create_task(looks.go_on())
        before, began = _cpu(), time.monotonic()
        await driver.run(asked.runners)
        seconds, after = time.monotonic() - began, _cpu()
        looking.cancel()
    tally = driver.tally
    each = {group: 1000 * (after[group] - before[group]) / tally.turns for group in after}
    ours = sum(each.get(group, 0.0) for group in OURS)
    figures = {**{f"  {group}": each.get(group, 0.0) for group in OURS}, "ours": ours}
    figures |= {name: each.get(group, 0.0) for name, group in APART.items()}
    shown = {name: f"{figure:.2f}" for name, figure in figures.items()}
    rows = DeltaTable(table).to_pyarrow_dataset().count_rows(filter=pc.field("run_id") == "bench")
    shown |= {"turns/s (wall)": f"{tally.turns / seconds:,.0f}", "rows on disk": f"{rows:,}"}
    if asked.latency:
        shown |= {"makespan": f"{seconds:.1f} s", "to the ideal": f"{seconds / asked.ideal:.2f} of {asked.ideal:g} s"}
    shown |= looks.figures(sum(idle.values()) - idle["driver"])
    return Measured(shown, looks.curve())


async def observed(*told: Any) -> None:
    """A hook that looks and says nothing."""


async def passed(*judged: Any) -> Pass:
    """A guardrail that lets everything pass."""
    return Pass()


AGENT: dict[str, Any] = {
    "hooks": {
        name: "actors.bench:observed" for name in ("after_llm_call", "on_tool_call", "on_tool_result", "on_stop")
    },
    "guardrails": [
        {"name": at, "at": at, "check": "actors.bench:passed"}
        for at in ("input", "output", "tool_input", "tool_output")
    ],
    "retry": {},
}
"""An agent that uses what every model call and every tool call goes through."""


def _with(job: Job, compared: str, there: bool) -> Job:
    """The job with what is compared, or without it."""
    config = job.config
    if compared == "turns":
        run = config.run.model_copy(update={"keep_turns": there})
        return replace(job, config=config.model_copy(update={"run": run}))
    agent = AgentConfig.model_validate(AGENT) if there else AgentConfig()
    pricing = PricingConfig(models={"scripted": PriceConfig(input=1.0, output=1.0)} if there else {})
    return replace(
        job,
        config=config.model_copy(update={"agent": agent, "pricing": pricing}),
        rates=job.rates if there else None,
    )


async def _compare(config: JobConfig, asked: Asked, rounds: int, compared: str) -> Measured:
    """Medians over the rounds: what else runs on the machine hits both sides alike."""
    if compared == "agent":  # nobody ever waits for these limits: what is measured is the asking
        config = config.model_copy(update={"rate_limits": {"default": RateConfig(rps=1e9, burst=1e9)}})
    table = str(Path(config.run.dir) / "episodes")
    costs: dict[bool, list[float]] = {True: [], False: []}
    async with started(config, "bench", table) as cluster, AsyncExitStack() as stack:
        runners: dict[bool, list[Any]] = {}
        for kept in costs:
            job = _with(cluster.job, compared, kept)
            runners[kept] = await stack.enter_async_context(_runners(Cluster(job, cluster.mender, []), asked.runners))
        for number in range(-1, rounds):  # the first one warms up
            for kept in (True, False) if number % 2 else (False, True):
                driver = _player(config, runners[kept], table, f"bench-{number}-{kept}", asked.episodes)
                before = _cpu()
                await driver.run(asked.runners)
                after = _cpu()
                spent = sum(after.get(group, 0.0) - before.get(group, 0.0) for group in OURS)
                costs[kept] += [1000 * spent / driver.tally.turns] if number >= 0 else []
    with_turns, without = median(costs[True]), median(costs[False])
    names = ("turns kept", "turns not kept") if compared == "turns" else ("agent", "plain agent")
    shown = {f"ours, {name}": f"{ms:.3f}" for name, ms in zip(names, (with_turns, without), strict=True)}
    ratios = sorted(one / other for one, other in zip(costs[True], costs[False], strict=True))
    shown |= {"ratio": f"{with_turns / without:.3f}", "ratio by round": f"{ratios[0]:.3f} to {ratios[-1]:.3f}"}
    return Measured(shown)


@asynccontextmanager
async def _runners(cluster: Cluster, count: int) -> AsyncIterator[list[Any]]:
    runners = [cluster.new_runner(f"bench-{number}") for number in range(count)]
    async with asyncio.timeout(START_SECONDS):
        await asyncio.gather(*(runner.start.remote() for runner in runners))
    try:
        yield runners
    finally:
        for runner in runners:
            cluster.end_runner(runner)


def _player(config: JobConfig, runners: list[Any], table: str, run_id: str, count: int) -> Driver:
    """A driver of `count` episodes over runners that outlive it."""
    counter = config.environments[""]
    resource = load_resource(counter.name, counter.options)
    tasks = read_tasks(config.tasks.model_copy(update={"count": count}), resource, 0)
    free = list(runners)
    return Driver(
        scheduler=Scheduler(samples(tasks, run_id, 1, 0, Done(), 1), config.scheduler.in_flight, 1),
        keeper=Keeper(Committer(table, run_id), config.dataset),
        new_runner=lambda name: free.pop(),
        end_runner=lambda runner: None,
        live=Live(every=3600.0),
        names=Names.of(config),
        total=None,
        start_seconds=START_SECONDS,
        silent_seconds=config.scheduler.silent_seconds,
    )


@dataclass(slots=True)
class Looks:
    """Memory, looked at while a driver works."""

    driver: Driver
    _peak: dict[str, float] = field(default_factory=dict[str, float])
    _driver: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """Episodes that have ended, and MiB of the driver then."""

    async def go_on(self) -> None:
        """Looks again and again until it is cancelled."""
        while True:
            memory = await threaded(_memory, LOOK_SECONDS, "memory")
            self._driver.append((self.driver.tally.episodes, memory["driver"]))
            if sum(memory.values()) > sum(self._peak.values()):
                self._peak = memory
            await asyncio.sleep(LOOK_SECONDS)

    def figures(self, idle: float) -> dict[str, str]:
        """The most that was in use at once, above Ray alone; this process counts as ours."""
        peak = self._peak
        shown = {f"  MiB {group}": f"{peak.get(group, 0.0):,.0f}" for group in (*OURS, "model", "serve", "ray")}
        return {"MiB above idle Ray": f"{sum(peak.values()) - idle:,.0f}", **shown}

    def curve(self) -> str:
        """A dozen points of the driver's memory against episodes that have ended."""
        step = -(-len(self._driver) // 12)
        return "  ".join(f"{mib:,.0f} MiB at {episodes:,}" for episodes, mib in self._driver[::step])


def _cpu() -> dict[str, float]:
    """CPU seconds by group, over this process and all that descend from it."""
    spent: dict[str, float] = defaultdict(float)
    for process, group in _processes():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            spent[group] += times.user + times.system
    return spent


def _memory() -> dict[str, float]:
    """MiB by group. What processes share counts in parts, so that the sum is what they take of the machine."""
    held: dict[str, float] = defaultdict(float)
    for process, group in _processes():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            held[group] += process.memory_full_info().pss / MIB
    return held


def _processes() -> Iterator[tuple[psutil.Process, str]]:
    me = psutil.Process()
    yield me, "driver"
    for process in me.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            yield process, _group(" ".join(process.cmdline()))


def _group(line: str) -> str:
    for mark, group in GROUPS:
        if mark in line:
            return group
    return "verifiers" if "spawn_main" in line else "ray"
