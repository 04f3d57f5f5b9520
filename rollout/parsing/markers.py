"""Finding markers in text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable


def pattern_of(markers: Iterable[str]) -> re.Pattern[str]:
    """Any of some literal markers; the longest where several begin at one place."""
    return re.compile("|".join(re.escape(marker) for marker in sorted(set(markers), key=len, reverse=True)))


def held_back(text: str, markers: Iterable[str]) -> int:
    """Where the end of `text` begins that may still become a marker; its length when none may.

    Markers begin with `<` and have no other.
    """
    at = text.rfind("<")
    if at < 0:
        return len(text)
    rest = text[at:]
    return at if any(marker.startswith(rest) for marker in markers) else len(text)


class Head:
    """How something begins that no marker announces: a pattern in steps, each of which may still be on its way."""

    def __init__(self, *steps: str) -> None:
        self.whole = re.compile("".join(steps))
        partial = ""
        for step in reversed(steps):
            partial = f"(?:{step}{partial})?"
        self._partial = re.compile(partial)

    def may_come(self, text: str) -> bool:
        """`text` is how it begins, as far as it goes."""
        return self._partial.fullmatch(text) is not None


def letters(word: str) -> tuple[str, ...]:
    """A literal as steps."""
    return tuple(re.escape(letter) for letter in word)
