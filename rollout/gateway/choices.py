"""What a request's tool choice and answer form leave to be sampled, as a grammar of vLLM.

A call that must be made is written in the model's own format: a structural tag of XGrammar, whose formats vLLM takes as
JSON (https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html). Where a prompt ends within reasoning, the grammar
begins behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.turn import Json, ToolSpec
from rollout.wire.asked import Asked, Named
from rollout.wire.errors import invalid
from rollout.wire.stream import to_json

_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""What vLLM's StructuredOutputsParams takes, one of them at a time."""
_OTHERS = frozenset({"disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"})


@dataclass(frozen=True, slots=True)
class _Written:
    """How a format writes calls; `{}` is the name."""

    begin: str
    end: str
    separator: str = "\n"
    style: str = "json"
    """Of the arguments, as XGrammar calls it."""
    opening: str = ""
    """Before the first call,"""
    closing: str = ""
    """and behind the last."""


_SEP = "<｜tool▁sep｜>"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_WRITTEN: Mapping[str, _Written] = {
    "hermes": _Written('<tool_call>\n{{"name": "{}", "arguments": ', "}\n</tool_call>"),
    "qwen3_coder": _Written("<tool_call>\n<function={}>\n", "\n</function>\n</tool_call>", style="qwen_xml"),
    "glm": _Written("<tool_call>{}\n", "\n</tool_call>", style="glm_xml"),
    "llama_json": _Written('{{"name": "{}", "parameters": ', "}", separator="; "),
    "deepseek_v3": _Written(
        f"<｜tool▁call▁begin｜>function{_SEP}{{}}\n```json\n", "\n```<｜tool▁call▁end｜>", "\n", "json", *_DEEPSEEK
    ),
    "deepseek_v31": _Written(f"<｜tool▁call▁begin｜>{{}}{_SEP}", "<｜tool▁call▁end｜>", "", "json", *_DEEPSEEK),
}
"""By the name of the format."""


def grammar(asked: Asked, format_name: str, in_reasoning: bool) -> Mapping[str, Json] | None:
    """Arguments of vLLM's StructuredOutputsParams; None where anything may be sampled.

    Raises Refused for a call that must be made in a format that cannot be forced, and for two forms at once.
    """
    choice, form = asked.tool_choice, asked.form
    must = choice == "required" or isinstance(choice, Named)
    if asked.grammar is not None:
        if must or form is not None:
            raise invalid("structured_outputs", "expected it alone, without a form or a call that must be made")
        return _checked(asked.grammar)
    if must:
        named = choice.name if isinstance(choice, Named) else None
        tools = [spec for spec in asked.tools if named in (None, spec.name)]
        return _tag(_calls(format_name, tools, not asked.parallel_calls or named is not None), in_reasoning)
    if form is None:
        return None
    answer = {"type": "json_schema", "json_schema": form.schema if form.schema is not None else {"type": "object"}}
    if asked.offered:
        calls = _calls(format_name, asked.offered, not asked.parallel_calls)
        return _tag({"type": "or", "elements": [answer, calls]}, in_reasoning)
    return _tag(answer, True) if in_reasoning else form.grammar


def _checked(given: Mapping[str, Json]) -> Mapping[str, Json]:
    """A grammar of the request's own, which vLLM would refuse where nobody can tell the client why."""
    unknown = sorted(given.keys() - _OTHERS - set(_KINDS))
    if unknown or sum(given.get(kind) is not None for kind in _KINDS) != 1:
        found = f"; found {', '.join(unknown)}" if unknown else ""
        raise invalid("structured_outputs", f"expected one of {', '.join(_KINDS)}{found}")
    return given


def _calls(format_name: str, tools: Sequence[ToolSpec], one: bool) -> dict[str, Any]:
    """One call or several of these tools, and nothing else."""
    if (written := _WRITTEN.get(format_name)) is None:
        what = f"the format '{format_name}'" if format_name else "the format of this model"
        known = ", ".join(_WRITTEN)
        raise invalid("tool_choice", f"no call can be forced in {what}, only in {known}; expected auto or none")
    tags = [
        {
            "type": "tag",
            "begin": written.begin.format(spec.name),
            "content": {
                "type": "json_schema",
                "json_schema": spec.parameters or {"type": "object"},
                "style": written.style,
            },
            "end": written.end,
        }
        for spec in tools
    ]
    several = {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": written.separator,
        "at_least_one": True,
        "stop_after_first": one,
    }
    if not written.opening:
        return several
    return {"type": "tag", "begin": written.opening, "content": several, "end": written.closing}


def _tag(shape: dict[str, Any], in_reasoning: bool) -> Mapping[str, Json]:
    if in_reasoning:
        thought = {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": "</think>"}
        shape = {"type": "sequence", "elements": [thought, {"type": "regex", "pattern": r"\n{0,2}"}, shape]}
    return {"structural_tag": to_json({"type": "structural_tag", "format": shape}).decode()}
