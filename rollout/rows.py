"""The dataset's row: its Arrow schema, and trajectories as rows.

One row is one episode, turns nested inside, so that a row commits whole or not at all and reading one column never
reads the tokens. Columns are described in docs/design.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from rollout.errors import describe
from rollout.trajectory import (
    Attempt,
    Event,
    Failure,
    FailureKind,
    Json,
    Lease,
    Message,
    Score,
    Segment,
    StopReason,
    Task,
    ToolUse,
    Trajectory,
    Turn,
)

_STRING = pa.string()
_DOUBLE = pa.float64()
_LONG = pa.int64()
_INT = pa.int32()
_IDS = pa.list_(pa.int32())
_MAP = pa.map_(pa.string(), pa.float64())
_TIME = pa.timestamp("us", tz="UTC")
_UNFIT = (pa.ArrowException, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""What Arrow, numpy and json raise for values that are not what their types say."""


def _struct(**fields: pa.DataType) -> pa.StructType:
    return pa.struct([pa.field(name, kind) for name, kind in fields.items()])


_CALL = _struct(
    id=_STRING, name=_STRING, arguments=_STRING, result=_STRING, error=_STRING, seconds=_DOUBLE, skipped=pa.bool_()
)
_TURN = _struct(
    agent=_STRING,
    segment=_INT,
    prompt_ids=_IDS,
    completion_ids=_IDS,
    logprobs=pa.list_(pa.float32()),
    versions=pa.list_(_struct(version=_STRING, start=_INT, end=_INT)),
    finish_reason=_STRING,
    sampling=_struct(temperature=_DOUBLE, top_p=_DOUBLE, top_k=_INT, seed=_LONG),
    replica=_STRING,
    cached_tokens=_INT,
    segment_break=_STRING,
    segments=pa.list_(_struct(kind=_STRING, text=_STRING, call_id=_STRING)),
    tool_calls=pa.list_(_CALL),
    reward=_DOUBLE,
    queue_seconds=_DOUBLE,
    model_seconds=_DOUBLE,
    constrained=pa.bool_(),
    trainable=pa.bool_(),
    attempts=pa.list_(_struct(number=_INT, error=_STRING, status=_INT, delay=_DOUBLE)),
)
_EVENT = _struct(turn=_INT, kind=_STRING, name=_STRING, detail=_STRING, seconds=_DOUBLE)
_MESSAGE = _struct(
    role=_STRING,
    content=_STRING,
    reasoning_content=_STRING,
    tool_calls=pa.list_(_struct(id=_STRING, name=_STRING, arguments=_STRING)),
    tool_call_id=_STRING,
    name=_STRING,
)

SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("run_id", _STRING),
        pa.field("episode_id", _STRING),
        pa.field("task_id", _STRING),
        pa.field("task_index", _LONG),
        pa.field("group_id", _STRING),
        pa.field("sample_index", _INT),
        pa.field("attempt", _INT),
        pa.field("step", _LONG),
        pa.field("resource", _STRING),
        pa.field("agent", _STRING),
        pa.field("model", _STRING),
        pa.field("status", _STRING),
        pa.field("stop_reason", _STRING),
        pa.field("failure", _struct(kind=_STRING, where=_STRING, message=_STRING)),
        pa.field("drop_reason", _STRING),
        pa.field("reward", _DOUBLE),
        pa.field("reward_components", _MAP),
        pa.field("metrics", _MAP),
        pa.field("turns", pa.list_(_TURN)),
        pa.field("messages", pa.list_(_MESSAGE)),
        pa.field("task", _STRING),
        pa.field("num_turns", _INT),
        pa.field("prompt_tokens", _LONG),
        pa.field("completion_tokens", _LONG),
        pa.field("cached_tokens", _LONG),
        pa.field("tool_calls", _INT),
        pa.field("tool_errors", _INT),
        pa.field("cost", _DOUBLE),
        pa.field("version_min", _STRING),
        pa.field("version_max", _STRING),
        pa.field("seconds", _struct(queue=_DOUBLE, model=_DOUBLE, tool=_DOUBLE, verify=_DOUBLE, idle=_DOUBLE)),
        pa.field("started_at", _TIME),
        pa.field("finished_at", _TIME),
        pa.field("parent_episode_id", _STRING),
        pa.field("restored_turns", _INT),
        pa.field("restored_tokens", _LONG),
        pa.field("answer", _STRING),
        pa.field("events", pa.list_(_EVENT)),
    ]
)


def to_table(trajectories: Iterable[Trajectory]) -> pa.Table:
    """Trajectories as a table of SCHEMA, one row each, in order; behind each come the rows of its children.

    Tools, verifiers and policies put values into trajectories that no row can hold. Such a trajectory becomes a
    failed row that says so: it must not cost the rows of others.
    """
    kept = [one for trajectory in trajectories for one in trajectory.family]
    try:
        return _table([to_row(trajectory) for trajectory in kept])
    except _UNFIT:
        return pa.concat_tables([_fitting(trajectory) for trajectory in kept])


def task_group(group_id: str, parent_episode_id: str | None) -> str:
    """The group of a row's task: its own, or of a child that of the sample it belongs to."""
    return group_id if parent_episode_id is None else parent_episode_id.rpartition("-")[0]


def weight(trajectory: Trajectory) -> int:
    """About how many bytes of memory a trajectory takes, its children included: 8 a token (id and logprob) and its
    text. Never raises."""
    return sum(map(_weight, trajectory.family))


def _weight(trajectory: Trajectory) -> int:
    turns = trajectory.turns
    tokens = sum(len(turn.prompt_ids or ()) + len(turn.completion.ids or ()) for turn in turns)
    texts: list[Any] = [message.get("content") for message in trajectory.messages]
    texts += [text for turn in turns for use in turn.tool_uses for text in (use.result.content, use.call.arguments)]
    return 1024 + 8 * tokens + sum(len(text) for text in texts if isinstance(text, str))


def _fitting(trajectory: Trajectory) -> pa.Table:
    """A table of the one row: as it is, as UTF-8 can hold it, or a failure in its place."""
    try:
        return _table([utf8(to_row(trajectory))])
    except _UNFIT as error:
        failure = Failure(FailureKind.INTERNAL, "to_row", describe(error))
    lease = replace(trajectory.lease, task=replace(trajectory.lease.task, messages=(), data={}))
    bare = replace(trajectory, lease=lease, messages=(), turns=(), score=None, failure=failure)
    return _table([utf8(to_row(replace(bare, stop_reason=StopReason.FAILED)))])


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def utf8(value: Any) -> Any:
    """A value with all its text as a file can hold it: JSON can write half a surrogate pair, which is a character in
    Python but not in UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: utf8(entry) for key, entry in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [utf8(entry) for entry in cast(list[Any], value)]
    if isinstance(value, tuple):  # an entry of a map
        return tuple(utf8(entry) for entry in cast(tuple[Any, ...], value))
    return value


def to_row(trajectory: Trajectory) -> dict[str, Any]:
    """One trajectory as a row."""
    seconds = trajectory.seconds
    uses = [use for turn in trajectory.turns for use in turn.tool_uses]
    versions = [span.version for turn in trajectory.turns for span in turn.completion.versions]
    cached = [turn.completion.cached_tokens for turn in trajectory.turns]
    return {
        **_identity(trajectory.lease),
        "resource": trajectory.resource,
        "agent": trajectory.agent,
        "model": trajectory.model,
        "status": trajectory.status.value,
        "stop_reason": trajectory.stop_reason.value,
        "failure": _failure(trajectory.failure),
        "drop_reason": trajectory.drop_reason,
        "reward": trajectory.reward,
        **_score(trajectory.score),
        "turns": [_turn(turn) for turn in trajectory.turns],
        "messages": [_message(message) for message in trajectory.messages],
        "task": _task(trajectory.lease.task),
        "num_turns": len(trajectory.turns),
        "prompt_tokens": sum(turn.completion.prompt_tokens or 0 for turn in trajectory.turns),
        "completion_tokens": trajectory.num_sampled,
        "cached_tokens": sum(count or 0 for count in cached),
        "tool_calls": len(uses),
        "tool_errors": sum(use.result.error is not None for use in uses),
        "version_min": min(versions, key=_version_order, default=None),
        "version_max": max(versions, key=_version_order, default=None),
        "seconds": {
            "queue": seconds.queue,
            "model": seconds.model,
            "tool": seconds.tool,
            "verify": seconds.verify,
            "idle": seconds.idle,
        },
        "started_at": int(trajectory.started_at * 1e6),
        "finished_at": int(trajectory.finished_at * 1e6),
        "restored_turns": trajectory.restored_turns,
        "restored_tokens": trajectory.restored_tokens if trajectory.restored_turns is not None else None,
        "cost": trajectory.cost,
        "answer": _json(trajectory.answer) if trajectory.answer is not None else None,
        "events": [_event(event) for event in trajectory.events],
    }


def _identity(lease: Lease) -> dict[str, Any]:
    return {
        "run_id": lease.run_id,
        "episode_id": lease.episode_id,
        "task_id": lease.task.id,
        "task_index": lease.task.index,
        "group_id": lease.group_id,
        "sample_index": lease.sample_index,
        "attempt": lease.attempt,
        "step": lease.step,
        "parent_episode_id": lease.parent_episode_id,
    }


def _failure(failure: Failure | None) -> dict[str, str] | None:
    if failure is None:
        return None
    return {"kind": failure.kind.value, "where": failure.where, "message": failure.message}


def _score(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"reward_components": None, "metrics": None}
    return {"reward_components": list(score.components.items()), "metrics": list(score.metrics.items())}


def _turn(turn: Turn) -> dict[str, Any]:
    completion = turn.completion
    return {
        "agent": turn.agent,
        "segment": turn.segment,
        "prompt_ids": _packed(turn.prompt_ids, np.int32),
        "completion_ids": _packed(completion.ids, np.int32),
        "logprobs": _packed(completion.logprobs, np.float32),
        "versions": [{"version": span.version, "start": span.start, "end": span.end} for span in completion.versions],
        "finish_reason": completion.finish_reason.value,
        "sampling": {
            "temperature": turn.sampling.temperature,
            "top_p": turn.sampling.top_p,
            "top_k": turn.sampling.top_k,
            "seed": turn.sampling.seed,
        },
        "replica": completion.replica,
        "cached_tokens": completion.cached_tokens,
        "segment_break": turn.segment_break,
        "segments": [_segment(part) for part in turn.segments],
        "tool_calls": [_call(use) for use in turn.tool_uses],
        "reward": turn.reward,
        "queue_seconds": completion.queue_seconds,
        "model_seconds": turn.model_seconds,
        "constrained": turn.constrained,
        "trainable": turn.trainable,
        "attempts": [_attempt(attempt) for attempt in completion.attempts],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {"number": attempt.number, "error": attempt.error, "status": attempt.status, "delay": attempt.delay}


def _event(event: Event) -> dict[str, Any]:
    return {
        "turn": event.turn,
        "kind": event.kind,
        "name": event.name,
        "detail": _json(event.detail),
        "seconds": event.seconds,
    }


def _json(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _packed(values: Sequence[float] | None, kind: type[np.generic]) -> Any:
    """numpy arrays go into Arrow without a Python object a token."""
    return None if values is None else np.asarray(values, dtype=kind)


def _segment(part: Segment) -> dict[str, Any]:
    return {"kind": part.kind, "text": part.text, "call_id": part.call.id if part.call else None}


def _call(use: ToolUse) -> dict[str, Any]:
    call, result = use.call, use.result
    return {
        "id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "result": result.content,
        "error": result.error,
        "seconds": result.seconds,
        "skipped": result.skipped,
    }


def _message(message: Message) -> dict[str, Any]:
    row = cast(dict[str, Any], dict(message))
    if calls := message.get("tool_calls"):
        row["tool_calls"] = [_message_call(call) for call in calls]
    return row


def _message_call(call: dict[str, Any]) -> dict[str, Any]:
    """Arguments are text; a task's own messages may hold them as the object that chat templates take as well."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": call.get("id"), "name": name, "arguments": text}


def _task(task: Task) -> str:
    kept = {"id": task.id, "messages": task.messages, "data": task.data}
    named = {"resource": task.resource} if task.resource else {}
    return _json(kept | named)


def _version_order(version: str) -> tuple[int, str]:
    """Numbered versions by number, others by name."""
    digits = version.lstrip("v")
    return (int(digits), "") if digits.isdecimal() else (-1, version)
