"""Prompts that begin alike from one session to the next, so that an engine's prefix cache finds them again.

Programs write into their system prompts what is different every time and says nothing: a billing line, the id of the
session, the time of day. A cache of blocks misses from the first token that differs. Rules take such text out, or put
the same in its place, before anything is rendered. Only what is asked for is touched: the date and an id can be
something that the policy has to know. What the policy said is never touched.

The billing line is that of Claude Code, which writes it into the prompt as the first line of the system text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rollout.errors import nearest
from rollout.sections import Section
from rollout.turn import Json

Place = Literal["system", "user", "tool", "tools"]
"""Messages by role, developer being system; `tools` is the descriptions in the definitions of tools."""
Entry = Mapping[str, Any]
"""A message or the definition of a tool, as it came: its content may be a list of parts."""

_SYSTEM: frozenset[Place] = frozenset({"system"})
_DATA = frozenset({"const", "default", "enum", "examples"})
"""Keys of a JSON schema whose values are not schemas."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Text that is replaced."""

    name: str
    pattern: re.Pattern[str]
    replacement: str = ""
    """May name groups of the pattern."""
    places: frozenset[Place] = _SYSTEM
    seeds: tuple[str, ...] = ()
    """The pattern is tried only where one of these stands: to find them takes a hundredth of the time that trying it at
    every character takes."""
    before: int = 0
    """Characters that a match begins before its seed."""

    def found(self, text: str) -> Iterable[re.Match[str]]:
        """All matches from left to right, none over another."""
        if not self.seeds:
            return self.pattern.finditer(text)
        return self._beside(match for at in self._tried(text) if (match := self.pattern.match(text, at)) is not None)

    def _beside(self, matches: Iterable[re.Match[str]]) -> Iterator[re.Match[str]]:
        end = 0
        for match in sorted(matches, key=re.Match[str].start):
            if match.start() >= end:
                yield match
                end = match.end()

    def _tried(self, text: str) -> Iterator[int]:
        for seed in self.seeds:
            at = text.find(seed, self.before)
            while at >= 0:
                yield at - self.before
                at = text.find(seed, at + 1)


_DAY = r"20\d\d-[01]\d-[0-3]\d"
_HOUR = r"[ T][0-2]\d:[0-5]\d(?::[0-5]\d(?:[.,]\d+)?)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?(?!\w)"
_HEX = "[0-9A-Fa-f]"
_UUID = rf"(?<!\w){_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}(?!\w)"
_BILLING = "x-anthropic-billing-header:"
_NAMED = r"(?<!\w)\w(?:ession|onversation|hread|equest|race)[ _-]?(?:[Ii][Dd]|[Cc]ontext)"
_BUILT_IN = (
    Rule(
        "billing_header", re.compile(r"(?m)^x-anthropic-billing-header:.*\n?"), seeds=("x-anthropic-billing-header:",)
    ),
    Rule("times", re.compile(rf"(?<!\w)({_DAY}){_HOUR}"), r"\1", seeds=("20",)),
    Rule("dates", re.compile(rf"(?<!\w){_DAY}(?:{_HOUR}|(?![\w-]))"), "<date>", seeds=("20",)),
    Rule(
        "session_ids",
        re.compile(rf"({_NAMED}[\"'`*]*\s?[:=]\s?[\"'`*]*)(?=[\w.-]*\d)[\w.-]{{6,}}(?<![.-])"),
        r"\1<id>",
        seeds=("ession", "onversation", "hread", "equest", "race"),
        before=1,
    ),
    Rule(
        "uuids",
        re.compile(rf"(?<!\w){_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}(?!\w)"),
        "<id>",
        seeds=("-",),
        before=8,
    ),
    Rule("hex_ids", re.compile(r"[0-9a-f](?<!\w.)[0-9a-f]{15,}(?!\w)(?<!\d{16})(?<![a-f]{16})"), "<id>"),
    Rule("prefixed_ids", re.compile(r"(?<=[a-z])_(?=[A-Za-z]*\d)[A-Za-z0-9]{16,}(?!\w)"), "_<id>", seeds=("_",)),
)
BUILT_IN: Mapping[str, Rule] = {rule.name: rule for rule in _BUILT_IN}
"""By name. `times` leaves the day, `dates` nothing of it; `prefixed_ids` are those like toolu_01AbCd..., whose prefix
stays; `hex_ids` takes digests, too."""


class RuleConfig(Section):
    """A rule of one's own."""

    name: Annotated[str, Field(min_length=1)]
    """What counts call it."""
    pattern: Annotated[str, Field(min_length=1)]
    """A regular expression of Python's re."""
    replace: str = ""
    r"""What stands in its place; \1 is its first group."""
    places: Annotated[tuple[Place, ...], Field(min_length=1)] = ("system",)
    """system, user and tool messages; tools is the descriptions of tools."""

    @model_validator(mode="after")
    def _is_a_pattern(self) -> Self:
        try:
            pattern = re.compile(self.pattern)
            pattern.sub(self.replace, "")  # reads the replacement, whether it matches or not
        except (re.error, IndexError) as error:
            reason = f"'{self.pattern}' and '{self.replace}': {error}"
            raise PydanticCustomError("pattern", "no regular expression: {reason}", {"reason": reason}) from None
        if pattern.search("") is not None:
            raise PydanticCustomError("pattern", "the pattern matches where there is nothing; expected some text")
        return self

    def value(self) -> Rule:
        """As it is applied."""
        return Rule(self.name, re.compile(self.pattern), self.replace, frozenset(self.places))


class PrefixesConfig(Section):
    """What is taken out of the prompts of programs, so that their sessions share a prefix."""

    rules: tuple[str | RuleConfig, ...] = ("billing_header",)
    """Names of rules (billing_header, times, dates, session_ids, uuids, hex_ids, prefixed_ids) and rules of one's own,
    in the order they are applied."""
    schema_keys: Literal["sent", "sorted"] = "sent"
    """`sorted` puts the keys of tools' schemas in alphabetical order, for programs that send them in another one each
    time. The order that arguments are described in is then no longer the program's."""

    @field_validator("rules")
    @classmethod
    def _are_known(cls, rules: tuple[str | RuleConfig, ...]) -> tuple[str | RuleConfig, ...]:
        names = [rule if isinstance(rule, str) else rule.name for rule in rules]
        for rule in rules:
            if isinstance(rule, str) and rule not in BUILT_IN:
                line = f"there is no rule '{rule}'{nearest(rule, BUILT_IN)}"
                raise PydanticCustomError("rule", "{line}", {"line": line})
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise PydanticCustomError("rule", "'{name}' is there twice; expected a name once", {"name": twice})
        return rules

    def value(self) -> Rules:
        """As they are applied."""
        rules = tuple(BUILT_IN[rule] if isinstance(rule, str) else rule.value() for rule in self.rules)
        return Rules(rules, self.schema_keys == "sorted")


@dataclass(frozen=True, slots=True)
class Rules:
    """All that is done to a prompt."""

    rules: tuple[Rule, ...] = ()
    sort_keys: bool = False


@dataclass(frozen=True, slots=True)
class Stable:
    """A prompt after the rules. What no rule touched is the same object as before."""

    messages: tuple[Entry, ...]
    tools: tuple[Entry, ...]
    removed: Mapping[str, int]
    """Characters that were taken out or replaced, by rule; rules that touched nothing are not in it."""


@dataclass(frozen=True, slots=True)
class Touched:
    """What a rule did so far."""

    requests: int = 0
    characters: int = 0


def stabilized(messages: Iterable[Entry], tools: Iterable[Entry], rules: Rules) -> Stable:
    """The prompt that is to be rendered in place of this one.

    Messages are OpenAI's, their content text or a list of parts. A part that the rules leave nothing of goes, and so
    does a system message. Tools are in any of the shapes of OpenAI and Anthropic; they stay in their order.
    """
    removed: dict[str, int] = {}
    said = [_message(message, rules.rules, removed) for message in messages]
    offered = [_described(tool, rules.rules, removed) for tool in tools]
    if rules.sort_keys:
        offered = [_sorted_keys(tool) for tool in offered]
    return Stable(tuple(message for message in said if message is not None), tuple(offered), removed)


def tallied(so_far: Mapping[str, Touched], removed: Mapping[str, int]) -> dict[str, Touched]:
    """Counts by rule with one more request in them."""
    return {**so_far, **{name: _and(so_far.get(name, Touched()), count) for name, count in removed.items()}}


def _and(before: Touched, characters: int) -> Touched:
    return Touched(before.requests + 1, before.characters + characters)


def _message(message: Entry, rules: Sequence[Rule], removed: dict[str, int]) -> Entry | None:
    """The message after the rules; None when it was the system's and is empty now."""
    content: Json = message.get("content")
    role = "system" if message["role"] in ("system", "developer") else message["role"]
    due = [rule for rule in rules if role in rule.places]
    if not due or not content:
        return message
    if isinstance(content, str):
        told: Json = _text(content, due, removed)
    else:
        parts = cast(Sequence[Any], content)
        told = [kept for part in parts if (kept := _part(part, due, removed)) is not None]
        if len(told) == len(parts) and all(one is other for one, other in zip(told, parts, strict=True)):
            return message
    if told is content:
        return message
    changed: dict[str, Any] = {**message, "content": told}
    return changed if told or role != "system" else None


def _part(part: Any, rules: Sequence[Rule], removed: dict[str, int]) -> Any:
    """A part of a content; None when the rules have left nothing of it."""
    if not isinstance(part, Mapping):
        return part
    entry = cast(Entry, part)
    text: Json = entry.get("text")
    if not isinstance(text, str) or (told := _text(text, rules, removed)) is text:
        return entry
    return {**entry, "text": told} if told else None


def _text(text: str, rules: Sequence[Rule], removed: dict[str, int]) -> str:
    """The same object when no rule finds anything."""
    for rule in rules:
        pieces: list[str] = []
        at = found = 0
        for match in rule.found(text):
            put = match.expand(rule.replacement)
            if put == match[0]:
                continue
            pieces += (text[at : match.start()], put)
            at = match.end()
            found += at - match.start()
        if pieces:
            text = "".join((*pieces, text[at:]))
            removed[rule.name] = removed.get(rule.name, 0) + found
    return text


def _described(tool: Entry, rules: Sequence[Rule], removed: dict[str, int]) -> Entry:
    due = [rule for rule in rules if "tools" in rule.places]
    return cast(Entry, _descriptions(tool, due, removed)) if due else tool


def _descriptions(value: Json, rules: Sequence[Rule], removed: dict[str, int]) -> Json:
    """A definition with the rules applied to every text that describes something; what they do not touch is itself."""
    if isinstance(value, Mapping):
        entries = cast(Mapping[str, Json], value)
        told = {key: _told(key, one, rules, removed) for key, one in entries.items()}
        return told if any(told[key] is not one for key, one in entries.items()) else entries
    if isinstance(value, list):
        items = cast(list[Json], value)
        told_items = [_descriptions(one, rules, removed) for one in items]
        return told_items if any(a is not b for a, b in zip(told_items, items, strict=True)) else items
    return value


def _told(key: str, value: Json, rules: Sequence[Rule], removed: dict[str, int]) -> Json:
    if key == "description" and isinstance(value, str):
        return _text(value, rules, removed)
    return value if key in _DATA else _descriptions(value, rules, removed)


def _sorted_keys(tool: Entry) -> Entry:
    """The tool with the keys of its schema in order; its own keys stay where they are."""
    told = {key: _in_order(one) if key in ("parameters", "input_schema") else one for key, one in tool.items()}
    if isinstance(function := told.get("function"), Mapping):
        told["function"] = _sorted_keys(cast(Entry, function))
    return told


def _in_order(value: Json) -> Json:
    if isinstance(value, Mapping):
        entries = cast(Mapping[str, Json], value)
        told: dict[str, Json] = {key: value if key in _DATA else _in_order(value) for key, value in entries.items()}
        return dict(sorted(told.items()))
    return [_in_order(one) for one in cast(list[Json], value)] if isinstance(value, list) else value
