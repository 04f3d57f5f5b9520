"""The formats in which models write reasoning and calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from rollout.errors import UserError, nearest
from rollout.parsing.channels import MARKERS as HARMONY_MARKERS
from rollout.parsing.channels import ChannelMachine
from rollout.parsing.events import Event, Parts, as_segments
from rollout.parsing.json_calls import EnvelopeCall, NamedCall
from rollout.parsing.markers import Head, letters, pattern_of
from rollout.parsing.pythonic import PythonicCalls
from rollout.parsing.tagged_call import ArgumentTags, TaggedCall
from rollout.parsing.tags import ReasoningTags, TagGrammar, TagMachine, ToolTags
from rollout.turn import Segment, ToolSpec


class Machine(Protocol):
    """Reads one completion."""

    def feed(self, text: str) -> tuple[Event, ...]:
        """What more of its text adds."""
        ...

    def finish(self) -> tuple[Event, ...]:
        """What its end adds. Nothing may be fed afterwards."""
        ...


MakeMachine = Callable[[int, Sequence[ToolSpec], bool], Machine]
"""(turn, tools that were offered, whether the prompt has opened reasoning) -> a machine."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a model writes. `markers` never stand in what it is read to have said."""

    name: str
    machine: MakeMachine
    markers: tuple[str, ...]

    def open(self, turn: int = 0, tools: Sequence[ToolSpec] = (), in_reasoning: bool = False) -> Machine:
        """A machine for one completion. `turn` makes ids of calls, `call_TURN_NUMBER`, unique in a conversation;
        the schemas of `tools` tell numbers from text where arguments are not JSON; `in_reasoning` says that the
        prompt ended in what opens reasoning."""
        return self.machine(turn, tools, in_reasoning)

    def read(
        self, text: str, turn: int = 0, tools: Sequence[ToolSpec] = (), in_reasoning: bool = False
    ) -> tuple[Segment, ...]:
        """The segments of a finished completion."""
        machine = self.open(turn, tools, in_reasoning)
        return as_segments((*machine.feed(text), *machine.finish()))


THINK = ReasoningTags("<think>", "</think>")

_XML_END = pattern_of(["</tool_call>"])
_SEP = "<｜tool▁sep｜>"
_DEEPSEEK_END = pattern_of(["<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"])
_LLAMA_ENDS = ("<|eom_id|>", "<|eot_id|>")

QWEN3_CODER_ARGUMENTS = ArgumentTags(
    "<function=", ">", "<parameter=", ">", "", "</parameter>", "</function>", True, "</tool_call>", trims_line=True
)
GLM_ARGUMENTS = ArgumentTags(
    "", "", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>", False, ""
)

_BLANKS = r"\s*"
_TYPED = (r"\{", _BLANKS, *letters('"type"'), _BLANKS, ":", _BLANKS, '"', "[a-z_]*", '"', _BLANKS, ",", _BLANKS)
_NAMED = (*letters('"name"'), _BLANKS, ":", _BLANKS, '"', r'[^"\\]*', '"', _BLANKS, ",", _BLANKS, '"')
_JSON_HEADS = tuple(
    Head(*before, *_NAMED, *letters(key), '"', _BLANKS, ":")
    for before in ((r"\{", _BLANKS), _TYPED)
    for key in ("parameters", "arguments")
)
_LIST_HEAD = Head(r"\[", _BLANKS, r"[A-Za-z_][\w.]*", _BLANKS, r"\(")


def _hermes(parts: Parts, _: Sequence[ToolSpec]) -> EnvelopeCall:
    return EnvelopeCall(parts, _XML_END)


def _llama(parts: Parts, _: Sequence[ToolSpec]) -> EnvelopeCall:
    return EnvelopeCall(parts, _LLAMA_CLOSE, ("parameters", "arguments"), bare=True)


def _pythonic(parts: Parts, _: Sequence[ToolSpec]) -> PythonicCalls:
    return PythonicCalls(parts, _PYTHONIC_CLOSE)


def _deepseek(head: re.Pattern[str], tail: str, parts: Parts, _: Sequence[ToolSpec]) -> NamedCall:
    return NamedCall(parts, _DEEPSEEK_END, head, tail)


def _tagged(tags: ArgumentTags, parts: Parts, tools: Sequence[ToolSpec]) -> TaggedCall:
    return TaggedCall(parts, tags, tools)


_LLAMA_CLOSE = pattern_of(["<|python_tag|>", *_LLAMA_ENDS])
_PYTHONIC_CLOSE = pattern_of(["<|python_start|>", "<|python_end|>", *_LLAMA_ENDS])
_DEEPSEEK_OTHERS = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>", _SEP)
_V3_HEAD = re.compile(rf"\s*function\s*{_SEP}(?P<name>[^\n]*)\n\s*```json")
_V31_HEAD = re.compile(rf"(?P<name>[^<]*){_SEP}")

TOOLS: Mapping[str, ToolTags] = {
    "hermes": ToolTags(("<tool_call>",), ("</tool_call>",), _hermes),
    "qwen3_coder": ToolTags(
        ("<tool_call>", "<function="),
        ("</tool_call>",),
        partial(_tagged, QWEN3_CODER_ARGUMENTS),
        kept=("<function=",),
    ),
    "glm": ToolTags(("<tool_call>",), ("</tool_call>",), partial(_tagged, GLM_ARGUMENTS)),
    "deepseek_v3": ToolTags(("<｜tool▁call▁begin｜>",), _DEEPSEEK_OTHERS, partial(_deepseek, _V3_HEAD, "```")),
    "deepseek_v31": ToolTags(("<｜tool▁call▁begin｜>",), _DEEPSEEK_OTHERS, partial(_deepseek, _V31_HEAD, "")),
    "llama_json": ToolTags(("<|python_tag|>",), _LLAMA_ENDS, _llama, bare=_JSON_HEADS, between=" \t\r\n;"),
    "llama_pythonic": ToolTags(("<|python_start|>",), ("<|python_end|>", *_LLAMA_ENDS), _pythonic, bare=(_LIST_HEAD,)),
}
"""Tool components by name; DeepSeek R1 writes calls as V3 does."""


def tagged(name: str, reasoning: ReasoningTags | None, calls: ToolTags | None) -> Format:
    """A format of one reasoning and one tool component; None reads no reasoning, or no calls."""
    grammar = TagGrammar.of(reasoning, calls)
    return Format(name, partial(TagMachine, grammar), grammar.markers)


FORMATS: Mapping[str, Format] = {
    **{name: tagged(name, THINK, calls) for name, calls in TOOLS.items()},
    "harmony": Format("harmony", ChannelMachine, HARMONY_MARKERS),
}
"""What `model.parser` may name."""


def format_named(name: str) -> Format:
    """The format of that name. Raises UserError for one that there is not."""
    if (found := FORMATS.get(name)) is None:
        raise UserError(f"there is no format '{name}'{nearest(name, FORMATS)}")
    return found
