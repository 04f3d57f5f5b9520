"""The models that are served, as both vendors' clients ask for them. Names may hold slashes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from rollout.serving.catalog import ModelProfile
from rollout.wire.errors import invalid, no_such_model

MOST = 1000
"""Models on a page at most, as Anthropic has it."""


def openai_entry(profile: ModelProfile, created: int) -> dict[str, Any]:
    """A model in OpenAI's form; `created` in seconds since 1970.

    `context_window` and `max_output_tokens` are additions that Dynamo makes, too; `max_model_len` is vLLM's.
    """
    return {
        "id": profile.name,
        "object": "model",
        "created": created,
        "owned_by": "rollout",
        "context_window": profile.context,
        "max_output_tokens": profile.max_output,
        "max_model_len": profile.context,
    }


def anthropic_entry(profile: ModelProfile, created: int) -> dict[str, Any]:
    """A model in Anthropic's form, for clients that send the header anthropic-version."""
    return {
        "id": profile.name,
        "type": "model",
        "display_name": profile.display_name,
        "created_at": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": profile.context,
        "max_tokens": profile.max_output,
    }


def find(profiles: Sequence[ModelProfile], path: str) -> ModelProfile:
    """The model that the rest of a path names, slashes escaped or not. Raises Refused."""
    name = unquote(path).strip("/")
    for profile in profiles:
        if profile.name == name:
            return profile
    raise no_such_model(name)


def openai_list(profiles: Sequence[ModelProfile], created: int) -> dict[str, Any]:
    """All models, in OpenAI's form."""
    return {"object": "list", "data": [openai_entry(profile, created) for profile in profiles]}


def anthropic_list(
    profiles: Sequence[ModelProfile],
    created: int,
    limit: int = 20,
    after: str | None = None,
    before: str | None = None,
) -> dict[str, Any]:
    """A page of models in Anthropic's form: those after, or before, the one named. Raises Refused."""
    if not 1 <= limit <= MOST:
        raise invalid("limit", f"expected 1 to {MOST}, got {limit}")
    names = [profile.name for profile in profiles]
    for param, name in (("after_id", after), ("before_id", before)):
        if name is not None and name not in names:
            raise invalid(param, f"no model '{name}'")
    start = names.index(after) + 1 if after is not None else 0
    end = names.index(before) if before is not None else len(names)
    if before is not None and after is None:
        page, more = profiles[max(0, end - limit) : end], end > limit
    else:
        page, more = profiles[start : min(end, start + limit)], start + limit < end
    data = [anthropic_entry(profile, created) for profile in page]
    first, last = (page[0].name, page[-1].name) if page else (None, None)
    return {"data": data, "has_more": more, "first_id": first, "last_id": last}
