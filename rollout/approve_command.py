"""`rollout approve`: the tool calls of a run that wait for a person."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rollout.agents.approval_queue import REQUESTS, answer, pending
from rollout.approve_server import Doors, serve
from rollout.errors import UserError
from rollout.storage import inside


def approve(run: str, request: str | None, reply: str | None, by: str | None, doors: Doors | None = None) -> None:
    """Lists what waits in the run, or answers one request; with `doors`, does both over HTTP until it is stopped.

    Raises UserError for a request or a reply that is none, and for doors that are not to be opened.
    """
    place = inside(run, REQUESTS)
    if doors is not None:
        if request is not None:
            raise UserError(f"--serve: expected no request, found {request}; answers come over HTTP")
        serve(place, doors, by)
        return
    if request is None:
        _show(place, run)
        return
    if reply is None:
        raise UserError(
            f"{request}: expected an answer: approve, a text for the policy, or a JSON object with decision"
        )
    answer(place, request, _read(reply), by)


def _read(reply: str) -> Any:
    """Text, or the object that it writes as JSON."""
    if not reply.lstrip().startswith("{"):
        return reply
    try:
        return json.loads(reply)
    except ValueError as error:
        raise UserError(f"{reply}: no valid JSON: {error}") from None


def _show(place: str, run: str) -> None:
    waiting = pending(place)
    console = Console()
    if not waiting:
        console.print("nothing waits")
        return
    table = Table("request", "agent", "tool", "arguments", "waits", box=None)
    for one in waiting:
        seconds = f"{max(0.0, time.time() - one.asked_at):.0f} s"
        table.add_row(*(escape(text) for text in (one.id, one.agent, one.tool, one.arguments, seconds)))
    console.print(table)
    console.print(f"rollout approve {run} REQUEST approve", markup=False, soft_wrap=True)
