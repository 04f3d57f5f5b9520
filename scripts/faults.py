#!/usr/bin/env python
"""Runs many seeded jobs, breaks things while they run, and checks what must hold.

    python scripts/faults.py --runs 200 --seed 0

Every run is a `rollout run` on a Ray cluster of several nodes on this machine, with a scripted model behind Ray Serve
and a resource that writes its sessions down. What is broken in a run follows from its seed alone and is printed; the
moments are real and vary. Exit status 1 when anything did not hold; the folders of such runs are kept.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import click
from fault_runs.nodes import Nodes, cluster
from fault_runs.plan import KINDS, Plan, plan
from fault_runs.run import FaultRun, Outcome, totals
from rich.console import Console
from rich.table import Table


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the first run; the next ones follow it.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="At once, a cluster each.")
@click.option("--workers", type=click.IntRange(min=2), default=3, show_default=True, help="Nodes besides the head.")
@click.option("--only", multiple=True, type=click.Choice(sorted(KINDS)), help="Draw only from these faults.")
@click.option("--keep", type=click.Path(path_type=Path), help="Where runs with violations are kept.")
@click.option("--json", "as_json", is_flag=True, help="The figures for programs, on stdout.")
def main(
    runs: int, seed: int, jobs: int, workers: int, only: tuple[str, ...], keep: Path | None, as_json: bool
) -> None:
    """Breaks things while jobs run, and checks what must hold."""
    began = time.monotonic()
    kinds = [kind for kind in KINDS if kind in only or not only]
    folder = Path(tempfile.mkdtemp(prefix="ro-", dir="/tmp"))  # short: Ray puts sockets into it
    series = _Series(runs, kinds, keep or folder.with_name(f"{folder.name}-kept"), keep_all=keep is not None)
    try:
        series.play(seed, jobs, workers, folder)
    except KeyboardInterrupt:
        click.echo("stopped; this is what was played", err=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures = {**totals(series.outcomes), "wall_seconds": round(time.monotonic() - began, 1)}
    if as_json:
        click.echo(json.dumps(figures))
    else:
        Console().print(_table(figures))
    sys.exit(1 if figures["violations"] else 0)


class _Series:
    """All runs of a command."""

    def __init__(self, runs: int, kinds: list[str], kept: Path, keep_all: bool) -> None:
        self._runs = runs
        self._kinds = kinds
        self._kept = kept
        self._keep_all = keep_all
        self.outcomes: list[Outcome] = []
        self._began = time.monotonic()
        self._printing = threading.Lock()

    def play(self, seed: int, jobs: int, workers: int, folder: Path) -> None:
        """Plays the runs, `jobs` at once. A Ctrl-C lets those at work end."""
        with ExitStack() as clusters, ThreadPoolExecutor(jobs) as threads:
            free: SimpleQueue[Nodes] = SimpleQueue()
            for number in range(jobs):
                (home := folder / f"ray-{number}").mkdir()
                free.put(clusters.enter_context(cluster(home, workers)))
            self._began = time.monotonic()
            for _ in threads.map(lambda seed: self._one(seed, free, folder), range(seed, seed + self._runs)):
                pass  # raises what a run raised

    def _one(self, seed: int, free: SimpleQueue[Nodes], folder: Path) -> None:
        planned, own = plan(seed, self._kinds), folder / f"run-{seed}"
        nodes = free.get()
        try:
            outcome = self._played(planned, nodes, own)
        finally:
            free.put(nodes)
        with self._printing:
            self.outcomes.append(outcome)
            self._tell(outcome)
        if outcome.violations or self._keep_all:
            shutil.copytree(own, self._kept / own.name, dirs_exist_ok=True)
        shutil.rmtree(own, ignore_errors=True)

    def _played(self, planned: Plan, nodes: Nodes, own: Path) -> Outcome:
        try:
            outcome = FaultRun(planned, nodes, own).play()
        except Exception:  # of this script: the next run is to be played all the same
            outcome = Outcome(planned, violations=[f"the fault driver itself: {traceback.format_exc()}"])
        if outcome.violations:
            nodes.renew()  # whatever is wrong with it is not to spoil the next run
        return outcome

    def _tell(self, outcome: Outcome) -> None:
        done = len(self.outcomes)
        left = (time.monotonic() - self._began) / done * (self._runs - done)
        for line in _lines(outcome):
            click.echo(line, err=True)
        if outcome.violations:
            click.echo(f"  kept in {self._kept / f'run-{outcome.plan.seed}'}", err=True)
        click.echo(f"  {done} of {self._runs} runs, about {left / 60:.0f} min left", err=True)


def _lines(outcome: Outcome) -> Iterator[str]:
    yield str(outcome.plan)
    missed = f"; too late for {', '.join(outcome.missed)}" if outcome.missed else ""
    sessions = outcome.sessions
    yield (
        f"  {outcome.rows} rows ({outcome.retried} retried, {outcome.failed} failed), exits {outcome.exits}, sessions "
        f"{sessions.opened} = {sessions.closed} closed + {sessions.died} died; {outcome.seconds:.0f} s{missed}"
    )
    for violation in outcome.violations:
        yield f"  VIOLATION {violation}"


def _table(figures: dict[str, object]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in figures.items():
        shown = ", ".join(f"{kind} {count}" for kind, count in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name.replace("_", " "), shown)
    return table


if __name__ == "__main__":
    main()
