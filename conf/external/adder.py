"""A small agent program, as anybody would write one with OpenAI's client: `adder.py TASK`.

It has a tool of its own, looks for base URL and key where the client looks for them, and prints its answer.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from openai import OpenAI

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
            },
        },
    }
]


def main(task: str) -> None:
    """Asks until the model calls no tool any more."""
    client = OpenAI()
    messages: list[Any] = [{"role": "system", "content": "Use add, then answer."}, {"role": "user", "content": task}]
    while True:
        done = client.chat.completions.create(model=os.environ["MODEL"], messages=messages, tools=TOOLS)
        said = done.choices[0].message
        messages.append(said)
        if not said.tool_calls:
            print(said.content)
            return
        for call in said.tool_calls:
            assert call.type == "function"
            given = json.loads(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(given["a"] + given["b"])})


if __name__ == "__main__":
    main(sys.argv[1])
