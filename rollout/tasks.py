"""Where tasks come from: a JSONL or Parquet file, or the resource's own generator. Always one at a time."""

from __future__ import annotations

import hashlib
import inspect
import json
from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rollout.config import TasksConfig
from rollout.errors import RolloutError, UserError, describe, nearest, raised_in
from rollout.resource import Resource
from rollout.trajectory import Message, Task

_KEYS = ("id", "prompt", "messages", "data")
_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_tasks(config: TasksConfig, resource: Resource, seed: int) -> Iterator[Task]:
    """The job's tasks in order, numbered from 0.

    Raises UserError naming file and line for a task that is malformed, or for what a resource's tasks() raises.
    """
    source = _own(resource, seed) if config.path is None else (task for _, task in _from_file(Path(config.path)))
    for index, task in enumerate(islice(source, config.count)):
        yield replace(task, index=index)


def count_tasks(config: TasksConfig, resource: Resource) -> int | None:
    """How many tasks there will be; None when only their end will tell."""
    own = resource.num_tasks if config.path is None else _lines(Path(config.path))
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
    ids = array("Q")
    for _, task in _from_file(path):
        ids.append(_id_digest(task.id))
    if not ids:
        raise UserError(f"{path}: holds no task")
    digests, counts = np.unique(np.frombuffer(ids, dtype=np.uint64), return_counts=True)
    if len(twice := digests[counts > 1]):
        _explain_twice(path, frozenset(twice.tolist()))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _id_digest(task_id: str) -> int:
    """Eight bytes for an id: a file may hold more ids than memory should."""
    return int.from_bytes(hashlib.blake2b(task_id.encode(), digest_size=8).digest(), "big")


def _explain_twice(path: Path, digests: frozenset[int]) -> None:
    """Raises UserError with the two places of the first id that comes twice."""
    seen: dict[str, str] = {}
    for place, task in _from_file(path):
        if _id_digest(task.id) not in digests:
            continue
        if task.id in seen:
            raise UserError(f"{place}: id '{task.id}' is already the id of {seen[task.id]}")
        seen[task.id] = place


def _lines(path: Path) -> int:
    if path.suffix == ".parquet":
        return _parquet(path).metadata.num_rows
    with path.open("rb") as file:
        return sum(bool(line.strip()) for line in file)


def _from_file(path: Path) -> Iterator[tuple[str, Task]]:
    """Tasks, each with its place in the file."""
    if path.is_dir():
        raise UserError(f"tasks.path: {path}: is a folder, expected a JSONL or Parquet file")
    if not path.is_file():
        beside = [str(other) for kind in ("*.jsonl", "*.parquet") for other in path.parent.glob(kind)]
        raise UserError(f"tasks.path: {path}: no such file{nearest(str(path), beside) if beside else ''}")
    if path.suffix == ".parquet":
        return _from_parquet(path)
    return _from_jsonl(path)


def _own(resource: Resource, seed: int) -> Iterator[Task]:
    """A resource's own tasks. Their code is not ours: whatever it raises is said in one line."""
    try:
        for task in resource.tasks(seed):
            if not isinstance(task, Task):  # pyright: ignore[reportUnnecessaryIsInstance] - no one checks their types
                raise TypeError(f"tasks() gave {type(task).__name__}, expected Task")
            yield task
    except NotImplementedError as error:
        raise UserError(f"tasks.path: {error}") from error
    except RolloutError:
        raise
    except Exception as error:
        raise UserError(f"resource {resource.name}: {raised_in(error, inspect.getfile(type(resource)))}") from error


def _from_jsonl(path: Path) -> Iterator[tuple[str, Task]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _task(_json(line, place), place)


def _from_parquet(path: Path) -> Iterator[tuple[str, Task]]:
    number = 0
    for batch in _parquet(path).iter_batches(256):  # pyright: ignore[reportUnknownMemberType]
        for row in batch.to_pylist():
            number += 1
            place = f"{path}: row {number}"
            if isinstance(row.get("data"), str):
                row["data"] = _json(row["data"], f"{place}: data")
            yield place, _task(_without_nulls(row), place)


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not Parquet: {describe(error)}") from None


def _json(text: str | bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from None


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the keys that only other rows, or other messages, have."""
    kept = {key: value for key, value in row.items() if value is not None}
    if isinstance(messages := kept.get("messages"), list):
        kept["messages"] = [
            _without_nulls(cast(dict[str, Any], message)) if isinstance(message, dict) else message
            for message in cast(list[Any], messages)
        ]
    return kept


def _task(value: Any, place: str) -> Task:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected an object with id, prompt or messages, and data")
    entry = cast(dict[str, Any], value)
    for key in entry:
        if key not in _KEYS:
            hint = f"{nearest(key, _KEYS)}; what tools and verifier need is in data"
            raise UserError(f"{place}: {key}: unknown key{hint}")
    task_id, data = entry.get("id"), entry.get("data", {})
    if not _is_text(task_id) or not task_id:
        raise UserError(f"{place}: id: expected a text that is not empty, found {task_id!r}")
    if not isinstance(data, dict):
        raise UserError(f"{place}: data: expected an object, found {type(data).__name__}")
    return Task(task_id, _messages(entry, place), cast(dict[str, Any], data))


def _messages(entry: dict[str, Any], place: str) -> tuple[Message, ...]:
    if ("prompt" in entry) == ("messages" in entry):
        raise UserError(f"{place}: expected either prompt or messages")
    if "prompt" in entry:
        if not _is_text(prompt := entry["prompt"]):
            raise UserError(f"{place}: prompt: expected a text, found {_shown(prompt)}")
        return ({"role": "user", "content": prompt},)
    messages = entry["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: messages: expected a list that is not empty")
    for number, message in enumerate(cast(list[Any], messages)):
        if (wrong := _wrong(message)) is not None:
            raise UserError(f"{place}: messages[{number}]{wrong}")
    return tuple(cast(list[Message], messages))


def _wrong(message: Any) -> str | None:
    """What of a chat message is not what templates and rows take it for."""
    if not isinstance(message, dict):
        return ": expected an object with role and content"
    entry = cast(dict[str, Any], message)
    if (role := entry.get("role")) not in _ROLES:
        return f".role: expected one of {', '.join(_ROLES)}, found {_shown(role)}"
    if not _is_text(content := entry.get("content")):
        return f".content: expected a text, found {_shown(content)}"
    calls = entry.get("tool_calls", [])
    if not isinstance(calls, list) or not all(_is_call(call) for call in cast(list[Any], calls)):
        return ".tool_calls: expected a list of objects like {id, type, function: {name, arguments}}"
    return None


def _is_call(call: Any) -> bool:
    function = cast(dict[str, Any], call).get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and {"name", "arguments"} <= cast(dict[str, Any], function).keys()


def _is_text(value: Any) -> TypeGuard[str]:
    """JSON can write half a surrogate pair, which no tokenizer takes."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value


def _shown(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, str) else type(value).__name__
