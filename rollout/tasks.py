"""Where tasks come from: a JSONL or Parquet file, or the resource's own generator. Always one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq

from rollout.config import TasksConfig
from rollout.errors import UserError, nearest
from rollout.resource import Resource
from rollout.trajectory import Message, Task

_KEYS = ("id", "prompt", "messages", "data")


def read_tasks(config: TasksConfig, resource: Resource, seed: int) -> Iterator[Task]:
    """The job's tasks in order, numbered from 0.

    Raises UserError naming file and line for a task that is malformed.
    """
    try:
        source = resource.tasks(seed) if config.path is None else _from_file(Path(config.path))
    except NotImplementedError as error:
        raise UserError(f"tasks.path: {error}") from error
    for index, task in enumerate(islice(source, config.count)):
        yield replace(task, index=index)


def count_tasks(config: TasksConfig, resource: Resource) -> int | None:
    """How many tasks there will be; None when only their end will tell."""
    own = getattr(resource, "count", None) if config.path is None else _lines(Path(config.path))
    if config.count is None or own is None:
        return config.count if own is None else own
    return min(own, config.count)


def check_tasks(config: TasksConfig) -> str | None:
    """Reads a task file through once before anything starts; its sha256, None for a resource's own tasks.

    Raises UserError for a missing file, a malformed line or a task id that comes twice.
    """
    if config.path is None:
        return None
    path = Path(config.path)
    seen: dict[bytes, int] = {}
    for line, task in enumerate(_from_file(path), 1):
        key = hashlib.blake2b(task.id.encode(), digest_size=8).digest()
        if key in seen:
            raise UserError(f"{path}:{line}: id '{task.id}' is already the id of task {seen[key]}")
        seen[key] = line
    if not seen:
        raise UserError(f"{path}: holds no task")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(path: Path) -> int:
    if path.suffix == ".parquet":
        return pq.ParquetFile(path).metadata.num_rows
    with path.open("rb") as file:
        return sum(bool(line.strip()) for line in file)


def _from_file(path: Path) -> Iterator[Task]:
    if not path.is_file():
        beside = [str(other) for kind in ("*.jsonl", "*.parquet") for other in path.parent.glob(kind)]
        raise UserError(f"tasks.path: {path}: no such file{nearest(str(path), beside) if beside else ''}")
    if path.suffix == ".parquet":
        return _from_parquet(path)
    return _from_jsonl(path)


def _from_jsonl(path: Path) -> Iterator[Task]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value: Any = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not JSON: {error}") from None
            yield _task(value, f"{path}:{number}")


def _from_parquet(path: Path) -> Iterator[Task]:
    number = 0
    for batch in pq.ParquetFile(path).iter_batches(256):  # pyright: ignore[reportUnknownMemberType]
        for row in cast(list[dict[str, Any]], batch.to_pylist()):
            number += 1
            if isinstance(row.get("data"), str):
                row["data"] = json.loads(row["data"])
            yield _task({key: value for key, value in row.items() if value is not None}, f"{path}: row {number}")


def _task(value: Any, origin: str) -> Task:
    if not isinstance(value, dict):
        raise UserError(f"{origin}: expected an object with id, prompt or messages, and data")
    entry = cast(dict[str, Any], value)
    for key in entry:
        if key not in _KEYS:
            raise UserError(f"{origin}: {key}: unknown key{nearest(key, _KEYS)}; what tools and verifier need is in data")
    if not isinstance(task_id := entry.get("id"), str) or not task_id:
        raise UserError(f"{origin}: id: expected a text that is not empty, found {task_id!r}")
    if not isinstance(data := entry.get("data", {}), dict):
        raise UserError(f"{origin}: data: expected an object, found {type(data).__name__}")
    return Task(task_id, _messages(entry, origin), cast(dict[str, Any], data))


def _messages(entry: dict[str, Any], origin: str) -> tuple[Message, ...]:
    if ("prompt" in entry) == ("messages" in entry):
        raise UserError(f"{origin}: expected either prompt or messages")
    if "prompt" in entry:
        if not isinstance(entry["prompt"], str):
            raise UserError(f"{origin}: prompt: expected a text, found {type(entry['prompt']).__name__}")
        return ({"role": "user", "content": entry["prompt"]},)
    messages = entry["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{origin}: messages: expected a list that is not empty")
    for place, message in enumerate(cast(list[Any], messages)):
        fits = isinstance(message, dict) and isinstance(cast(dict[str, Any], message).get("content"), str)
        if not fits or not isinstance(message.get("role"), str):
            raise UserError(f"{origin}: messages[{place}]: expected an object with role and content")
    return tuple(cast(list[Message], messages))
