"""Chats for supervised fine-tuning: `messages` in OpenAI's shape, a line or row an episode.

Arguments of tool calls are JSON text, as OpenAI's API has them: in Parquet they have no other common type.
"""

from __future__ import annotations

from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from rollout.export.chat import Row, calls

pa = cast(Any, pyarrow)
_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)
_MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("reasoning_content", pa.string()),
        ("tool_calls", pa.list_(_CALL)),
        ("tool_call_id", pa.string()),
        ("name", pa.string()),
    ]
)

SCHEMA = pa.schema(
    [
        ("messages", pa.list_(_MESSAGE)),
        ("episode_id", pa.string()),
        ("task_id", pa.string()),
        ("resource", pa.string()),
        ("model", pa.string()),
        ("status", pa.string()),
        ("reward", pa.float64()),
    ]
)


def chat(row: Row) -> Row:
    """One episode. What a message has not is left out."""
    kept = {name: row[name] for name in SCHEMA.names if name != "messages"}
    return {"messages": [_message(message) for message in row["messages"]], **kept}


def _message(message: Row) -> Row:
    plain = {name: value for name, value in message.items() if name != "tool_calls" and value is not None}
    return plain | ({"tool_calls": found} if (found := [_call(call) for call in calls(message)]) else {})


def _call(call: Row) -> Row:
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
