"""How the ledger of an episode reads completions: a function of a text that is finished, over `rollout.parsing`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from rollout.parsing import FORMATS, Format
from rollout.trajectory import Segment, ToolSpec


class Parser(Protocol):
    """Reads the text of a completion; `turn` makes the ids of its calls, `tools` say what their arguments are."""

    def __call__(self, text: str, turn: int, *, tools: Sequence[ToolSpec] = ()) -> tuple[Segment, ...]:
        """Its segments."""
        ...


def reading(form: Format, in_reasoning: bool = False) -> Parser:
    """The parser of a format; `in_reasoning` where prompts end in what opens reasoning."""
    return partial(_read, form, in_reasoning)


def hermes(text: str, turn: int, in_reasoning: bool = False, tools: Sequence[ToolSpec] = ()) -> tuple[Segment, ...]:
    """Hermes and Qwen: `<think>...</think>`, `<tool_call>{"name":..., "arguments":{...}}</tool_call>`."""
    return FORMATS["hermes"].read(text, turn, tools, in_reasoning)


def _read(
    form: Format, in_reasoning: bool, text: str, turn: int, *, tools: Sequence[ToolSpec] = ()
) -> tuple[Segment, ...]:
    return form.read(text, turn, tools, in_reasoning)
