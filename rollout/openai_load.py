"""The load of a vLLM server elsewhere, as it publishes it for Prometheus beside its OpenAI routes.

It is read only where prompts go out as token ids (`model.tokenizer`), which no hosted API takes: those need not be
asked for a page they do not have. Behind a load balancer it is the load of whichever server answers.
"""

from __future__ import annotations

import asyncio
import re
import time

import httpx

from rollout.config import OpenAIConfig
from rollout.load import Load

ASK_SECONDS = 2.0
"""Between two looks."""
ANSWER_SECONDS = 10.0
"""What an answer may take: a server that is short of CPU answers late."""
_NAMES = ("num_requests_running", "num_requests_waiting", "num_preemptions_total", "kv_cache_usage_perc")
_LINE = re.compile(rf"^vllm:({'|'.join(_NAMES)})\{{[^\n]*\}} (\S+)$", re.MULTILINE)


def read_load(page: str) -> Load | None:
    """The load a vLLM server's /metrics page tells, over all its ranks; None when it is no such page."""
    told: dict[str, list[float]] = {}
    for name, value in _LINE.findall(page):
        told.setdefault(name, []).append(float(value))
    if not told:
        return None
    running, waiting, preemptions = (int(sum(told.get(name, ()))) for name in _NAMES[:3])
    return Load(running, waiting, max(told.get("kv_cache_usage_perc", ()), default=0.0), preemptions)


class EndpointLoad:
    """Looks every few seconds, as long as somebody takes what it saw. Belongs to one event loop; close it."""

    def __init__(self, config: OpenAIConfig) -> None:
        base = httpx.URL(config.base_url.rstrip("/"))
        self._page = base.copy_with(path=f"{base.path.removesuffix('/v1')}/metrics")
        self._publishes = config.tokenizer is not None
        self._client = httpx.AsyncClient(timeout=ANSWER_SECONDS)
        self._asked = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._seen: dict[str, Load] = {}

    def take(self) -> dict[str, Load]:
        """By the server's name, what it told since this was asked last; looks again when it is time."""
        idle = self._asking is None or self._asking.done()
        if self._publishes and idle and time.monotonic() - self._asked >= ASK_SECONDS:
            self._asked = time.monotonic()
            self._asking = asyncio.create_task(self._ask())
        seen, self._seen = self._seen, {}
        return seen

    async def aclose(self) -> None:
        """Looks no more."""
        if self._asking is not None:
            self._asking.cancel()
        await self._client.aclose()

    async def _ask(self) -> None:
        try:
            answer = await self._client.get(self._page)
        except (httpx.HTTPError, OSError):
            return
        load = read_load(answer.text) if answer.status_code == 200 else None
        if load is None:
            self._publishes = False
        else:
            self._seen = {self._page.netloc.decode(): load}
