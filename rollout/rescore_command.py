"""`rollout rescore`: what was asked becomes a version, its progress and what it changed are printed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rollout.errors import UserError
from rollout.recorded_world import Code, Load, Recorded, recorded
from rollout.replaying import World
from rollout.rescoring import Judged, judge_of, rescore
from rollout.run_folder import code_version
from rollout.score_diff import count_judged, print_diff
from rollout.scores import RECORDED, Version, check_name, create, find, versions
from rollout.storage import Place


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says."""

    resource: str | None
    options: Mapping[str, Any]
    weights: str | None
    name: str | None
    base: str
    environment: str | None
    concurrency: int


def rescore_run(run: Place, asked: Asked, load: Load, code: Code, console: Console | None = None) -> Version:
    """Judges a run again as asked and prints what changed; the version that has the scores.

    A version that is made with the same goes on where it stopped. Raises UserError for what does not fit.
    """
    console = console or Console(highlight=False)
    told = recorded(run, asked.environment)
    if asked.resource is None and asked.options:
        raise UserError(f"{next(iter(asked.options))}=...: options are the resource's; add --resource")
    if asked.resource is not None and asked.base != RECORDED:
        raise UserError("--base: only without --resource: a verifier needs no earlier score")
    with ExitStack() as stack:
        world, digest = None, None
        if asked.resource is not None:
            world, digest = stack.enter_context(told.world(asked.resource, asked.options, load, code))
            _check(world)
            if world.rescores == "replay":
                told.require_plain("cannot be judged again by replay")
        version, new = _version(run, asked, told, digest)
        if world is None:
            _check_weights(run, version)
        if new:
            create(run, version)
        result = _judge(run, version, told, world, asked.concurrency)
    _print_result(console, version, result)
    print_diff(console, run, version.base, version.name)
    return version


def list_versions(run: Place, console: Console | None = None) -> None:
    """Prints the versions of a run's scores. Raises UserError when there is no run."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in ("scores", "episodes", "failed", "reward", "made with", "created"):
        table.add_column(name, justify="right" if name in ("episodes", "failed", "reward") else "left")
    for version in (None, *versions(run)):
        count = count_judged(run, version)
        mean = "-" if count["mean"] is None else f"{count['mean']:.3f}"
        name, made = (RECORDED, "") if version is None else (version.name, _made_with(version))
        created = "" if version is None else version.created
        table.add_row(name, f"{count['judged']:,}", f"{count['failed']:,}", mean, made, created)
    console.print(table)


def print_difference(run: Place, first: str, second: str, console: Console | None = None) -> None:
    """Prints what differs between two versions. Raises UserError when there is no run or no such version."""
    print_diff(console or Console(highlight=False), run, first, second)


def _check(world: World) -> None:
    if world.rescores is None:
        why = "its class does not say how, in `rescores`"
        raise UserError(f"--resource: {world.resource} cannot judge an episode again: {why}")


def _version(run: Place, asked: Asked, told: Recorded, digest: str | None) -> tuple[Version, bool]:
    """The version that was asked for, and whether it is new."""
    here = versions(run)
    names = {version.name for version in here}
    number = next(n for n in range(1, len(names) + 2) if f"score-{n}" not in names)
    base = find(run, asked.base)
    wanted = Version(
        name=check_name(asked.name) if asked.name is not None else f"score-{number}",
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        resource=asked.resource,
        options=told.options(asked.resource, asked.options) if asked.resource is not None else {},
        weights=parse_weights(asked.weights) if asked.weights is not None else None,
        base=RECORDED if base is None else base.name,
        environment=told.environment,
        first_task=told.first_task,
        end_task=told.end_task,
        code=digest,
        engine=code_version(),
    )
    for version in here:
        if version.name == wanted.name or asked.name is None:
            differing = _differing(version, wanted)
            if differing is None:
                return version, False
            if asked.name is not None:
                raise UserError(f"--name: {wanted.name}: is there, made otherwise: {differing}; give another name")
    return wanted, True


def _differing(one: Version, other: Version) -> str | None:
    before, after = one.made_with(), other.made_with()
    name = next((name for name in before if before[name] != after[name]), None)
    return None if name is None else f"{name} was {before[name]!r}, is {after[name]!r}"


def parse_weights(text: str) -> dict[str, float]:
    """`a=1,b=0.5` as numbers by name. Raises UserError for anything else."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = float("nan")
        if not equals or not name.strip() or weight - weight != 0.0:
            raise UserError(f"--weights: {part!r}: expected NAME=NUMBER, as in correct=1,brief=0.2")
        found[name.strip()] = weight
    return found


def _check_weights(run: Place, version: Version) -> None:
    """A misspelt component is told before anything is written."""
    known = count_judged(run, None if version.base == RECORDED else find(run, version.base), components=True)
    for name in version.weights or {}:
        if name not in known["components"]:
            there = ", ".join(known["components"]) or "none"
            raise UserError(f"--weights: the {version.base} scores have no component '{name}'; there are: {there}")


def _judge(run: Place, version: Version, told: Recorded, world: World | None, concurrency: int) -> Judged:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(version.name, total=count_judged(run, None)["judged"])

        def hear(so_far: Judged) -> None:
            progress.update(bar, completed=so_far.before + so_far.scored + so_far.failed)

        work = rescore(run, version, judge_of(version, world), told.seed, concurrency, told.attempts, hear)
        return asyncio.run(work)


def _print_result(console: Console, version: Version, result: Judged) -> None:
    before = f", {result.before:,} were there" if result.before else ""
    console.print(f"{version.name}: {result.scored:,} judged, {result.failed:,} failed{before}", soft_wrap=True)
    for said, times in result.failures.items():
        console.print(f"  {times:,} x {said}", style="red", markup=False, soft_wrap=True)


def _made_with(version: Version) -> str:
    options = " ".join(f"{name}={value}" for name, value in version.options.items())
    weights = ",".join(f"{name}={weight:g}" for name, weight in (version.weights or {}).items())
    parts = [version.environment and f"{version.environment}:", version.resource or f"{version.base}", options, weights]
    return " ".join(part for part in parts if part)
