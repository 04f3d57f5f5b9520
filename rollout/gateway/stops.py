"""Texts that end a completion, looked for while it comes in."""

from __future__ import annotations


class Stops:
    """Lets a text through up to the first stop in it; what may be the beginning of one is held back.

    Of several stops the one counts that is whole first, and of those that are whole at once the longest: so the text
    may come in pieces of any size.
    """

    __slots__ = ("_held", "_stops", "found")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held: str = ""
        self.found: str | None = None
        """The stop that was met. Nothing behind it is let through."""

    def feed(self, text: str) -> str:
        """What may be told by now."""
        if not self._stops:
            return text
        if self.found is not None:
            return ""
        text = self._held + text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            self._held = ""
            return text[:at]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and turned out to be no stop."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text that a stop begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
