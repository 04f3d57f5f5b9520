"""A run's folder: what it is a run of, who writes to it, and whether it may go on.

RUN/run.yaml     identity, resolved configuration, digests of tasks and code; written once
RUN/episodes/    the dataset
RUN/turns/       finished turns of the episodes in flight; gone when the run has ended well
RUN/.lock        held by the driver that is at work; not on an object store (decisions/0009)
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import yaml

from rollout.config import JobConfig
from rollout.errors import RolloutError, UserError, describe
from rollout.storage import Place, absolute, folder, inside, is_remote

_FREE_SECTIONS = ("scheduler", "dataset", "logs", "rate_limits", "gateway")
_FREE_KEYS = (
    ("run", "dir"),
    ("run", "keep_turns"),
    ("model", "replicas"),
    ("model", "cpus_per_replica"),
    ("model", "max_in_flight"),
    ("model", "drain_seconds"),
    ("model", "start_seconds"),
    ("model", "kv_cache_gib"),
    ("model", "connections"),
    ("model", "retries"),
    ("cost", "job_usd"),
    ("agent", "retry"),
)
_FREE_OF_A_RESOURCE = ("hosts", "max_sessions", "cpus_per_host", "verifier_processes", "weight")
"""What may change between a run and its resumption: how fast, not what."""
_LOCK, _DRAFT, _FILE = ".lock", ".run.yaml.new", "run.yaml"
_FIELDS = ("run_id", "created", "config", "digests", "forced")
_SHOWN = 60
"""Characters of a value that a refusal shows at most."""


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
        """The run's folder, where it is one on a disk."""
        return Path(self.config["run"]["dir"])

    @property
    def place(self) -> str:
        """The run's folder, or its URL on an object store."""
        return self.config["run"]["dir"]

    @property
    def episodes(self) -> str:
        """The dataset's folder, absolute: runners work elsewhere."""
        return absolute(inside(self.place, "episodes"))

    @property
    def turns(self) -> Path | None:
        """Where the turns of episodes in flight are kept, absolute; they are not beside a table on an object store."""
        return None if is_remote(self.place) else self.path.resolve() / "turns"


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
    place = config.run.dir
    check_folder(place, resume)
    return _resume(read_run(place), config, digests, force) if resume else _create(config, digests)


def check_folder(place: Place, resume: bool) -> None:
    """Looks at a folder before anything is written to it.

    Raises UserError when it holds a run or anything else and is to hold a new one, or has none to resume.
    """
    if not is_remote(place) and Path(place).exists() and not Path(place).is_dir():
        raise UserError(f"run.dir: {place}: is a file, expected a folder")
    try:
        names = folder(place).names()
    except OSError as error:
        raise UserError(f"run.dir: {place}: cannot be read: {error.strerror or error}") from error
    if _FILE in names:
        if not resume:
            raise UserError(_held(place))
    elif resume:
        raise UserError(f"run.dir: {place}: nothing to resume, there is no run.yaml")
    elif not {_LOCK, _DRAFT}.issuperset(names):
        raise UserError(f"run.dir: {place}: is not empty and holds no run; give another folder")


def _held(place: Place) -> str:
    return f"run.dir: {place}: holds run {read_run(place).run_id} already; add --resume, or give another run.dir"


def take_back(run: Run) -> None:
    """Empties the folder of a run that has no row: one that could not begin is to be no run one has to resume."""
    here = folder(run.place)
    here.delete([_FILE])
    here.clear("episodes")
    if run.turns is not None:
        here.clear("turns")


def read_run(place: Place) -> Run:
    """What the folder's run.yaml says; `run.dir` is where it lies now. Raises UserError when it has none."""
    file = inside(place, _FILE)
    content = folder(place).read(_FILE)
    if content is None:
        raise UserError(f"{place}: no run here: expected {file}")
    try:
        told: Any = yaml.safe_load(content.decode())
        run = Run(**told)
        run.config["run"]["dir"] = str(place)
    except (yaml.YAMLError, TypeError, LookupError, ValueError) as error:
        raise UserError(f"{file}: says not what a run is: {describe(error)}") from error
    return run


@contextmanager
def locked(place: Place) -> Generator[None]:
    """Keeps other drivers out of a run's folder. Raises UserError when one is in it, or when it can be no folder.

    On an object store nobody is kept out: the driver that comes last has the run, and ends the one before at its next
    commit (`Committer.take_over`). A lock there would outlive a driver that is killed.
    """
    if is_remote(place):
        yield
        return
    folder = Path(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a+")
    except OSError as error:
        raise UserError(f"run.dir: {folder}: cannot be written to: {error.strerror}") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"run.dir: {folder}: process {file.read().strip()} is running it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _create(config: JobConfig, digests: dict[str, str]) -> Run:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    run = Run(uuid4().hex[:8], now, config.model_dump(mode="json"), digests)
    try:
        _write(run, new=True)
    except FileExistsError:  # somebody else began one here since we looked
        raise UserError(_held(run.place)) from None
    return run


def _resume(run: Run, config: JobConfig, digests: dict[str, str], force: bool) -> Run:
    now = config.model_dump(mode="json")
    _check_names(run.config, now)
    differences = [*_differences(_identity(run.config), _identity(now), ""), *_changed(run.digests, digests)]
    if any(one.startswith("run.limits.max_turns ") for one in differences):  # the agent's number of calls follows it
        differences = [one for one in differences if not one.startswith("agent.max_iterations ")]
    if differences and not force:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        why = f"{differences[0]}{more}; --force goes on all the same"
        raise UserError(f"run.dir: {config.run.dir}: cannot resume: {why}")
    if not differences:
        return Run(run.run_id, run.created, now, run.digests, run.forced)
    forced = Run(run.run_id, run.created, now, digests, [*run.forced, *differences])
    _write(forced)
    return forced


def _check_names(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Tasks are numbered by environment: under other names the numbers of rows that are there would mean others."""
    before, after = (", ".join(sorted(_resources(config))) or "one without a name" for config in (old, new))
    if before != after:
        raise UserError(f"resources: the run's are {before}, the job's {after}: not even --force can resume it")


def _write(run: Run, new: bool = False) -> None:
    """Whole or not at all: a run.yaml that is there can be read."""
    text = yaml.safe_dump({name: getattr(run, name) for name in _FIELDS}, sort_keys=False, allow_unicode=True)
    try:
        folder(run.place).put(_FILE, text.encode(), new)
    except FileExistsError:
        raise
    except OSError as error:
        raise RolloutError(f"{inside(run.place, _FILE)}: cannot write: {error.strerror or error}") from error


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: deepcopy(section) for name, section in config.items() if section and name not in _FREE_SECTIONS}
    for section, key in _FREE_KEYS:
        kept.get(section, {}).pop(key, None)
    for resource in _resources(kept).values():
        for key in _FREE_OF_A_RESOURCE:
            resource.pop(key, None)
    return kept


def environment_names(place: Place) -> list[str]:
    """Names of the environments of the run in a folder, in the order in which they number its tasks; none where it
    has only one, or where no run.yaml tells."""
    several = read_run(place).config.get("resources") if folder(place).read(_FILE) is not None else None
    return sorted(several or ())


def _resources(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of a job's environments by name; the only one of a job has the empty name."""
    return config.get("resources") or {"": config.get("resource") or {}}


def _differences(old: Any, new: Any, place: str) -> Iterator[str]:
    """One line for each leaf that is not the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast(dict[str, Any], old), cast(dict[str, Any], new)
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), f"{place}.{key}" if place else key)
    elif old != new:
        yield f"{place} was {_shown(old)}, is {_shown(new)} now"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _changed(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            before, after = old.get(name, "none")[:12], new.get(name, "none")[:12]
            yield f"the digest of {name} was {before}, is {after} now"
