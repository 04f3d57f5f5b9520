"""From a name in a configuration to a Resource, and what identifies its code."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import docstring_parser
from pydantic import TypeAdapter, ValidationError
from rollout.errors import RolloutError, UserError, nearest, raised_in
from rollout.errors import describe as one_line
from rollout.references import load_file, load_module
from rollout.resource import Resource

_CATALOG = {
    "calculator": "resources.calculator:Calculator",
    "counter": "resources.counter:Counter",
    "gymnasium": "resources.gymnasium_adapter:GymnasiumResource",
    "ledger": "resources.ledger:Ledger",
    "python_exec": "resources.python_exec:PythonExec",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What `rollout env list` tells of a resource."""

    name: str
    reference: str
    summary: str
    options: Mapping[str, str]
    """Name to what it is for, in the order of the constructor."""


def names() -> tuple[str, ...]:
    """The resources that come with the project."""
    return tuple(_CATALOG)


def describe(reference: str) -> Entry:
    """A catalogue entry, or the same for a `module:Class` or a file. Raises UserError as load_resource does."""
    found = resource_class(reference)
    doc = docstring_parser.parse(inspect.getdoc(found) or "")
    told = {param.arg_name: " ".join((param.description or "").split()) for param in doc.params}
    options = {name: told.get(name, "") for name in _options(found)}
    return Entry(found.name, _CATALOG.get(reference, reference), doc.short_description or "", options)


def load_resource(reference: str, options: Mapping[str, Any]) -> Resource:
    """Builds a resource from a catalogue name, `module:Class`, `path/file.py:Class` or `path/file.py`.

    Raises UserError in one line for whatever is missing or does not fit.
    """
    found = resource_class(reference)
    parameters = _options(found)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(found).parameters.values())
    hints = get_type_hints(found.__init__, include_extras=True)
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in parameters and not takes_any:
            raise UserError(f"resource {reference} has no option '{name}'{nearest(name, parameters)}")
        try:
            checked[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
        except ValidationError as error:
            what = error.errors(include_url=False)[0]["msg"]
            raise UserError(f"resource {reference}: option {name}={value!r}: {what}") from None
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in checked]
    if missing:
        raise UserError(f"resource {reference} needs the option '{missing[0]}'")
    try:
        resource = found(**checked)
        resource.bound_tools()
    except RolloutError as error:
        raise UserError(f"resource {reference}: {error}") from error
    except ValueError as error:  # what a constructor says of its options
        raise UserError(f"resource {reference}: {one_line(error)}") from error
    except Exception as error:
        raise UserError(f"resource {reference}: {raised_in(error, inspect.getfile(found))}") from error
    return resource


def resource_class(reference: str) -> type[Resource]:
    """The class a reference names. Raises UserError when there is none."""
    place, _, attribute = _CATALOG.get(reference, reference).partition(":")
    if place.endswith(".py"):
        module = load_file(Path(place))
        attribute = attribute or _only_resource(module, place)
    elif attribute:
        module = load_module(place)
    else:
        raise UserError(f"no resource '{reference}', and no module:Class or .py file{nearest(reference, _CATALOG)}")
    found = getattr(module, attribute, None)
    if found is None:
        raise UserError(f"{place} has no '{attribute}'{nearest(attribute, _resources(module))}")
    if not (isinstance(found, type) and issubclass(found, Resource)):
        raise UserError(f"{place}:{attribute} is no subclass of rollout.resource.Resource")
    if not hasattr(found, "name"):
        raise UserError(f"{place}:{attribute} has no `name`")
    return found


def code_digest(resource: Resource) -> str:
    """SHA-256 over the modules that hold the resource's class and bases, and whatever those import of their package.

    A file data/NAME.* beside a module NAME counts as its source. The engine's own modules are left out, and so is
    every other package.
    """
    owners = [owner.__module__ for owner in type(resource).__mro__]
    waiting = [name for name in owners if name.partition(".")[0] not in {"builtins", "rollout"}]
    sources: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        if name not in sources and (file := _file(name)) is not None:
            sources[name] = file.read_bytes()
            waiting += _imports(name, sources[name])
            for data in file.with_name("data").glob(f"{file.stem}.*"):
                sources[f"{name}/{data.name}"] = data.read_bytes()
    digest = hashlib.sha256()
    for _, source in sorted(sources.items()):  # not the names: that of a lone file's module is made from its path
        digest.update(len(source).to_bytes(8, "big") + source)
    return digest.hexdigest()


def _resources(module: ModuleType) -> list[str]:
    members = vars(module).items()
    return [
        name
        for name, member in members
        if isinstance(member, type) and issubclass(member, Resource) and member.__module__ == module.__name__
    ]


def _only_resource(module: ModuleType, place: str) -> str:
    found = _resources(module)
    if len(found) != 1:
        what = f"{len(found)} resources: name one as {place}:{found[0]}" if found else "no subclass of Resource"
        raise UserError(f"{place} holds {what}")
    return found[0]


def _options(found: type[Resource]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(found).parameters.items()
    return {name: p for name, p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _file(name: str) -> Path | None:
    """A module's source file; None for what has none, such as a name inside a module."""
    if (module := sys.modules.get(name)) is not None:
        file = getattr(module, "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            return None
        file = spec.origin if spec is not None else None
    return Path(file) if file and file.endswith(".py") else None


def _imports(module: str, source: bytes) -> Iterator[str]:
    """Names of the same top-level package that the source imports, wherever in it; some may be no modules."""
    package = module.partition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in found if name.partition(".")[0] == package)
