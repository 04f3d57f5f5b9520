"""The form that an agent's answer must have, and what is wrong with an answer that does not have it.

Either a Python class that pydantic understands (a model, a dataclass, a TypedDict; its validators count too) or a
JSON schema. `format` in a JSON schema is an annotation, as its specification has it: what is checked must not depend
on which packages a machine happens to have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from jsonschema.exceptions import SchemaError
from jsonschema.validators import Draft202012Validator, validator_for
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import from_json
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from rollout.errors import UserError, describe
from rollout.references import load_function
from rollout.trajectory import Json

_LISTED = 10
"""Errors an answer is told at most."""
_LINE = 300
"""Characters of one of them: jsonschema repeats the whole value."""
_FILES = (".json", ".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer held against its form: its JSON value, or everything that is wrong with it, a line each."""

    value: Json = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputSchema:
    """`schema` is a JSON schema of an object; `adapter` reads answers for a form that is a Python class."""

    name: str
    schema: Mapping[str, Json]
    adapter: TypeAdapter[Any] | None = None

    def check(self, text: str) -> Checked:
        """Reads JSON text. Of a class the value is what the class writes as JSON, so with its defaults.

        Raises what a validator of the class raises beside ValueError and AssertionError: a bug over there is nothing
        that the policy did wrong.
        """
        try:
            value: Json = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            return Checked(errors=(_line("", f"no valid JSON: {error}"),))
        if self.adapter is None:
            validator = _kind(self.schema)(self.schema, registry=Registry[Any]())  # which fetches no $ref from anywhere
            found = [(error.absolute_path, error.message) for error in validator.iter_errors(value)]
            return Checked(errors=_listed(found)) if found else Checked(value)
        try:
            read = self.adapter.validate_json(text)
        except ValidationError as error:
            return Checked(errors=_listed((one["loc"], one["msg"]) for one in error.errors(include_url=False)))
        return Checked(self.adapter.dump_python(read, mode="json"))


def load_schema(source: str | Mapping[str, Json], key: str) -> OutputSchema:
    """The form that a configuration's `key` gives: `module:Class`, `file.py:Class`, a file with a JSON schema
    (.json, .yaml) or the JSON schema itself.

    Raises UserError, one line that begins with the key, for anything that is none, and for a form that is not an
    object's: no endpoint takes another.
    """
    if isinstance(source, str) and not source.endswith(_FILES):
        return _of_class(load_function(source, key), source, key)
    schema = source if isinstance(source, Mapping) else _of_file(Path(source), key)
    _check_schema(schema, key)
    return _made(schema, "", key)


def _of_class(found: object, source: str, key: str) -> OutputSchema:
    if not isinstance(found, type):
        raise UserError(f"{key}: {source} is no class; expected a pydantic model, a dataclass or a TypedDict")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, found))
        schema = adapter.json_schema()
    except PydanticUserError as error:
        raise UserError(f"{key}: {source} cannot be written as a JSON schema: {describe(error)}") from error
    made = _made(schema, found.__name__, key)
    return OutputSchema(made.name, made.schema, adapter)


def _of_file(path: Path, key: str) -> Mapping[str, Json]:
    try:
        text = path.read_text("utf-8")
        read: Json = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{key}: {path}: cannot be read: {describe(error)}") from error
    if not isinstance(read, dict):
        raise UserError(f"{key}: {path}: expected a JSON schema, an object; found {type(read).__name__}")
    return cast(Mapping[str, Json], read)


def _check_schema(schema: Mapping[str, Json], key: str) -> None:
    try:
        _kind(schema).check_schema(schema)
    except SchemaError as error:
        raise UserError(f"{key}: no valid JSON schema: {_line(_path(error.absolute_path), error.message)}") from error
    root: Any = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver: Any = Registry[Any]().resolver_with_root(root)
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise UserError(f"{key}: $ref {reference!r}: expected a part of the schema itself") from error


def _made(schema: Mapping[str, Json], name: str, key: str) -> OutputSchema:
    """With its root written out: a class that contains itself is only a reference there."""
    if str(reference := schema.get("$ref", "")).startswith("#/$defs/"):
        parts = cast(Mapping[str, Mapping[str, Json]], schema["$defs"])
        schema = {**parts[str(reference).removeprefix("#/$defs/")], "$defs": parts}
    if schema.get("type") != "object":
        raise UserError(f"{key}: type: expected a schema of an object, found {schema.get('type', 'none')!r}")
    named = re.sub(r"[^A-Za-z0-9_-]+", "_", str(schema.get("title") or name or "output"))[:64]
    return OutputSchema(named, json.loads(json.dumps(schema)))


def _kind(schema: Mapping[str, Json]) -> Any:
    """The validator of the draft that a schema names; of the newest where it names none."""
    return validator_for(schema, default=Draft202012Validator)


def _references(part: Json) -> Iterator[str]:
    if isinstance(part, Mapping):
        mapping = cast(Mapping[str, Json], part)
        if isinstance(reference := mapping.get("$ref"), str):
            yield reference
        for value in mapping.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in cast(list[Json], part):
            yield from _references(value)


def _listed(found: Iterable[tuple[Sequence[str | int], str]]) -> tuple[str, ...]:
    lines = [_line(_path(path), message) for path, message in found]
    more = (f"and {len(lines) - _LISTED} more",) if len(lines) > _LISTED else ()
    return (*lines[:_LISTED], *more)


def _path(parts: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in parts)


def _line(path: str, message: str) -> str:
    line = " ".join(f"{path}: {message}".split() if path else message.split())
    return line if len(line) <= _LINE else f"{line[: _LINE - 3]}..."
