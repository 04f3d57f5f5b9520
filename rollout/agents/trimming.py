"""A tool's output, shortened once before the policy reads it. Never again: what was told stays as it was told."""

from __future__ import annotations

from collections.abc import Iterable

_HEAD = 0.8
"""Share of what is kept that is from the beginning."""


def trimmed(text: str, limit: int) -> str:
    """At most `limit` characters of `text`, and a line that says what is left out; all of it when `limit` is 0.

    Four fifths are from the beginning, the rest from the end, in whole lines where one fits. Text of one or two lines
    is cut behind `limit` characters.
    """
    if limit <= 0 or len(text) <= limit:
        return text
    lines = text.splitlines(keepends=True)
    if len(lines) <= 2:
        return f"{text[:limit]}\n[... {len(text) - limit} characters left out]"
    for_head = int(limit * _HEAD)
    head = _fitting(lines, for_head)
    tail = _fitting(reversed(lines), limit - for_head)
    begin = text[: head or for_head]
    end = text[len(text) - (tail or limit - for_head) :]
    gap = text[len(begin) : len(text) - len(end)]
    break_before = "" if begin.endswith("\n") or not begin else "\n"
    return f"{begin}{break_before}[... {len(gap)} characters left out ...]\n{end}"


def _fitting(lines: Iterable[str], room: int) -> int:
    """Characters of as many whole lines as fit."""
    taken = 0
    for line in lines:
        if taken + len(line) > room:
            break
        taken += len(line)
    return taken
