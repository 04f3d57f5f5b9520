"""Following a JSON value through text that comes in pieces: where it ends, and what in it is inside a string.

It reads just enough to tell that; whether a value is JSON is for `json` to say when all of it is there.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, cast

_OUTSIDE = re.compile(r'"[^"\\\x00-\x1f]*"|["{}\[\]<]')
_INSIDE = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR = re.compile(r"[^,}\]\s<]*")
DEEPEST = 200
"""Brackets inside brackets. Python's own limit depends on who called, and so would what is read."""
TOO_DEEP = "not JSON that can be read: it is nested too deep"
_BLANKS = frozenset(" \t\n\r")
_BLANK = re.compile(r"[ \t\n\r]*")
_KEY = re.compile(r'"([^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*)*)"')


class JsonValue:
    """One value.

    `done` once it has ended; `broken` once it cannot be JSON: a bare `<`, a line break in a string, brackets too deep.
    """

    __slots__ = ("_depth", "_quoted", "begun", "broken", "done", "structured")

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self.begun = False
        self.structured = False
        """It is an object."""
        self._depth = 0
        self._quoted = False

    def advance(self, text: str, at: int) -> int:
        """Reads `text` from `at`, which is no blank at the beginning.

        Gives where it stopped: behind the value, at what broke it, or where more is needed. What stands before that
        place is never looked at again.
        """
        if self.broken:
            return at
        size = len(text)
        if not self.begun and at < size:
            self.begun = True
            self.structured = text[at] == "{"
        while at < size:
            if self._quoted:
                at = _run_end(_INSIDE, text, at)
                if at == size or (text[at] == "\\" and at + 1 == size):
                    return at
                if text[at] == "\\" and text[at + 1] >= " ":
                    at += 2
                elif text[at] == '"':
                    at, self._quoted = at + 1, False
                    self.done = self._depth == 0
                else:
                    self.broken = True
            elif self._depth == 0 and text[at] not in '"{[':
                end = _run_end(_SCALAR, text, at)
                self.done = end < size
                return end if self.done else at
            else:
                at = self._next_token(text, at)
            if self.done or self.broken:
                return at
        return at

    def _next_token(self, text: str, at: int) -> int:
        found = _OUTSIDE.search(text, at)
        if found is None:
            return len(text)
        token = found.group()
        if token == '"':
            self._quoted = True
        elif token == "<":
            self.broken = True
            return found.start()
        elif token in "{[":
            self._depth += 1
            self.broken = self._depth > DEEPEST
        elif token in "}]":
            self._depth -= 1
            self.done = self._depth == 0
        else:
            self.done = self._depth == 0
        return found.end()


def skip_blanks(text: str, at: int) -> int:
    """The first place from `at` on that JSON does not take for a blank."""
    return _run_end(_BLANK, text, at) if text[at : at + 1] in _BLANKS else at


def key_at(text: str, at: int) -> tuple[str, int] | None:
    """The string that begins with the quote at `at` and where it ends; None while its end has not come.

    Raises ValueError when it never can: a line break in it, or an escape that JSON does not have.
    """
    found = _KEY.match(text, at)
    if found is not None:
        inside = found[1]
        return (json.loads(found[0]) if "\\" in inside else inside), found.end()
    if re.search(r"[\x00-\x1f]", text[at:]):
        raise ValueError("a string that was not closed")
    return None


def object_of(text: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError that says in a few words why it is none.

    Python's json takes more than JSON: NaN, infinities, and half a surrogate pair, which no tokenizer and no file
    could hold.
    """
    try:
        value: Any = _STRICT.decode(text)
        text.encode()
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is no character") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return cast(dict[str, Any], value)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number that is too large: {text[:20]}")
    return value


def _refused(text: str) -> float:
    raise ValueError(f"JSON has no {text}")


_STRICT = json.JSONDecoder(parse_float=_finite, parse_constant=_refused)


def _run_end(run: re.Pattern[str], text: str, at: int) -> int:
    """Where a run that may be empty ends."""
    found = run.match(text, at)
    return at if found is None else found.end()
