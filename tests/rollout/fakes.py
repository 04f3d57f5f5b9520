"""What the tests of the core share: the bundled tokenizer under several chat templates, jobs of one episode, and
policies and sessions that break where they are told to."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from resources.counter import Counter
from rollout.episode import Setting
from rollout.protocols import Policy, Seeded, Session, Sessions
from rollout.resource import Resource
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.sessions import LocalSessions, SessionTable
from rollout.template import BUNDLED, ChatTemplate, load_template
from rollout.tokens import TokenLedger
from rollout.trajectory import (
    Agent,
    Completion,
    FinishReason,
    Lease,
    Limits,
    Prompt,
    Score,
    Task,
    ToolCall,
    ToolResult,
    Transcript,
)

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE = load_template(BUNDLED)
TOKENIZER = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
IM_END, END_OF_TEXT = TEMPLATE.encode("<|im_end|><|endoftext|>")
LIMITS = Limits(max_turns=8, max_tokens=4000, turn_tokens=400)

ADD = '<think>One more.</think>\n<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
SUBMIT = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
GOLD = (ADD, ADD, SUBMIT)
"""Solves `counter()`."""


def template(name: str, *eos: str) -> ChatTemplate:
    """One of the templates in templates/, over the bundled tokenizer, with the tokens that end a turn."""
    ids = TEMPLATE.encode("".join(eos or ("<|im_end|>", "<|endoftext|>")))
    return ChatTemplate(TOKENIZER, (TEMPLATES / f"{name}.jinja").read_text(), {}, frozenset(ids))


def counter() -> Counter:
    """An environment whose target is 2."""
    return Counter(count=3, target=2)


def lease(task: Task | None = None, **changes: Any) -> Lease:
    """The last attempt at the first sample of a task."""
    chosen = task or next(iter(counter().tasks(0)))
    return replace(Lease("run", chosen, 0, 1, True, 7), **changes)


def setting(policy: Policy, sessions: Sessions | Resource | None = None, **changes: Any) -> Setting:
    """A job around one policy; sessions of `counter()` unless others are given."""
    if sessions is None or isinstance(sessions, Resource):
        sessions = LocalSessions(SessionTable(sessions or counter()))
    chosen = Setting(
        agent=Agent(),
        policy=policy,
        sessions=sessions,
        limits=LIMITS,
        new_ledger=partial(TokenLedger, TEMPLATE, hermes),
        resource="counter",
        model="scripted",
    )
    return replace(chosen, **changes)


def says(*lines: str) -> ScriptedPolicy:
    """A policy that says its lines."""
    return ScriptedPolicy(TEMPLATE, lines)


def completion(ids: Sequence[int], reason: FinishReason = FinishReason.STOP, **more: Any) -> Completion:
    """What an engine gives for sampled ids."""
    return Completion(reason, array("i", ids), array("f", [0.0] * len(ids)), **more)


async def hang() -> None:
    """Never comes back."""
    await asyncio.Event().wait()


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    """Something that raises when it is awaited."""

    async def fail() -> None:
        raise error

    return fail


Fault = Callable[[], Awaitable[None]]


@dataclass
class FaultyPolicy:
    """Does `fault` at one turn and says its lines at the others."""

    inner: Policy
    fault: Fault
    turn: int = 0

    async def complete(self, prompt: Prompt) -> Completion:
        if prompt.turn == self.turn:
            await self.fault()
        return await self.inner.complete(prompt)


@dataclass
class FaultySession:
    """Does a fault before the verb it is for."""

    inner: Session
    faults: Mapping[str, Fault]

    async def _before(self, verb: str) -> None:
        if (fault := self.faults.get(verb)) is not None:
            await fault()

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        await self._before("call")
        return await self.inner.call(call, seconds)

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        await self._before("verify")
        return await self.inner.verify(transcript, seconds)

    async def close(self) -> None:
        await self._before("close")
        await self.inner.close()


@dataclass
class FaultySessions:
    """Sessions of `counter()` that break at one of seed, call, verify and close."""

    faults: Mapping[str, Fault]
    table: SessionTable = field(default_factory=lambda: SessionTable(counter()))
    asked: int = 0

    async def seed_session(self, task: Task, seed: int, seconds: float) -> Seeded:
        self.asked += 1
        if (fault := self.faults.get("seed")) is not None:
            await fault()
        seeded = await LocalSessions(self.table).seed_session(task, seed, seconds)
        return replace(seeded, session=FaultySession(seeded.session, self.faults))

    async def restore_session(self, task: Task, seed: int, snapshot: bytes, seconds: float) -> Seeded:
        seeded = await LocalSessions(self.table).restore_session(task, seed, snapshot, seconds)
        return replace(seeded, session=FaultySession(seeded.session, self.faults))
