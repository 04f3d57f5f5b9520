"""Calls in a history that a program sends back, written as the policy wrote them.

Programs read the arguments of a call as JSON and send back what they make of it: other spaces, other escapes, `1` for
`1.0`. It says the same and is another text, so that the prompt no longer continues what was sampled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from rollout.serving.prefixes import Entry
from rollout.turn import Json


def as_sampled(messages: Iterable[Entry], sampled: Mapping[str, str]) -> tuple[Entry, ...]:
    """Messages whose calls have their arguments as the policy wrote them.

    `sampled` has the text of arguments by call id. Programs read it as JSON and send back what they make of it, with
    other spaces and `1` for `1.0`; where that says the same, the text of the policy stands. Arguments that a program
    changed stay as they were sent, those that came as an object become text in the order of its keys.
    """
    return tuple(_with_calls(message, sampled) for message in messages)


def _with_calls(message: Entry, sampled: Mapping[str, str]) -> Entry:
    calls = cast(Sequence[Entry], message.get("tool_calls") or ())
    told = [_with_arguments(call, sampled.get(call.get("id", ""))) for call in calls]
    if all(one is other for one, other in zip(told, calls, strict=True)):
        return message
    return {**message, "tool_calls": told}


def _with_arguments(call: Entry, written: str | None) -> Entry:
    function = cast(Entry, call["function"])
    sent = function.get("arguments", "")
    text = sent if isinstance(sent, str) else json.dumps(sent, ensure_ascii=False)
    if written is not None and text != written and meaning(text) == meaning(written):
        text = written
    return call if text is sent else {**call, "function": {**function, "arguments": text}}


def meaning(arguments: str) -> str:
    """What arguments say, as a text that is equal for equal JSON values, read as a program does that has doubles only;
    those that are no JSON as they are."""
    try:
        return json.dumps(_as_doubles(json.loads(arguments or "{}")), sort_keys=True)
    except (ValueError, OverflowError, RecursionError):  # the last for a thousand brackets
        return arguments.strip()


def _as_doubles(value: Json) -> Json:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, dict):
        return {name: _as_doubles(one) for name, one in cast(dict[str, Json], value).items()}
    if isinstance(value, list):
        return [_as_doubles(one) for one in cast(list[Json], value)]
    return value
