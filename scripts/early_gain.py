"""What it saves to begin tool calls while the policy still samples: seconds an episode, with and without.

    python -m scripts.early_gain --model 2 --tool 1 --one-at-a-time

The scripted policy says a sentence, so many calls and with --tail another sentence, evenly over --model seconds; each
call sleeps for --tool seconds, all of a turn at once or, as in a shell, one after the other. An episode is one such
turn. Calls that run at once gain only what the policy says behind the last of them: that one decides.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import replace
from functools import partial

from resources.counter import Counter
from rollout.conduct import plain, plain_early
from rollout.episode import Setting, run_episode
from rollout.parsing import FORMATS
from rollout.protocols import Seeded, Session
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.sessions import LocalSessions, SessionTable
from rollout.stream_reading import token_reader
from rollout.template import load_template, resolve_model
from rollout.tokens import TokenLedger
from rollout.trajectory import Agent, Lease, Limits, Score, Task, ToolCall, ToolResult, Transcript

CALLS = (1, 2, 4)
TAIL = "With these numbers the total can be told, and it is what was asked for; I wait for them and then say it."


class Slow:
    """A session whose calls take their time."""

    def __init__(self, inner: Session, seconds: float, at_once: int) -> None:
        self._inner, self._seconds = inner, seconds
        self._places = asyncio.Semaphore(at_once)

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        """See Session."""
        async with self._places:
            await asyncio.sleep(self._seconds)
            return await self._inner.call(call, seconds)

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        """See Session."""
        return await self._inner.verify(transcript, seconds)

    async def close(self) -> None:
        """See Session."""
        await self._inner.close()


class SlowSessions:
    """Sessions of the counter with slow calls."""

    def __init__(self, seconds: float, at_once: int) -> None:
        self._inner = LocalSessions(SessionTable(Counter(count=1, target=100)))
        self._seconds, self._at_once = seconds, at_once

    async def seed_session(self, task: Task, seed: int, seconds: float) -> Seeded:
        """See Sessions."""
        return self._slow(await self._inner.seed_session(task, seed, seconds))

    async def restore_session(self, task: Task, seed: int, snapshot: bytes, seconds: float) -> Seeded:
        """See Sessions."""
        return self._slow(await self._inner.restore_session(task, seed, snapshot, seconds))

    def _slow(self, seeded: Seeded) -> Seeded:
        return replace(seeded, session=Slow(seeded.session, self._seconds, self._at_once))


async def main(model: float, tool: float, tail: bool, at_once: int) -> None:
    """Plays one episode of each kind and prints what they took."""
    template = load_template(resolve_model("bundled"))
    call = f"<tool_call>\n{json.dumps({'name': 'add', 'arguments': {'amount': 1}})}\n</tool_call>\n"
    task = next(iter(Counter(count=1, target=100).tasks(0)))
    print("calls  behind  early  saved")
    for calls in CALLS:
        said = f"Let me add.\n{call * calls}{TAIL if tail else ''}"
        took: list[float] = []
        for conduct in (plain, partial(plain_early, 60.0)):
            policy = ScriptedPolicy(template, lambda prompt, said=said: [said, "done"], model)
            setting = Setting(
                agent=Agent(),
                policy=policy,
                sessions=SlowSessions(tool, at_once),
                limits=Limits(max_turns=1),
                new_ledger=partial(TokenLedger, template, hermes),
                resource="counter",
                model="scripted",
                conduct=conduct,
                new_reader=partial(token_reader, template, FORMATS["hermes"].open),
            )
            began = time.monotonic()
            await run_episode(Lease("early", task, 0, 1, True, 0), setting)
            took.append(time.monotonic() - began)
        print(f"{calls:5}  {took[0]:6.2f}  {took[1]:5.2f}  {took[0] - took[1]:5.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m scripts.early_gain")
    parser.add_argument("--model", type=float, default=2.0, help="seconds a completion takes")
    parser.add_argument("--tool", type=float, default=1.0, help="seconds a call takes")
    parser.add_argument("--tail", action="store_true", help="the policy says something behind its calls")
    parser.add_argument("--one-at-a-time", action="store_true", help="calls of a turn wait for each other")
    given = parser.parse_args()
    asyncio.run(main(given.model, given.tool, given.tail, 1 if given.one_at_a_time else 16))
