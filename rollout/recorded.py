"""Finished episodes as their rows tell them: what was asked, said, called and answered, without a token.

A row holds all that is needed to judge an episode again, or to give its environment the same calls again. The seed of
its session is not in it: `rollout.scheduling.sample_seed` makes the same one from the run's seed, the task's number and
the sample's, for every attempt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as arrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute as compute  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as parquet  # pyright: ignore[reportMissingTypeStubs]

from rollout.scheduling import sample_seed
from rollout.trajectory import (
    Lease,
    Message,
    Score,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    ToolUse,
    Transcript,
)

pa, pc, pq = cast(Any, arrow), cast(Any, compute), cast(Any, parquet)
"""They have no types."""
BATCH_ROWS = 64
_COLUMNS = (
    "run_id",
    "episode_id",
    "task_index",
    "sample_index",
    "attempt",
    "stop_reason",
    "reward",
    "reward_components",
    "metrics",
    "task",
    "messages",
    "answer",
    "parent_episode_id",
)
_TURN_LEAVES = ("tool_calls", "reward", "finish_reason")
_WRAPPERS = ("list", "element", "item")
"""What Parquet puts into the path of a nested column."""


@dataclass(frozen=True, slots=True)
class PlayedTurn:
    """What became of the calls of one turn."""

    uses: tuple[ToolUse, ...]
    """Whether a call ended the episode, and its own step reward, no row tells: `done` and `reward` are not set."""
    cut: bool
    """The completion was cut: none of its calls ran."""
    reward: float | None
    """Sum of the step rewards."""


@dataclass(frozen=True, slots=True)
class Played:
    """A finished episode that has been judged."""

    lease: Lease
    transcript: Transcript
    """What its verifier saw."""
    turns: tuple[PlayedTurn, ...]
    score: Score

    @property
    def opening(self) -> tuple[Message, ...]:
        """The conversation that the policy was given."""
        return self.transcript.messages[: self.transcript.opening]


def judged_batches(files: Iterator[Any]) -> Iterator[Any]:
    """The rows that have a reward, but for children, which nobody judges, as Arrow tables of at most BATCH_ROWS with
    the columns that `played` reads.

    `files` are Parquet files of a run, each open until the next. Neither tokens nor logprobs are read.
    """
    for file in files:
        opened = pq.ParquetFile(file)
        for batch in opened.iter_batches(batch_size=BATCH_ROWS, columns=_paths(opened.schema)):
            judged = pc.field("reward").is_valid() & pc.field("parent_episode_id").is_null()
            yield pa.Table.from_batches([batch]).filter(judged)


def played(row: dict[str, Any], seed: int) -> Played:
    """A row of `judged_batches` as the episode it was; `seed` is the run's."""
    told = json.loads(row["task"])
    task = Task(told["id"], tuple(told["messages"]), told["data"], row["task_index"], told.get("resource", ""))
    own = sample_seed(seed, row["task_index"], row["sample_index"])
    turns = tuple(_turn(turn) for turn in row["turns"] or ())
    messages = tuple(_message(message) for message in row["messages"] or ())
    rewards = tuple(turn.reward for turn in turns if turn.reward is not None)
    answer = None if row["answer"] is None else json.loads(row["answer"])
    opening = _opening(messages, len(turns))
    transcript = Transcript(messages, StopReason(row["stop_reason"]), rewards, opening, answer)
    score = Score(row["reward"], dict(row["reward_components"] or ()), dict(row["metrics"] or ()))
    lease = Lease(row["run_id"], task, row["sample_index"], row["attempt"], True, own)
    return Played(lease, transcript, turns, score)


def _paths(schema: Any) -> list[str]:
    """The columns of a file to read, by the paths that its writer has given them."""
    names: list[str] = [schema.column(place).path for place in range(len(schema))]
    found: list[str] = []
    for name in names:
        first, *inner = (part for part in name.split(".") if part not in _WRAPPERS)
        if first in _COLUMNS or (first == "turns" and inner[0] in _TURN_LEAVES):
            found.append(name)
    return found


def _turn(turn: dict[str, Any]) -> PlayedTurn:
    uses = tuple(
        ToolUse(
            ToolCall(call["id"], call["name"], call["arguments"]),
            ToolResult(call["result"], call["error"], skipped=call["skipped"], seconds=call["seconds"]),
        )
        for call in turn["tool_calls"] or ()
    )
    return PlayedTurn(uses, turn["finish_reason"] == "length", turn["reward"])


def _message(row: dict[str, Any]) -> Message:
    """A message in OpenAI's shape; what a row has nothing for is left out."""
    kept = {key: value for key, value in row.items() if value is not None}
    if calls := kept.get("tool_calls"):
        kept["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
            for call in calls
        ]
    return cast(Message, kept)


def _opening(messages: Sequence[Message], turns: int) -> int:
    """How many messages there were before the policy's first turn: it said the last `turns` of the assistant's."""
    said = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return said[-turns] if turns else len(messages)
