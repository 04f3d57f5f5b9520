"""ATIF, Harbor's Agent Trajectory Interchange Format: one trajectory a line, failed ones too, with tokens."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rollout.export.chat import Row, arguments, calls, conversation, prompts

SCHEMA_VERSION = "ATIF-v1.6"
"""The oldest that has all that is used here."""
_OUTCOME = ("status", "stop_reason", "failure", "drop_reason", "reward", "reward_components")


def trajectory(row: Row) -> Row:
    """One episode. Results of tools are the observation of the step that called them."""
    steps: list[Row] = []
    read = prompts(row["turns"])
    for message, turn in conversation(row):
        if message["role"] == "tool" and steps and steps[-1]["source"] == "agent":
            _observe(steps[-1], message)
            continue
        source = {"assistant": "agent", "system": "system"}.get(message["role"], "user")
        step: Row = {"step_id": len(steps) + 1, "source": source, "message": message["content"] or ""}
        if source == "agent":
            step |= _agent(message, turn, next(read) if turn is not None else None)
        steps.append(step)
    return {
        "schema_version": SCHEMA_VERSION,
        "session_id": row["episode_id"],
        "agent": {"name": row["agent"], "version": version("rollout-engine"), "model_name": row["model"]},
        "steps": steps,
        "final_metrics": {
            "total_prompt_tokens": row["prompt_tokens"],
            "total_completion_tokens": row["completion_tokens"],
            "total_cached_tokens": row["cached_tokens"],
            "total_steps": len(steps),
        },
        "extra": {name: row[name] for name in ("run_id", "task_id", "group_id", "sample_index", "resource")}
        | {name: row[name] for name in _OUTCOME if row[name] is not None},
    }


def _agent(message: Row, turn: Row | None, prompt: list[int] | None) -> Row:
    step: dict[str, Any] = {}
    if message["reasoning_content"]:
        step["reasoning_content"] = message["reasoning_content"]
    if message["tool_calls"]:
        step["tool_calls"] = [_call(call) for call in calls(message)]
    if turn is not None and prompt is not None:
        step["metrics"] = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(turn["completion_ids"]),
            "cached_tokens": turn["cached_tokens"],
            "prompt_token_ids": prompt,
            "completion_token_ids": turn["completion_ids"],
            "logprobs": turn["logprobs"],
            "extra": {"versions": turn["versions"], "finish_reason": turn["finish_reason"]},
        }
    return step


def _call(call: Row) -> Row:
    """Arguments are an object in ATIF; text that is none is kept beside."""
    told = arguments(call["arguments"])
    kept = {} if told is not None else {"arguments": {}, "extra": {"arguments": call["arguments"]}}
    return {"tool_call_id": call["id"], "function_name": call["name"], "arguments": told, **kept}


def _observe(step: Row, message: Row) -> None:
    known = {call["tool_call_id"] for call in step.get("tool_calls", [])}
    result: Row = {"content": message["content"] or ""}
    if message["tool_call_id"] in known:
        result["source_call_id"] = message["tool_call_id"]
    step.setdefault("observation", {"results": []})["results"].append(result)
