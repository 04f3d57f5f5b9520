"""One row of the dataset as a person reads it: the conversation turn by turn, with what it cost and how it scored.

What the policy and its tools wrote is not trusted: control characters are shown, never sent to the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

Row = dict[str, Any]

_COLOURS = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
_STATUS = {"completed": "green", "truncated": "yellow", "failed": "red", "dropped": "dim"}
_VISIBLE = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(127, 160), 0xFFFD),
}


def episode_view(row: Row) -> Iterator[RenderableType]:
    """The whole trajectory of a row, to be printed one after the other."""
    yield from _head(row)
    turns, messages = list(row["turns"] or ()), list(row["messages"] or ())
    before = _opening_turns(row, messages)
    number, place = -before, 0
    while place < len(messages):
        message = messages[place]
        place += 1
        yield Text()
        if message["role"] != "assistant" or not 0 <= number < len(turns):
            number += message["role"] == "assistant"
            yield from _message(message)
            continue
        turn = turns[number]
        yield from _turn(number, turn)
        place += _answers(messages[place:], turn)
        number += 1
    yield Text()
    yield from _end(row)


def visible(text: str) -> str:
    """Text with its control characters made visible; lines and tabs stay."""
    return text.translate(_VISIBLE)


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=_STATUS.get(status, ""))


def _head(row: Row) -> Iterator[RenderableType]:
    yield Text.assemble((row["episode_id"], "bold"), "  ", status_text(row["status"]), f"  {row['stop_reason']}")
    parts = [f"task {row['task_id']}", f"sample {row['sample_index']}", f"attempt {row['attempt']}"]
    if row["parent_episode_id"] is not None:
        parts.append(f"child of {row['parent_episode_id']}")
    parts += [f"{key} {row[key]}" for key in ("resource", "agent", "model")]
    if row["version_min"] is not None:
        same = row["version_min"] == row["version_max"]
        parts.append("weights " + (row["version_min"] if same else f"{row['version_min']} to {row['version_max']}"))
    yield Text(visible(" · ".join(parts)), style="dim")


def _end(row: Row) -> Iterator[RenderableType]:
    if (failure := row["failure"]) is not None:
        where = f"failed: {failure['kind']} at {failure['where']}: {failure['message']}"
        yield Text(visible(where), style="bold red")
    if row["drop_reason"] is not None:
        yield Text(f"dropped: {visible(row['drop_reason'])}", style="yellow")
    reward = "no reward" if row["reward"] is None else f"reward {row['reward']:g}"
    yield Text.assemble((reward, "bold"), _named(row["reward_components"]), (_named(row["metrics"]), "dim"))
    cached = f" ({row['cached_tokens']:,} cached)" if row["cached_tokens"] else ""
    calls = f"{row['tool_calls']:,} tool calls, {row['tool_errors']:,} errors"
    yield Text(
        f"{row['num_turns']} turns · {row['prompt_tokens']:,} prompt tokens{cached} · "
        f"{row['completion_tokens']:,} sampled · {calls}"
    )
    seconds: dict[str, float] = row["seconds"] or {}
    yield Text("seconds " + ", ".join(f"{cause} {value:.2f}" for cause, value in seconds.items()), style="dim")


def _named(values: dict[str, float] | None) -> str:
    return "".join(f"  {visible(name)} {value:g}" for name, value in (values or {}).items())


def _opening_turns(row: Row, messages: Sequence[Row]) -> int:
    """Assistant messages that were there before the first turn: examples in the task."""
    spoken = sum(message["role"] == "assistant" for message in messages)
    return max(0, spoken - len(row["turns"] or ()))


def _message(message: Row) -> Iterator[RenderableType]:
    role = message["role"]
    name = f" {message['name']}" if message["name"] else ""
    yield Text(f"{role}{visible(name)}", style=f"bold {_COLOURS.get(role, 'white')}")
    if message["reasoning_content"]:
        yield _body(message["reasoning_content"], "dim italic")
    if message["content"]:
        yield _body(message["content"])
    for call in message["tool_calls"] or ():
        yield _body(_called(call), "yellow")


def _turn(number: int, turn: Row) -> Iterator[RenderableType]:
    yield Text.assemble(("assistant", "bold green"), (f"  {_cost(number, turn)}", "dim"))
    if turn["segment_break"]:
        yield _body(f"new segment {turn['segment']}: {turn['segment_break']}", "magenta")
    calls = {call["id"]: call for call in turn["tool_calls"] or ()}
    for part in turn["segments"] or ():
        if part["kind"] == "tool_call" and (call := calls.pop(part["call_id"], None)) is not None:
            yield from _call(call)
        elif part["kind"] == "tool_call":
            yield _body(f"→ not a tool call: {part['text']}", "red")
        else:
            yield _body(part["text"], "dim italic" if part["kind"] == "reasoning" else "")
    for call in calls.values():  # plain text that was taken for a call has no segment of that kind
        yield from _call(call, implied=True)


def _cost(number: int, turn: Row) -> str:
    parts = [f"turn {number}"]
    if turn["prompt_ids"] is not None:
        parts.append(f"+{len(turn['prompt_ids']):,} prompt")
    if turn["completion_ids"] is not None:
        parts.append(f"{len(turn['completion_ids']):,} sampled")
    if turn["cached_tokens"]:
        parts.append(f"{turn['cached_tokens']:,} cached")
    parts += [f"{turn['model_seconds']:.2f} s", turn["finish_reason"], turn["replica"] or ""]
    if turn["reward"] is not None:
        parts.append(f"reward {turn['reward']:g}")
    return visible(" · ".join(part for part in parts if part))


def _call(call: Row, implied: bool = False) -> Iterator[RenderableType]:
    if not implied:
        yield _body(_called(call), "yellow")
    ran = "did not run" if call["skipped"] else f"{call['seconds'] or 0.0:.2f} s"
    yield _body(f"← {call['result'] or call['error'] or ''}  ({ran})", "red" if call["error"] is not None else "")


def _called(call: Row) -> str:
    return f"→ {call['name']}({call['arguments']})" if call["name"] else f"→ not a tool call: {call['arguments']}"


def _answers(following: Sequence[Row], turn: Row) -> int:
    """How many of the next messages are the results that the turn has shown already."""
    count = 0
    for message in following[: len(turn["tool_calls"] or ())]:
        if message["role"] not in ("tool", "user"):
            break
        count += 1
    return count


def _body(text: str, style: str = "") -> RenderableType:
    return Padding(Text(visible(text), style=style), (0, 0, 0, 2), expand=False)
