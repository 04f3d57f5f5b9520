"""Calls written as a Python list, as Llama 3.2 and Llama 4 do: `[NAME(KEY=VALUE, ...), NAME(...)]`."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from rollout.parsing.events import Parts
from rollout.parsing.json_calls import UNFINISHED

_TOKEN = re.compile(r"""[()\[\]{}'"]""")
_QUOTED = {quote: re.compile(rf"[{quote}\\\n]") for quote in "'\""}
_JSON_NAMES = {"true": True, "false": False, "null": None}


class PythonicCalls:
    """The calls of one list; each is told when it is whole."""

    def __init__(self, parts: Parts, close: re.Pattern[str]) -> None:
        self._parts = parts
        self._close = close
        self._text = ""
        self._at: int = 0
        self._begins = -1
        """Of the call that is being read; -1 where none is."""
        self._depth = 0
        self._quote = ""
        self._lost = False
        """What stands there is no list of calls."""

    def read(self, text: str) -> str | None:
        """More of the list: None while it goes on, what follows it once it has ended."""
        self._text += text
        while (end := self._step()) is not None:
            if end >= 0:
                return self._text[end:]
        return None

    def finish(self) -> None:
        """The completion is over; a list that was not closed keeps the calls that were."""
        if self._begins >= 0:
            self._fail(self._text[self._begins :], UNFINISHED)

    def _step(self) -> int | None:
        """One step on: None when more is needed, -1 when there may be another, else where the list ends."""
        text = self._text
        if self._lost:
            return self._find_close()
        if self._begins < 0:
            return self._between()
        pattern = _QUOTED[self._quote] if self._quote else _TOKEN
        found = pattern.search(text, self._at)
        if found is None:
            self._at = len(text)
            return None
        token, self._at = found.group(), found.end()
        if self._quote:
            return self._in_quotes(token)
        if token in "'\"":
            self._quote = token
            return -1
        self._depth += 1 if token in "([{" else -1
        if self._depth == 0 and token == ")":
            self._call(text[self._begins : self._at])
            self._begins = -1
        elif self._depth <= 0:
            return self._lose()
        return -1

    def _in_quotes(self, token: str) -> int | None:
        if token == "\\" and self._at == len(self._text):
            self._at -= 1
            return None
        if token == "\\":
            self._at += 1
        elif token == "\n":
            return self._lose()
        else:
            self._quote = ""
        return -1

    def _between(self) -> int | None:
        """Between calls: the list's bracket, a comma, or its end."""
        rest = self._text[self._at :].lstrip()
        self._at = len(self._text) - len(rest)
        if not rest:
            return None
        if rest[0] == "]":
            return self._at + 1
        if rest[0] in "[,":
            self._at += 1
        elif rest[0].isalpha() or rest[0] == "_":
            self._begins, self._depth = self._at, 0
        else:
            self._begins = self._at
            return self._lose()
        return -1

    def _lose(self) -> int:
        self._lost = True
        return -1

    def _find_close(self) -> int | None:
        """What is no call goes on to a marker, or to the end of the completion."""
        found = self._close.search(self._text, self._begins)
        if found is None:
            return None
        self._fail(self._text[self._begins : found.start()], "not a list of calls")
        return found.start()

    def _fail(self, text: str, error: str) -> None:
        self._parts.begin_call()
        self._parts.end_call(text, error)

    def _call(self, text: str) -> None:
        self._parts.begin_call()
        try:
            name, arguments = _read(text)
        except ValueError as error:
            self._parts.end_call(text, str(error))
            return
        self._parts.name_call(name)
        self._parts.add_arguments(arguments)
        self._parts.end_call(text)


def _read(text: str) -> tuple[str, str]:
    """Name and JSON arguments of one call. Raises ValueError that says what is wrong with it."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        named = isinstance(call, ast.Call) and not call.args and all(word.arg is not None for word in call.keywords)
        if isinstance(call, ast.Call) and named:
            arguments = {str(word.arg): _value(word.value) for word in call.keywords}
            written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            written.encode()
            return ast.unparse(call.func), written
    except (SyntaxError, RecursionError, MemoryError, TypeError, ValueError):
        raise ValueError("not a call whose arguments are plain values") from None
    raise ValueError("its arguments need names")


def _value(node: ast.expr) -> Any:
    """A literal, with JSON's names beside Python's."""
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(part) for part in node.elts]
    if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
        return {str(_value(key)): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    return ast.literal_eval(node)
