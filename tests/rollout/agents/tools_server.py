"""A real MCP server for tests, made with the official package: `python tools_server.py [PORT]`, stdio without a port.

It gives its tools in pages of two. TOKEN, where it is set, must come as a bearer token.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ListToolsResult


class Paged(MCPServer[Any]):
    """Tells two tools at a time."""

    async def _handle_list_tools(self, ctx: Any, params: Any) -> ListToolsResult:
        tools = await self.list_tools()
        start = int(params.cursor) if params is not None and params.cursor else 0
        more = str(start + 2) if start + 2 < len(tools) else None
        return ListToolsResult(tools=tools[start : start + 2], next_cursor=more)


server = Paged("tools", version="1.2.3", log_level="ERROR")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def fail() -> str:
    """Say that something is wrong."""
    raise ToolError("no such book")


@server.tool()
async def wait() -> str:
    """Never answer."""
    await asyncio.sleep(600)
    return ""


@server.tool()
def die() -> str:
    """End the process."""
    os._exit(3)


@server.tool()
def tell(variable: str) -> str:
    """Tell an environment variable."""
    return f"it is {os.environ.get(variable)}"


@server.tool()
def picture() -> Image:
    """Give an image."""
    return Image(data=b"abc", format="png")


async def serve(port: int) -> None:
    import uvicorn

    app = server.streamable_http_app()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        token = os.environ.get("TOKEN")
        if scope["type"] == "http" and token and headers.get(b"authorization") != f"Bearer {token}".encode():
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            return
        await app(scope, receive, send)

    await uvicorn.Server(uvicorn.Config(guarded, host="127.0.0.1", port=port, log_level="error")).serve()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(serve(int(sys.argv[1])))
    else:
        server.run()
