"""Readers of calls whose arguments are JSON: in an envelope with their name, or behind a name.

What would close a call is text while it stands inside a string, as long as the string is sound: a line break in it
shows that it was not closed, and from there the first closer ends the call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rollout.parsing.events import Parts
from rollout.parsing.json_value import DEEPEST, TOO_DEEP, JsonValue, key_at, object_of, skip_blanks

UNFINISHED = "the completion ended inside the call"
LONGEST_CLOSER = 40
"""Characters: what a closer that has come in part may have before it is whole."""
_USUAL = re.compile(
    r'_\{_"name"_:_"([^"\\\x00-\x1f]+)"_,_"(\w+)"_:_(\{.*\})_\}_'.replace("_", r"[ \t\n\r]*"), re.DOTALL
)


class EnvelopeCall:
    """`{"name": NAME, "arguments": {...}}`, up to `close`; or up to its own end where `bare`."""

    def __init__(
        self, parts: Parts, close: re.Pattern[str], keys: Sequence[str] = ("arguments",), bare: bool = False
    ) -> None:
        self._parts = parts
        self._close = close
        self._keys = keys
        self._bare = bare
        self._body = ""
        self._envelope = _Envelope(parts, keys)
        self._looked = 0
        parts.begin_call()

    def read(self, text: str) -> str | None:
        """More of the body: None while the call goes on, what follows the call once it has ended."""
        if not self._body and (end := self._read_whole(text)) is not None:
            return text[end:]
        self._body += text
        if not self._envelope.advance(self._body):
            return None
        at = self._envelope.at
        if not (self._bare and self._envelope.whole):
            found = self._close.search(self._body, max(at, self._looked))
            if found is None:
                self._looked = len(self._body) - LONGEST_CLOSER
                return None
            at = found.start()
        self._end(self._body[:at])
        return self._body[at:]

    def finish(self) -> None:
        """The completion is over: what is there is the call, if it can be read."""
        self._end(self._body, UNFINISHED)

    def _read_whole(self, text: str) -> int | None:
        """Where a call ends that is there at once, written as it should be. Following it says the same, slower."""
        closed = None if self._bare else self._close.search(text)
        found = None if closed is None else _USUAL.fullmatch(text, 0, closed.start())
        if closed is None or found is None or found[2] not in self._keys:
            return None
        if found[3].count("{") + found[3].count("[") > DEEPEST:
            return None
        try:
            object_of(found[3])
            found[1].encode()
        except ValueError:
            return None
        self._parts.name_call(found[1])
        self._parts.add_arguments(found[3])
        self._parts.end_call(text[: closed.start()])
        return closed.start()

    def _end(self, body: str, cut: str | None = None) -> None:
        error = self._envelope.flaw(body)
        self._parts.end_call(body, error and (cut or error))


class NamedCall:
    """A name as `head` finds it, then a JSON object, then nothing but `tail`, up to `close`.

    Where `name` is given there is no head.
    """

    def __init__(
        self, parts: Parts, close: re.Pattern[str], head: re.Pattern[str] | None, tail: str = "", name: str = ""
    ) -> None:
        self._parts = parts
        self._close = close
        self._head = head
        self._tail = tail
        self._body = ""
        self._at = 0
        self._behind = 0
        """Where the arguments end."""
        self._value: JsonValue | None = None if head else JsonValue()
        parts.begin_call(name)

    def read(self, text: str) -> str | None:
        """More of the body: None while the call goes on, what follows the call once it has ended."""
        self._body += text
        if self._value is None:
            self._read_head()
        if (value := self._value) is not None and not (value.done or value.broken):
            self._follow(value)
            if not (value.done or value.broken):
                return None
        found = self._close.search(self._body, self._at)
        if found is None:
            if self._value is not None:
                self._at = max(self._at, len(self._body) - LONGEST_CLOSER)
            return None
        self._end(found.start())
        return self._body[found.start() :]

    def finish(self) -> None:
        """The completion is over: what is there is the call, if it can be read."""
        self._end(len(self._body), UNFINISHED)

    def _read_head(self) -> None:
        assert self._head is not None
        found = self._head.match(self._body)
        closed = self._close.search(self._body)
        if found is None or (closed is not None and closed.start() < found.end()):
            return
        self._value, self._at = JsonValue(), found.end()
        if name := found["name"].strip():
            self._parts.name_call(name)

    def _follow(self, value: JsonValue) -> None:
        if not value.begun:
            self._at = skip_blanks(self._body, self._at)
        began, self._at = self._at, value.advance(self._body, self._at)
        if value.structured and self._parts.named:
            self._parts.add_arguments(self._body[began : self._at])
        if value.done:
            self._behind = self._at

    def _end(self, at: int, cut: str | None = None) -> None:
        error = self._flaw(at)
        self._parts.end_call(self._body[:at], error and (cut or error))

    def _flaw(self, at: int) -> str | None:
        if not self._parts.named:
            return "it has no name"
        if self._value is None or not self._value.structured:
            return "its arguments are not a JSON object"
        if not self._value.done:
            return "not JSON: its arguments have no end"
        if self._body[self._behind : at].strip() not in ("", self._tail):
            return "text behind its arguments"
        try:
            object_of(self._parts.arguments)
        except ValueError as error:
            return str(error)
        return None


_OPEN, _FIRST, _KEY, _COLON, _AHEAD, _VALUE, _NEXT = range(7)
_STEPS = {
    ("{", _OPEN): _FIRST,
    (":", _COLON): _AHEAD,
    (",", _NEXT): _KEY,
}


class _Envelope:
    """A JSON object that holds a call's name and arguments; tells both as they come."""

    __slots__ = ("_key", "_keys", "_parts", "_pending", "_seen", "_state", "_told", "_value", "at", "whole")

    def __init__(self, parts: Parts, keys: Sequence[str]) -> None:
        self._parts = parts
        self._keys = keys
        """Of the arguments, by any of these names."""
        self._state = _OPEN
        self._key = ""
        self._value = JsonValue()
        self._pending = ""
        """Arguments that came before the name."""
        self._told = 0
        """Where the value that is read, or its rest that is not told yet, begins."""
        self._seen = 0
        """Keys so far that hold the name or the arguments."""
        self.at = 0
        """What stands before is read."""
        self.whole = False

    def advance(self, body: str) -> bool:
        """Follows `body`, which only grows. True once the object is `whole`, and once it is seen to be none."""
        while not self.whole:
            if self._state == _VALUE:
                if not self._follow(body, self._value):
                    return self._value.broken
                continue
            self.at = at = skip_blanks(body, self.at)
            if at == len(body):
                return False
            char, state = body[at], self._state
            if state == _AHEAD:
                self._state, self._value, self._told = _VALUE, JsonValue(), at
            elif char == '"' and state in (_FIRST, _KEY):
                try:
                    found = key_at(body, at)
                except ValueError:
                    return True
                if found is None:
                    return False
                self._key, self.at = found
                self._state = _COLON
                self._seen += self._key == "name" or self._key in self._keys
            elif (step := _STEPS.get((char, state))) is not None:
                self._state, self.at = step, at + 1
            elif char == "}" and state in (_FIRST, _NEXT):
                self.whole, self.at = True, at + 1
            else:
                return True
        return True

    def flaw(self, body: str) -> str | None:
        """What is wrong with the object now that all of it is there; arguments that were left out are `{}`."""
        try:
            entries = object_of(body)
        except ValueError as error:
            return str(error)
        if not self.whole:
            return TOO_DEEP
        name = entries.get("name")
        if not isinstance(name, str) or not name:
            return "it has no name"
        given = [key for key in self._keys if key in entries]
        if self._seen != 1 + len(given) or len(given) > 1:
            return "its name or its arguments stand there twice"
        if given and not isinstance(entries[given[0]], dict):
            return "its arguments are not a JSON object"
        if not given:
            self._parts.add_arguments("{}")
        return None

    def _follow(self, body: str, value: JsonValue) -> bool:
        """More of the value of a key. False while it has not ended."""
        self.at = value.advance(body, self.at)
        if value.structured and self._key in self._keys:
            self._tell(body[self._told : self.at])
            self._told = self.at
        if not value.done:
            return False
        if self._key == "name":
            self._read_name(body[self._told : self.at])
        self._state = _NEXT
        return True

    def _read_name(self, text: str) -> None:
        try:
            found = key_at(text, 0)
        except ValueError:
            return
        if found and found[0] and not self._parts.named:
            self._parts.name_call(found[0])
            self._parts.add_arguments(self._pending)

    def _tell(self, text: str) -> None:
        if self._parts.named:
            self._parts.add_arguments(text)
        else:
            self._pending += text
