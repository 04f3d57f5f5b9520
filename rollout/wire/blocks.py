"""Blocks of Anthropic Messages as messages: what one side said, in pieces of several kinds."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from rollout.turn import Message
from rollout.wire.errors import invalid
from rollout.wire.history import Draft
from rollout.wire.request import Object, no_images


class _Source(msgspec.Struct, kw_only=True):
    type: str | None = None
    data: str | None = None


class Block(msgspec.Struct, kw_only=True):
    """One block, of any kind."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Object | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    source: _Source | None = None


def said(blocks: list[Block], where: str) -> Message:
    """An earlier reply. Raises Refused."""
    draft = Draft()
    for at, block in enumerate(blocks):
        match block.type:
            case "text":
                draft.say(block.text or "")
            case "thinking":
                draft.reason(block.thinking or "")
            case "redacted_thinking":
                pass  # another server's, and nobody here can read it
            case "tool_use":
                if block.id is None or block.name is None:
                    raise invalid(f"{where}[{at}]", "a tool_use without id or name")
                # As our own parsers write arguments, whatever blanks the client has put between them.
                draft.call(block.id, block.name, json.dumps(block.input or {}, ensure_ascii=False))
            case other:
                raise invalid(f"{where}[{at}].type", f"unknown kind of block '{other}'")
    return draft.message()


def heard(blocks: list[Block], where: str, model: str) -> list[Message]:
    """What a user message tells: results are messages of their own, in the order they stand. Raises Refused."""
    told: list[Message] = []
    texts: list[str] = []

    def flush() -> None:
        if texts:
            told.append({"role": "user", "content": "\n".join(texts)})
            texts.clear()

    for at, block in enumerate(blocks):
        if block.type == "tool_result":
            flush()
            told.append(_result(block, f"{where}[{at}]", model))
        else:
            texts.append(_text(block, f"{where}[{at}]", model))
    flush()
    return told or [{"role": "user", "content": ""}]


def _result(block: Block, where: str, model: str) -> Message:
    if block.tool_use_id is None:
        raise invalid(f"{where}.tool_use_id", "missing")
    content = block.content
    text = content if isinstance(content, str) else plain(content or (), f"{where}.content", model)
    # Chat templates have no place for the flag, so the text has to say it.
    if block.is_error and "error" not in text.lower():
        text = f"Error: {text}"
    return {"role": "tool", "content": text, "tool_call_id": block.tool_use_id}


def plain(blocks: Sequence[Block], where: str, model: str) -> str:
    """The text of blocks that may hold nothing else. Raises Refused."""
    return "\n".join(_text(block, f"{where}[{at}]", model) for at, block in enumerate(blocks))


def _text(block: Block, where: str, model: str) -> str:
    if block.type == "text":
        return block.text or ""
    source = block.source
    if block.type == "document" and source is not None and source.type == "text":
        return source.data or ""
    if block.type in ("image", "document"):
        raise no_images(model, where, block.type)
    raise invalid(f"{where}.type", f"unknown kind of block '{block.type}'")
