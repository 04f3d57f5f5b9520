"""A program that a server elsewhere runs: one request with the task, and an answer when it is done.

The server answers with JSON: `answer`, what the program gave (or printed), `status`, what it exited with (0 when not
given), and `error`, what it said when something was wrong. Hanging up tells it that nobody waits any more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

import httpx

from rollout.deadlines import deadline
from rollout.errors import ResourceDown
from rollout.external.process import Ran
from rollout.trajectory import Json


async def run_remote(url: str, body: Mapping[str, Json], bearer: str | None, seconds: float) -> Ran:
    """Has the program run, for `seconds` at most. Raises ResourceDown for a server that does not do it, and what httpx
    raises for one that cannot be reached."""
    began = time.monotonic()
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    try:
        async with deadline(seconds), httpx.AsyncClient(headers=headers, timeout=None) as client:
            response = await client.post(url, json=dict(body))
    except TimeoutError:
        return Ran(None, seconds=time.monotonic() - began)
    if response.status_code != 200:
        raise ResourceDown(f"it answered {response.status_code}: {response.text[:200]}")
    try:
        told: Any = response.json()
    except ValueError:
        raise ResourceDown(f"it answered no JSON: {response.text[:200]}") from None
    if not isinstance(told, dict):
        raise ResourceDown("it answered with no JSON object")
    said = cast(dict[str, Any], told)
    error = said.get("error")
    status = said.get("status", 0 if error is None else 1)
    if not isinstance(status, int):
        raise ResourceDown(f"its status is no number: {str(status)[:40]}")
    return Ran(status, _text(said.get("answer")), _text(error), time.monotonic() - began)


def _text(value: Json) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
