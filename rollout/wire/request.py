"""What requests of the OpenAI APIs and of Anthropic's share: decoding, bounds, and the keys that are hints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from rollout.turn import ToolSpec
from rollout.wire.asked import Form, Named, ToolChoice
from rollout.wire.errors import Refused, invalid, malformed

S = TypeVar("S", bound=msgspec.Struct)

Text = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Heat = Annotated[float, msgspec.Meta(ge=0, le=2)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Object = dict[str, Any]

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class Hinted(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Keys of a request that say nothing about the answer. Kept as given, for whoever schedules."""

    nvext: Object | None = None
    priority: int | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    metadata: Object | None = None
    user: str | None = None
    cache_control: Object | None = None


_HINTS = Hinted.__struct_fields__


def hints(request: Hinted) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name in _HINTS if (value := getattr(request, name)) is not None}


def decode(decoder: msgspec.json.Decoder[S], body: bytes) -> S:
    """The request in a body. Raises Refused."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error) from None


def tool_spec(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> ToolSpec:
    """A tool as the model is told of it."""
    return ToolSpec(name, description or "", _NO_PARAMETERS if parameters is None else parameters)


def checked_choice(choice: ToolChoice, tools: tuple[ToolSpec, ...]) -> ToolChoice:
    """The choice, which there must be tools for. Raises Refused."""
    if isinstance(choice, Named) and all(spec.name != choice.name for spec in tools):
        raise invalid("tool_choice", f"no tool is named '{choice.name}'")
    if choice == "required" and not tools:
        raise invalid("tool_choice", "a call is required and there are no tools")
    return choice


def checked_names(tools: tuple[ToolSpec, ...]) -> tuple[ToolSpec, ...]:
    """The tools, no two of the same name. Raises Refused."""
    if len({spec.name for spec in tools}) < len(tools):
        names = [spec.name for spec in tools]
        twice = next(name for name in names if names.count(name) > 1)
        raise invalid("tools", f"two tools are named '{twice}'")
    return tools


class JsonForm(msgspec.Struct, kw_only=True):
    """`json_schema` of both OpenAI APIs."""

    name: str = "answer"
    schema: Object | None = None
    strict: bool | None = None


def as_form(kind: str, given: JsonForm | None, param: str) -> Form | None:
    """The form an answer is asked for in: None for text. Raises Refused."""
    if kind == "text":
        return None
    if kind == "json_object":
        return Form()
    if kind != "json_schema":
        raise invalid(f"{param}.type", f"expected text, json_object or json_schema, got '{kind}'")
    if given is None or given.schema is None:
        raise invalid(param, "a json_schema without a schema")
    return Form(given.schema, given.name, bool(given.strict))


def no_images(model: str, param: str, kind: str) -> Refused:
    """A 400 for content that no model served as text can see."""
    return invalid(param, f"model '{model}' takes text only, no {kind}")
