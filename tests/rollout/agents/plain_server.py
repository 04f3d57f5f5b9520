"""The least that is an MCP server over stdio, of the standard library alone so that it starts at once.

For tests of what becomes of a server's process. The environment says how it behaves.

STARTS names a file that gets a line for each start; where BROKEN is there it ends at once; SILENT answers nothing;
where MORE_TOOLS_AFTER is there it has a tool more.
"""

import json
import os
import sys
from typing import Any

TOOLS = ["count_up", "die", "tell", "fail"]
count = 0


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        told = {"name": "plain", "version": "0.1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": told}
    if method == "tools/list":
        more = ["more"] if os.path.exists(os.environ.get("MORE_TOOLS_AFTER", "")) else []
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS + more]
        start = int(params.get("cursor") or 0)
        page: dict[str, Any] = {"tools": tools[start : start + 2]}
        return page | ({"nextCursor": str(start + 2)} if start + 2 < len(tools) else {})
    if method == "tools/call":
        text, is_error = called(params["name"], params.get("arguments") or {})
        return {"content": [{"type": "text", "text": text}], "isError": is_error}
    return None


def called(tool: str, arguments: dict[str, Any]) -> tuple[str, bool]:
    global count
    if tool == "die":
        os._exit(3)
    if tool == "tell":
        return f"it is {os.environ.get(arguments['variable'])}", False
    count += tool == "count_up"
    return str(count), tool == "fail"


def main() -> None:
    with open(os.environ["STARTS"], "a") as file:
        file.write(f"{os.getpid()}\n")
    if os.path.exists(os.environ.get("BROKEN", "")):
        sys.exit("cannot start: the token abc-secret is wrong")
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked or "SILENT" in os.environ:
            continue
        result = answer(asked["method"], asked.get("params") or {})
        unknown = {"code": -32601, "message": "unknown method"}
        said = {"result": result} if result is not None else {"error": unknown}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **said}), flush=True)


if __name__ == "__main__":
    main()
