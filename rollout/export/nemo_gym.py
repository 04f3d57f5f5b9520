"""NeMo Gym: the lines of its rollout files, OpenAI Responses items over all turns with tokens where the policy wrote.

The last item of each model call has `prompt_token_ids` (all that the model read), `generation_token_ids` and
`generation_log_probs`, or none of the three.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rollout.export.chat import Row, calls, conversation, prompts


def verify_response(row: Row) -> Row:
    """One episode, as Gym's collector writes it."""
    told, output = _items(row)
    sampling: Row = row["turns"][0]["sampling"] if row["turns"] else {"temperature": None, "top_p": None}
    both: Row = {
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
    }
    truncated = row["status"] == "truncated"
    return {
        "responses_create_params": {"input": told, **both},
        "response": {
            "id": row["episode_id"],
            "created_at": row["started_at"].timestamp(),
            "model": row["model"],
            "object": "response",
            "status": "incomplete" if truncated else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if row["stop_reason"] == "max_tokens" else None,
            "output": output,
            **both,
            "usage": {
                "input_tokens": row["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": row["cached_tokens"], "cache_write_tokens": 0},
                "output_tokens": row["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
            },
        },
        "reward": row["reward"],
        "reward_components": dict(row["reward_components"] or {}),
        "agent_ref": {"type": "responses_api_agents", "name": row["agent"]},
        "task_id": row["task_id"],
        "_ng_task_index": row["task_index"],
        "_ng_rollout_index": row["sample_index"],
    }


def _items(row: Row) -> tuple[list[Row], list[Row]]:
    """What the policy was told before its first turn, and all that came from there on."""
    told: list[Row] = []
    output: list[Row] = []
    read = prompts(row["turns"])
    played = 0
    for message, turn in conversation(row):
        where = output if played or turn is not None else told
        if turn is None:
            where += _told(message, opening=where is told)
            continue
        items = list(_sampled(message, turn, f"{row['episode_id']}_{played}"))
        played += 1
        if (prompt := next(read)) is not None:
            items[-1] |= {
                "prompt_token_ids": prompt,
                "generation_token_ids": turn["completion_ids"],
                "generation_log_probs": turn["logprobs"],
            }
        where += items
    return told, output


def _told(message: Row, opening: bool) -> Iterator[Row]:
    if message["role"] == "tool":
        yield {
            "type": "function_call_output",
            "call_id": message["tool_call_id"] or "",
            "output": message["content"] or "",
        }
        return
    if message["content"] or not message["tool_calls"]:
        yield {"type": "message", "role": message["role"], "content": message["content"] or ""}
    for call in calls(message) if opening else ():
        yield _call(call["id"], call["name"], call["arguments"])


def _sampled(message: Row, turn: Row, name: str) -> Iterator[Row]:
    """Items in the order in which they were sampled; an empty message where nothing could be read."""
    named = {call["id"]: call for call in calls(message)}
    parts: list[Row] = turn["segments"] or [{"kind": "content", "text": message["content"] or "", "call_id": None}]
    for number, part in enumerate(parts):
        call = named.get(part["call_id"])
        if part["kind"] == "reasoning":
            summary = [{"type": "summary_text", "text": part["text"]}]
            yield {"type": "reasoning", "id": f"rs_{name}_{number}", "summary": summary}
        elif part["kind"] == "tool_call" and call is not None:
            yield _call(call["id"], call["name"], call["arguments"])
        else:
            yield {
                "type": "message",
                "id": f"msg_{name}_{number}",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": part["text"], "annotations": []}],
            }


def _call(call_id: str, name: str, text: str) -> Row:
    call: dict[str, Any] = {"type": "function_call", "call_id": call_id, "id": call_id}
    return call | {"name": name, "arguments": text, "status": "completed"}
