"""What a person names in a configuration, `module:attribute` or `file.py:attribute`, as the Python object it is."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from rollout.errors import UserError, nearest, raised_in


def load_function(reference: str, key: str) -> Callable[..., Any]:
    """The function, or any callable, that a configuration's `key` names.

    Raises UserError, one line that begins with the key, when there is no such module, file or attribute, when importing
    it raises, and for what cannot be called.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        raise UserError(f"{key}: {reference!r}: expected module:function or file.py:function")
    try:
        module = load_file(Path(place)) if place.endswith(".py") else load_module(place)
    except UserError as error:
        raise UserError(f"{key}: {reference}: {error}") from error
    found: Any = getattr(module, name, None)
    if found is None:
        raise UserError(f"{key}: {place} has no '{name}'{nearest(name, vars(module))}")
    if not callable(found):
        raise UserError(f"{key}: {reference} is no function but {type(found).__name__}")
    return cast(Callable[..., Any], found)


def load_module(name: str) -> ModuleType:
    """Imports a module by name. Raises UserError in one line when there is none or when it raises."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"'{name}' is no module's name")
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # it is run, so anything may come out of it
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
        if missing and (name == missing or name.startswith(missing + ".")):
            raise UserError(f"there is no module '{missing}'") from None
        file = name
        with contextlib.suppress(Exception):  # it imports packages above, which may be what is wrong
            spec = importlib.util.find_spec(name)
            file = spec.origin if spec is not None and spec.origin is not None else name
        raise UserError(f"cannot be imported: {raised_in(error, file)}") from error


def load_file(path: Path) -> ModuleType:
    """Imports a lone .py file, once in a process. Raises UserError as `load_module` does."""
    if not path.is_file():
        beside = [str(file) for file in path.parent.glob("*.py")]
        raise UserError(f"there is no file {path}{nearest(str(path), beside) if beside else ''}")
    name = f"user_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and annotations look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"cannot be imported: {raised_in(error, str(path.resolve()))}") from error
    return module
