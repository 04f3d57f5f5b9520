"""Segments in a format's own markup: what a model would have said, up to blanks. The inverse of reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rollout.turn import Segment, ToolCall


def written(segments: Sequence[Segment], form: str) -> str:
    """A completion that `rollout.parsing.FORMATS[form]` reads as these segments, in this order.

    A call that could not be read is written as it was sampled where the format has a place for that. Arguments are
    written as they are where they are JSON; elsewhere a text that looks like another type keeps its type only if the
    reader is given the tool's schema. Raises KeyError for a format there is not.
    """
    if form == "harmony":
        return "<|end|><|start|>assistant".join(_message(segment) for segment in segments)
    call = _CALLS[form]
    pieces = [_piece(segment, call) for segment in segments]
    return "\n".join(pieces)


def _piece(segment: Segment, write: Callable[[ToolCall], str]) -> str:
    if segment.call is not None:
        return write(segment.call)
    return f"<think>\n{segment.text}\n</think>" if segment.kind == "reasoning" else segment.text


def _message(segment: Segment) -> str:
    if (call := segment.call) is not None:
        return f"<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>{call.arguments}"
    channel = "analysis" if segment.kind == "reasoning" else "final"
    return f"<|channel|>{channel}<|message|>{segment.text}"


def _hermes(call: ToolCall) -> str:
    body = f'{{"name": {_text(call.name)}, "arguments": {call.arguments}}}' if call.name else call.arguments
    return f"<tool_call>\n{body}\n</tool_call>"


def _qwen3_coder(call: ToolCall) -> str:
    if not call.name:
        return f"<tool_call>\n{call.arguments}\n</tool_call>"
    lines = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in _plain(call).items())
    return f"<tool_call>\n<function={call.name}>\n{lines}</function>\n</tool_call>"


def _glm(call: ToolCall) -> str:
    if not call.name:
        return f"<tool_call>{call.arguments}</tool_call>"
    pairs = _plain(call).items()
    lines = "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in pairs)
    return f"<tool_call>{call.name}\n{lines}</tool_call>"


def _deepseek_v3(call: ToolCall) -> str:
    body = f"function<｜tool▁sep｜>{call.name}\n```json\n{call.arguments}\n```" if call.name else call.arguments
    return _deepseek(body)


def _deepseek_v31(call: ToolCall) -> str:
    return _deepseek(f"{call.name}<｜tool▁sep｜>{call.arguments}" if call.name else call.arguments)


def _deepseek(body: str) -> str:
    around = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    return f"{around[0]}<｜tool▁call▁begin｜>{body}<｜tool▁call▁end｜>{around[1]}"


def _llama_json(call: ToolCall) -> str:
    body = f'{{"name": {_text(call.name)}, "parameters": {call.arguments}}}' if call.name else call.arguments
    return f"<|python_tag|>{body}"


def _llama_pythonic(call: ToolCall) -> str:
    if not call.name:
        return f"<|python_start|>[{call.arguments}]<|python_end|>"
    arguments: dict[str, Any] = json.loads(call.arguments)
    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"<|python_start|>[{call.name}({listed})]<|python_end|>"


def _plain(call: ToolCall) -> dict[str, str]:
    """Arguments by name: texts as they are, all else as JSON."""
    arguments: dict[str, Any] = json.loads(call.arguments)
    return {key: value if isinstance(value, str) else _text(value) for key, value in arguments.items()}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_CALLS: Mapping[str, Callable[[ToolCall], str]] = {
    "hermes": _hermes,
    "qwen3_coder": _qwen3_coder,
    "glm": _glm,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v31": _deepseek_v31,
    "llama_json": _llama_json,
    "llama_pythonic": _llama_pythonic,
}
