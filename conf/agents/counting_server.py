"""An MCP server over stdio, of the standard library alone: it counts. Each episode has one of its own.

With the `mcp` package a server is a few lines; this one shows all that goes over the wire and starts at once.
"""

import json
import sys

SCHEMA = {"type": "object", "properties": {"by": {"type": "integer"}}, "required": ["by"]}
TOOL = {"name": "count", "description": "Count on and tell the total.", "inputSchema": SCHEMA}


def answer(method: str, params: dict, total: list[int]) -> dict | None:
    """The result of a request; None for a method that there is not."""
    if method == "initialize":
        told = {"name": "counting", "version": "1.0"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": told}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        total.append(int(params["arguments"]["by"]))
        return {"content": [{"type": "text", "text": str(sum(total))}], "isError": False}
    return None


def main() -> None:
    """Answers line by line until its input ends."""
    total: list[int] = []
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked:  # nobody waits for an answer
            continue
        result = answer(asked["method"], asked.get("params") or {}, total)
        said = {"error": {"code": -32601, "message": "unknown method"}} if result is None else {"result": result}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **said}), flush=True)


if __name__ == "__main__":
    main()
