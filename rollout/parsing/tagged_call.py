"""Calls whose arguments stand between tags, as Qwen3-Coder and GLM write them, read into JSON by the tool's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from rollout.parsing.events import Parts
from rollout.parsing.json_calls import UNFINISHED
from rollout.turn import Json, ToolSpec


@dataclass(frozen=True, slots=True)
class ArgumentTags:
    """NAME, then KEY and VALUE any number of times, each between its tags, then the end.

    Qwen3-Coder: `<function=NAME><parameter=KEY>VALUE</parameter></function>`.
    GLM: `NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`.
    """

    before_name: str
    """Empty where the name stands right at the beginning."""
    after_name: str
    """Empty where the name goes on to the next tag."""
    before_key: str
    after_key: str
    before_value: str
    """Empty where the value stands right behind its key."""
    after_value: str
    close: str
    """Ends the call. Inside a value it is text, unless it is followed by `outer`: then `after_value` was forgotten."""
    consumed: bool
    """`close` belongs to the call; else it is left for whoever reads on."""
    outer: str
    trims_line: bool = False
    """One line break at either edge of a value belongs to the markup."""


_NAME, _BETWEEN, _KEY, _AHEAD, _VALUE, _LOST = range(6)


class TaggedCall:
    """One call. Each argument is told when it is whole."""

    def __init__(self, parts: Parts, tags: ArgumentTags, tools: Sequence[ToolSpec]) -> None:
        self._parts = parts
        self._tags = tags
        self._tools = tools
        self._body = ""
        self._at = self._looked = 0
        """What stands before the first is read; what the next step waits for does not begin before the second."""
        self._state = _NAME
        self._key = ""
        self._schemas: Mapping[str, Json] = {}
        self._error: str | None = None
        self._separator = "{"
        parts.begin_call()

    def read(self, text: str) -> str | None:
        """More of the body: None while the call goes on, what follows the call once it has ended."""
        self._body += text
        while (end := self._step()) is not None:
            if end >= 0:
                self._end(self._body[:end])
                return self._body[end:]
        return None

    def finish(self) -> None:
        """The completion is over, and more arguments might have come."""
        self._end(self._body, UNFINISHED)

    def _step(self) -> int | None:
        """One step on: None when more is needed, -1 when there may be another, else where the call ends."""
        tags = self._tags
        if self._state == _NAME:
            return self._read_name()
        if self._state == _BETWEEN:
            return self._between()
        if self._state == _KEY:
            return self._until(tags.after_key, _AHEAD if tags.before_value else _VALUE)
        if self._state == _AHEAD:
            return self._expect({tags.before_value: _VALUE})
        if self._state == _VALUE:
            return self._read_value()
        return self._until_close()

    def _read_name(self) -> int | None:
        tags = self._tags
        if self._at == 0 and tags.before_name:
            return self._expect({tags.before_name: _NAME})
        ends = (tags.after_name,) if tags.after_name else (tags.before_key, tags.close)
        stops = (*ends, tags.close, *((tags.outer,) if tags.outer else ()))
        found = _first(self._body, stops, max(self._at, self._looked))
        if found is None:
            self._looked = len(self._body) - max(map(len, stops))
            return None
        at, stop = found
        if stop not in ends:
            return self._lose("its name has no end")
        name = self._body[self._at : at].strip()
        if not name:
            return self._lose("it has no name")
        self._parts.name_call(name)
        offered = next((tool.parameters for tool in self._tools if tool.name == name), None)
        self._schemas = _mapping(_mapping(offered).get("properties"))
        self._at = self._looked = at + len(tags.after_name)
        self._state = _BETWEEN
        return -1

    def _between(self) -> int | None:
        tags = self._tags
        rest = self._body[self._at :].lstrip()
        self._at = len(self._body) - len(rest)
        if rest.startswith(tags.close):
            return self._at + (len(tags.close) if tags.consumed else 0)
        if tags.outer and rest.startswith(tags.outer):
            return self._at
        if any(tag.startswith(rest) for tag in (tags.close, tags.outer) if len(rest) < len(tag)):
            return None
        return self._expect({tags.before_key: _KEY})

    def _expect(self, tags: Mapping[str, int]) -> int | None:
        """Blanks and then one of these tags, which lead to another state; anything else is an error."""
        rest = self._body[self._at :].lstrip()
        for tag, state in tags.items():
            if rest.startswith(tag):
                self._at = self._looked = len(self._body) - len(rest) + len(tag)
                self._state = state
                return -1
        if any(tag.startswith(rest) for tag in tags):
            return None
        return self._lose("text where a tag was expected")

    def _until(self, tag: str, state: int) -> int | None:
        """A key up to `tag`."""
        tags = self._tags
        stops = (tag, tags.close, *((tags.outer,) if tags.outer else ()))
        found = _first(self._body, stops, max(self._at, self._looked))
        if found is None:
            self._looked = len(self._body) - max(map(len, stops))
            return None
        at, stop = found
        if stop != tag:
            return self._lose("an argument's name has no end")
        self._key = self._body[self._at : at].strip()
        self._at = self._looked = at + len(tag)
        self._state = state
        return -1

    def _read_value(self) -> int | None:
        tags = self._tags
        stops = (tags.after_value, *((tags.outer,) if tags.outer else ()))
        start = max(self._at, self._looked)
        while (found := _first(self._body, stops, start)) is not None:
            at, stop = found
            if stop == tags.after_value:
                self._tell(self._body[self._at : at])
                self._at = self._looked = at + len(stop)
                self._state = _BETWEEN
                return -1
            value = self._body[self._at : at].rstrip()
            if value.endswith(tags.close):
                self._tell(value.removesuffix(tags.close))
                return at
            start = at + len(stop)
        self._looked = max(start, len(self._body) - max(map(len, stops)))
        return None

    def _until_close(self) -> int | None:
        tags = self._tags
        found = _first(self._body, (tags.close, *((tags.outer,) if tags.outer else ())), max(self._at, self._looked))
        if found is None:
            self._looked = len(self._body) - max(len(tags.close), len(tags.outer))
            return None
        at, stop = found
        return at + (len(stop) if tags.consumed and stop == tags.close else 0)

    def _lose(self, error: str) -> int:
        self._error, self._state = error, _LOST
        return -1

    def _tell(self, text: str) -> None:
        if self._tags.trims_line:
            text = text.removeprefix("\n").removesuffix("\n")
        written = _written(text, _mapping(self._schemas.get(self._key)))
        self._parts.add_arguments(f"{self._separator}{json.dumps(self._key, ensure_ascii=False)}: {written}")
        self._separator = ", "

    def _end(self, body: str, error: str | None = None) -> None:
        error = self._error or error
        if error is None:
            self._parts.add_arguments("{}" if self._separator == "{" else "}")
        self._parts.end_call(body, error)


def _written(text: str, schema: Mapping[str, Json]) -> str:
    """An argument as JSON: of a type that its schema allows if its text is that, else the text as a string."""
    allowed = _types(schema)
    if allowed - {"string"}:
        try:
            value: Any = json.loads(text)
            if _type(value) & allowed:
                written = json.dumps(value, ensure_ascii=False, allow_nan=False)
                written.encode()
                return written
        except (ValueError, RecursionError):
            lowered = text.strip().lower()
            if "boolean" in allowed and lowered in ("true", "false"):
                return lowered
            if "null" in allowed and lowered == "none":
                return "null"
    return json.dumps(text, ensure_ascii=False)


def _types(schema: Mapping[str, Json]) -> set[str]:
    """JSON types that a schema allows; none where it does not say."""
    named = schema.get("type")
    found = {named} if isinstance(named, str) else set[str]()
    if isinstance(named, list):
        found = set(cast(list[str], named))
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found |= _types(_mapping(choice))
    for value in schema.get("enum", ()) if not found else ():
        found |= _type(value)
    return found


def _type(value: object) -> set[str]:
    """Names JSON schema has for a value's type."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number"}
    return {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"}


def _mapping(value: object) -> Mapping[str, Json]:
    return cast(Mapping[str, Json], value) if isinstance(value, Mapping) else {}


def _first(text: str, tags: Sequence[str], start: int) -> tuple[int, str] | None:
    """The first of some tags at or after `start`."""
    found = [(at, tag) for tag in tags if (at := text.find(tag, max(start, 0))) >= 0]
    return min(found) if found else None
