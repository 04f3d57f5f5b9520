"""What the gateway costs: CPU a request beyond the policy's own, and chunks a second and core.

    python -m scripts.gateway_cost [--requests 2000] [--concurrency 64]

A server in this process, over a scripted policy, and a client in another one; what counts is the CPU time of this
process between the first request and the last answer. What the policy itself takes for the same calls, without a
gateway, is taken off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httptools
import uvicorn

from rollout.gateway.app import Gateway
from rollout.gateway.section import GatewayConfig
from rollout.gateway.served import Served
from rollout.parsing import format_named
from rollout.scripted import ScriptedPolicy
from rollout.serving.catalog import ProfileConfig
from rollout.template import BUNDLED, load_template
from rollout.turn import Prompt, Sampling
from rollout.wire.stored import MemoryResponses

NAME = "scripted"
SAID = (
    "<think>One after the other.</think>I add.\n" + '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
)
TOKENS = 200
"""Of a streamed reply, about."""
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
APIS = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}


def body_of(api: str, stream: bool) -> bytes:
    """A request of an agent in its second turn, with two tools."""
    function = {"name": "add", "description": "Adds a to the sum.", "parameters": PARAMETERS}
    asked: dict[str, Any] = {"model": NAME, "stream": stream}
    if api == "responses":
        return json.dumps({**asked, "input": "What is 1 and 2?", "tools": [{"type": "function", **function}]}).encode()
    asked["messages"] = [
        {"role": "user", "content": "What is 1 and 2?"},
        {"role": "assistant", "content": "I think that it is 3."},
        {"role": "user", "content": "Try it with the tool."},
    ]
    if api == "messages":
        tool = {"name": "add", "description": "Adds a to the sum.", "input_schema": PARAMETERS}
        return json.dumps({**asked, "max_tokens": 1000, "tools": [tool]}).encode()
    return json.dumps({**asked, "tools": [{"type": "function", "function": function}]}).encode()


class Reader:
    """One answer after the other on a connection."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.done = False
        self.chunks = 0

    def on_body(self, body: bytes) -> None:
        self.chunks += body.count(b"data: ")

    def on_message_complete(self) -> None:
        self.done = True


async def ask(port: int, request: bytes, requests: list[None]) -> int:
    """Asks as long as there are requests left; how many chunks came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    chunks = 0
    while requests:
        requests.pop()
        writer.write(request)
        parts = Reader()
        while not parts.done:
            data = await reader.read(65536)
            if not data:
                raise RuntimeError("the server hung up")
            parts.parser.feed_data(data)
        if parts.parser.get_status_code() != 200:
            raise RuntimeError(f"status {parts.parser.get_status_code()}")
        chunks += parts.chunks
    writer.close()
    return chunks


async def load(port: int, api: str, stream: bool, count: int, concurrency: int) -> int:
    """The client's side."""
    body = body_of(api, stream)
    head = f"POST {APIS[api]} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
    request = f"{head}content-type: application/json\r\nuser-agent: load\r\naccept: */*\r\n\r\n".encode() + body
    requests: list[None] = [None] * count
    return sum(await asyncio.gather(*(ask(port, request, requests) for _ in range(concurrency))))


@dataclass
class Measured:
    """CPU seconds of the gateway and of the policy alone, and what was told."""

    cpu: float
    own: float
    wall: float
    chunks: int


async def measured(policy: ScriptedPolicy, api: str, stream: bool, count: int, concurrency: int) -> Measured:
    """One load, after a small one that warms up."""
    served = Served(policy, load_template(BUNDLED), format_named("hermes"), ProfileConfig().value(NAME, 2048))
    gateway = Gateway(served, GatewayConfig(), MemoryResponses())
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        port = listening.getsockname()[1]
        config = uvicorn.Config(gateway, log_level="warning", access_log=False, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await other(port, api, stream, concurrency, concurrency)
        cpu, wall = time.process_time(), time.perf_counter()
        chunks = await other(port, api, stream, count, concurrency)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        server.should_exit = True
        await serving
    return Measured(cpu, await own(policy, stream, count), wall, chunks)


async def other(port: int, api: str, stream: bool, count: int, concurrency: int) -> int:
    """The load from a process of its own; the chunks that it got."""
    told = [str(port), api, str(int(stream)), str(count), str(concurrency)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.gateway_cost", "--load", *told, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the load broke")
    return int(out)


async def own(policy: ScriptedPolicy, stream: bool, count: int) -> float:
    """CPU seconds of the policy alone for as many calls."""
    prompt = Prompt("x", "x", 0, [1] * 100, (), (), 1000, Sampling(), 60.0)
    call: Callable[[Prompt], Awaitable[Any]] = (
        (lambda one: policy.stream(one, lambda _: None)) if stream else policy.complete
    )
    cpu = time.process_time()
    for _ in range(count):
        await call(prompt)
    return time.process_time() - cpu


async def run(requests: int, concurrency: int) -> None:
    """Prints a line for each API, whole and streamed."""
    template = load_template(BUNDLED)
    whole = ScriptedPolicy(template, [SAID])
    word = "sum "
    streamed = ScriptedPolicy(template, [word * (TOKENS // max(1, len(template.encode(word))))])
    for api in APIS:
        one = await measured(whole, api, False, requests, concurrency)
        each = 1000 * (one.cpu - one.own) / requests
        print(f"{api:10} whole    {each:6.3f} ms CPU a request  ({requests / one.wall:,.0f} requests/s)", flush=True)
    for api in APIS:
        one = await measured(streamed, api, True, requests // 10, concurrency)
        rate = one.chunks / (one.cpu - one.own)
        print(f"{api:10} streamed {rate:8,.0f} chunks/s a core ({one.chunks:,} chunks)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--load", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load is not None:
        port, api, stream, count, concurrency = given.load
        print(asyncio.run(load(int(port), api, stream == "1", int(count), int(concurrency))))
        return
    asyncio.run(run(given.requests, given.concurrency))


if __name__ == "__main__":
    main()
