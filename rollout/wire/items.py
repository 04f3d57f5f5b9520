"""Input items of OpenAI Responses as messages: what one reply said comes back in several items."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import msgspec

from rollout.turn import Message
from rollout.wire.errors import invalid
from rollout.wire.history import Draft
from rollout.wire.request import no_images

_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_MARK = "plain."


class _Part(msgspec.Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, kw_only=True):
    """One input item, of any kind."""

    type: str = "message"
    role: str | None = None
    content: str | list[_Part] | None = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[_Part] | None = None


def as_messages(items: Sequence[Item], model: str) -> list[Message]:
    """The conversation that items tell. Raises Refused for kinds that only their vendor could have made."""
    told: list[Message] = []
    draft = Draft()
    for at, item in enumerate(items):
        where = f"input[{at}]"
        said = item.type in ("reasoning", "function_call") or (item.type, item.role) == ("message", "assistant")
        # Two messages with nothing in between are two replies; all else that the model said in a row is one.
        if draft and (not said or (item.type == "message" and draft.ends_in_text)):
            told.append(draft.message())
            draft = Draft()
        if said:
            _add(draft, item, where, model)
        else:
            told.append(_heard(item, where, model))
    if draft:
        told.append(draft.message())
    return told


def _add(draft: Draft, item: Item, where: str, model: str) -> None:
    if item.type == "message":
        draft.say(_text(item.content, f"{where}.content", model))
    elif item.type == "reasoning":
        content = _text(item.content, f"{where}.content", model)
        draft.reason(content or unsealed(item.encrypted_content) or _text(item.summary, f"{where}.summary", model))
    elif item.call_id is None or item.name is None:
        raise invalid(where, "a function_call without call_id or name")
    else:
        draft.call(item.call_id, item.name, item.arguments or "{}")


def _heard(item: Item, where: str, model: str) -> Message:
    if item.type == "function_call_output":
        if item.call_id is None:
            raise invalid(f"{where}.call_id", "missing")
        text = _text(item.output, f"{where}.output", model)
        return {"role": "tool", "content": text, "tool_call_id": item.call_id}
    if item.type == "item_reference":
        raise invalid(where, "items are not stored one by one: send the item, or previous_response_id")
    if item.type != "message":
        raise invalid(f"{where}.type", f"unknown kind of item '{item.type}'")
    roles = {"user": "user", "system": "system", "developer": "system"}
    if item.role not in roles:
        raise invalid(f"{where}.role", f"expected user, assistant, system or developer, got '{item.role}'")
    return {"role": roles[item.role], "content": _text(item.content, f"{where}.content", model)}


def _text(content: str | list[_Part] | None, where: str, model: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for at, part in enumerate(content):
        if part.type == "refusal":
            texts.append(part.refusal or "")
        elif part.type in _TEXTS:
            texts.append(part.text or "")
        else:
            raise no_images(model, f"{where}[{at}]", part.type)
    return "\n".join(texts)


def sealed(text: str) -> str:
    """Reasoning in the field that clients send back when they keep it themselves.

    They leave out the plain text then, but it is no secret: they were shown it.
    """
    return _MARK + base64.b64encode(text.encode()).decode()


def unsealed(text: str | None) -> str:
    """What `sealed` was given; empty for what another server sealed."""
    if text is None or not text.startswith(_MARK):
        return ""
    try:
        return base64.b64decode(text.removeprefix(_MARK), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
