"""Reads what a model says into ordered parts: reasoning, content, tool calls. A library: docs/parsing.md.

machine = format_named("qwen3_coder").open(tools=tools)
for piece in stream:
    for event in machine.feed(piece): ...
for event in machine.finish(): ...
"""

from rollout.parsing.events import (
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    ContentDelta,
    Event,
    ReasoningDelta,
    WasReasoning,
    as_segments,
)
from rollout.parsing.formats import FORMATS, THINK, TOOLS, Format, Machine, format_named, tagged
from rollout.parsing.history import Keep, ReasoningForm, as_message, form_for, reformed, segments_of, shown
from rollout.parsing.tags import ReasoningTags, ToolTags
from rollout.parsing.writing import written

__all__ = [
    "FORMATS",
    "THINK",
    "TOOLS",
    "ArgumentsDelta",
    "CallEnded",
    "CallStarted",
    "ContentDelta",
    "Event",
    "Format",
    "Keep",
    "Machine",
    "ReasoningDelta",
    "ReasoningForm",
    "ReasoningTags",
    "ToolTags",
    "WasReasoning",
    "as_message",
    "as_segments",
    "form_for",
    "format_named",
    "reformed",
    "segments_of",
    "shown",
    "tagged",
    "written",
]
