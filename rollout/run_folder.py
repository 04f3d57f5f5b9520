"""A run's folder: what it is a run of, who writes to it, and whether it may go on.

    RUN/run.yaml     identity, resolved configuration, digests of tasks and code; written once
    RUN/episodes/    the dataset
    RUN/.lock        held by the driver that is at work
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import yaml

from rollout.config import JobConfig
from rollout.errors import UserError

_FREE_SECTIONS = ("scheduler", "dataset")
_FREE_KEYS = (
    ("run", "dir"),
    ("resource", "hosts"),
    ("resource", "cpus_per_host"),
    ("resource", "verifier_processes"),
    ("model", "replicas"),
    ("model", "cpus_per_replica"),
    ("model", "max_in_flight"),
    ("model", "drain_seconds"),
    ("model", "start_seconds"),
    ("model", "kv_cache_gib"),
    ("model", "connections"),
    ("model", "retries"),
)
"""What may change between a run and its resumption: how fast, not what."""


@dataclass(frozen=True, slots=True)
class Run:
    """What run.yaml says."""

    run_id: str
    created: str
    config: dict[str, Any]
    digests: dict[str, str]
    """sha256 of what decides the rows besides the configuration: `tasks`, `resource`, `engine`."""
    forced: list[str] = field(default_factory=list[str])
    """Differences a resumption was told to accept."""

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.config["run"]["dir"])

    @property
    def episodes(self) -> str:
        """The dataset's folder, absolute: runners work elsewhere."""
        return str((self.path / "episodes").resolve())


def code_version() -> str:
    """Version of this package."""
    try:
        return version("rollout-engine")
    except PackageNotFoundError:
        return "unknown"


def create_or_resume(config: JobConfig, digests: dict[str, str], resume: bool, force: bool) -> Run:
    """The run this job belongs to: a new one in an empty folder, or the one that is there and is to go on.

    Raises UserError when the folder holds another run or anything else, when there is nothing to resume, or when
    configuration, tasks or code differ from the run's and `force` is not given.
    """
    folder = Path(config.run.dir)
    file = folder / "run.yaml"
    if not file.is_file():
        if resume:
            raise UserError(f"run.dir: {folder}: nothing to resume, there is no run.yaml")
        if folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
            raise UserError(f"run.dir: {folder}: is not empty and holds no run; give another folder")
        return _create(config, digests, folder)
    run = read_run(folder)
    if not resume:
        raise UserError(f"run.dir: {folder}: holds run {run.run_id} already; add --resume, or give another run.dir")
    return _resume(run, config, digests, force)


def read_run(folder: Path) -> Run:
    """What the folder's run.yaml says. Raises UserError when it has none."""
    file = folder / "run.yaml"
    if not file.is_file():
        raise UserError(f"{folder}: no run here: expected {file}")
    return Run(**yaml.safe_load(file.read_text()))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other drivers out of a run's folder. Raises UserError when one is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"run.dir: {folder}: process {file.read().strip()} is running it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _create(config: JobConfig, digests: dict[str, str], folder: Path) -> Run:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    run = Run(uuid4().hex[:8], now, config.model_dump(mode="json"), digests)
    _write(run, folder)
    return run


def _resume(run: Run, config: JobConfig, digests: dict[str, str], force: bool) -> Run:
    now = config.model_dump(mode="json")
    differences = [*_differences(_identity(run.config), _identity(now), ""), *_changed(run.digests, digests)]
    if differences and not force:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(f"run.dir: {config.run.dir}: cannot resume: {differences[0]}{more}; --force goes on all the same")
    if not differences:
        return Run(run.run_id, run.created, now, run.digests, run.forced)
    forced = Run(run.run_id, run.created, now, digests, [*run.forced, *differences])
    _write(forced, Path(config.run.dir))
    return forced


def _write(run: Run, folder: Path) -> None:
    """Whole or not at all: a run.yaml that is there can be read."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = ("run_id", "created", "config", "digests", "forced")
    text = yaml.safe_dump({name: getattr(run, name) for name in fields}, sort_keys=False, allow_unicode=True)
    new = folder / ".run.yaml.new"
    new.write_text(text)
    new.replace(folder / "run.yaml")


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: dict(section) for name, section in config.items() if name not in _FREE_SECTIONS}
    for section, key in _FREE_KEYS:
        kept.get(section, {}).pop(key, None)
    return kept


def _differences(old: Any, new: Any, place: str) -> Iterator[str]:
    """One line for each leaf that is not the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast(dict[str, Any], old), cast(dict[str, Any], new)
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), f"{place}.{key}" if place else key)
    elif old != new:
        yield f"{place} was {old!r}, is {new!r} now"


def _changed(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            before, after = old.get(name, "none")[:12], new.get(name, "none")[:12]
            yield f"the digest of {name} was {before}, is {after} now"
