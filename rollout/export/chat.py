"""The messages of a row beside the turns that wrote them, for formats that hold chats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

Row = dict[str, Any]
"""A row of the dataset as Python values."""
COLUMNS = (
    *("run_id", "episode_id", "task_id", "task_index", "group_id", "sample_index", "resource", "agent", "model"),
    *("status", "stop_reason", "failure", "drop_reason", "reward", "reward_components", "turns", "messages"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "started_at"),
)
"""What the formats of chats read."""


def conversation(row: Row) -> Iterator[tuple[Row, Row | None]]:
    """Each message with the turn whose completion it is; None for what the policy did not write.

    A turn wrote one message and the turns wrote the last of the assistant's: what a task brought along stands before.
    """
    messages, turns = row["messages"], row["turns"]
    brought = sum(message["role"] == "assistant" for message in messages) - len(turns)
    for message in messages:
        if message["role"] != "assistant":
            yield message, None
            continue
        brought -= 1
        yield message, None if brought >= 0 else turns[-brought - 1]


def calls(message: Row) -> list[Row]:
    """The tool calls of a message: id, name, and arguments as text."""
    return message["tool_calls"] or []


def arguments(text: str) -> Row | None:
    """The arguments of a call as an object; None where the policy wrote no JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return cast(Row, value) if isinstance(value, dict) else None


def prompts(turns: list[Row]) -> Iterator[list[int] | None]:
    """For each turn all ids that the model read: a row holds what was appended. None where ids are not known."""
    held: list[int] = []
    segment = None
    for turn in turns:
        if turn["prompt_ids"] is None or turn["completion_ids"] is None or turn["logprobs"] is None:
            segment = None
            yield None
            continue
        held = (held if turn["segment"] == segment else []) + turn["prompt_ids"]
        segment = turn["segment"]
        yield held
        held = held + turn["completion_ids"]
