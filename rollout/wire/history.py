"""Earlier turns of a conversation, put together from the pieces that each API cuts them into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rollout.turn import Message


class Draft:
    """One assistant message in the making: its pieces come in the order in which they were said."""

    def __init__(self) -> None:
        self._reasoning: list[str] = [""]
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self.ends_in_text = False

    def __bool__(self) -> bool:
        return bool(self._content or self._calls or any(self._reasoning))

    def reason(self, text: str) -> None:
        """Reasoning before the next call, or after the last."""
        before = self._reasoning[-1]
        self._reasoning[-1] = f"{before}\n{text}" if before and text else before or text
        self.ends_in_text = False

    def say(self, text: str) -> None:
        """Content."""
        self._content.append(text)
        self.ends_in_text = True

    def call(self, id: str, name: str, arguments: str) -> None:
        """A call; `arguments` is JSON text and stays as it is, so that the prompt stays as it was."""
        function = {"name": name, "arguments": arguments}
        self._calls.append({"id": id, "type": "function", "function": function})
        self._reasoning.append("")
        self.ends_in_text = False

    def message(self) -> Message:
        """The message. Reasoning is a list where some of it stands between calls."""
        message: Message = {"role": "assistant", "content": "\n".join(self._content)}
        if any(self._reasoning[1:]):
            message["reasoning_content"] = list(self._reasoning if self._reasoning[-1] else self._reasoning[:-1])
        elif self._reasoning[0]:
            message["reasoning_content"] = self._reasoning[0]
        if self._calls:
            message["tool_calls"] = self._calls
        return message


def opened(system: Iterable[str], messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with all that stands at its head in one system message: chat templates take no second one."""
    parts = [text for text in system if text]
    rest = list(messages)
    while rest and rest[0]["role"] == "system":
        parts.append(rest.pop(0)["content"])
    if parts:
        rest.insert(0, {"role": "system", "content": "\n\n".join(parts)})
    return tuple(rest)
