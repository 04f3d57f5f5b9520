"""The arguments of a tool call as those read them who judge calls: by the parser that the tools themselves use."""

from __future__ import annotations

from typing import Any, cast

from pydantic_core import from_json


def as_arguments(text: str) -> dict[str, Any] | None:
    """The JSON object that a call's arguments are, an empty one for no text; None when they are no JSON object."""
    try:
        found = from_json(text or "{}")
    except ValueError:
        return None
    return cast(dict[str, Any], found) if isinstance(found, dict) else None
