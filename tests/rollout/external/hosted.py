"""A gateway over a scripted policy, as a runner has it, and episodes that programs play behind it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from fakes import LIMITS, TEMPLATE, counter, lease, setting

from rollout.episode import Setting, run_episode
from rollout.external.captured import CapturedEpisode
from rollout.external.hosting import Hosting
from rollout.external.playing import External
from rollout.external.section import ExternalConfig
from rollout.findings import Known
from rollout.gateway.section import GatewayConfig
from rollout.gateway.served import Served
from rollout.invariants import check_rows
from rollout.parsing import format_named
from rollout.protocols import Policy
from rollout.resource import Resource
from rollout.rows import to_row, to_table
from rollout.scripted import ScriptedPolicy
from rollout.serving.catalog import ProfileConfig
from rollout.sessions import LocalSessions, SessionTable
from rollout.trajectory import Agent, Completion, Prompt, ToolCall, ToolResult, ToolSpec, Trajectory

CONTEXT = 4096
PATIENT = (2.0, 10.0, 40.0)
"""Seconds that a program gets to come so far as a test needs it, on a machine that is busy."""
CLIENT = """
import json, os, sys, urllib.request

def post(url, body, key=None):
    headers = {"content-type": "application/json", "authorization": f"Bearer {key or os.environ['OPENAI_API_KEY']}"}
    return json.load(urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)))

def ask(*messages, **more):
    body = {"model": "m", "messages": list(messages), **more}
    said = post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body)["choices"][0]["message"]
    return said

def user(text):
    return {"role": "user", "content": text}
"""


@dataclass
class Watched:
    """A scripted policy that remembers its prompts."""

    inner: Policy
    prompts: list[Prompt] = field(default_factory=list)

    async def complete(self, prompt: Prompt) -> Completion:
        self.prompts.append(prompt)
        return await self.inner.complete(prompt)


class NoTools:
    """An environment without tools."""

    specs: tuple[ToolSpec, ...] = ()

    async def call(self, call: ToolCall) -> ToolResult:
        raise AssertionError


def scripted(script: Sequence[str] | Callable[[Prompt], Sequence[str]]) -> Watched:
    return Watched(ScriptedPolicy(TEMPLATE, script))


@asynccontextmanager
async def hosting(policy: Policy, config: ExternalConfig | None = None, **more: Any) -> AsyncGenerator[Hosting]:
    """The gateway, on a port of its own."""
    profile = ProfileConfig().value("m", CONTEXT)
    served = Served(policy, TEMPLATE, format_named("hermes"), profile, **more)
    host = await Hosting.start(config or ExternalConfig(command=("true",)), served, GatewayConfig())
    try:
        yield host
    finally:
        await host.close()


def opened(host: Hosting, **changes: Any) -> tuple[CapturedEpisode, str]:
    """An episode, and where its three APIs are."""
    limits = replace(LIMITS, **changes)
    scribe = CapturedEpisode(TEMPLATE, limits, sys.float_info.max, model="m", context=CONTEXT)
    return scribe, f"{host.origin}/e/{host.episodes.open(scribe, NoTools())}"


@dataclass
class Played:
    """An episode that was played, and what is wrong with its row."""

    trajectory: Trajectory
    findings: list[Any]
    row: dict[str, Any]
    table: SessionTable


def python(code: str) -> tuple[str, ...]:
    """A command that runs a script with `ask` in it."""
    return (sys.executable, "-c", CLIENT + code)


async def play(
    command: Sequence[str] | None,
    policy: Policy | Sequence[str] = ("Done.",),
    resource: Resource | None = None,
    drops: dict[str, str] | None = None,
    agent: Agent | None = None,
    changes: dict[str, Any] | None = None,
    **section: Any,
) -> Played:
    """Plays one episode of a program; `changes` are those of the limits, `section` is agent.external."""
    chosen: Policy = policy if hasattr(policy, "complete") else scripted(policy)  # type: ignore[assignment,arg-type]
    config = ExternalConfig.model_validate({"command": command or (), **section})
    table = SessionTable(resource or counter())
    first = next(iter(table.resource.tasks(0)))
    job = setting(chosen, LocalSessions(table), limits=replace(LIMITS, **(changes or {})))
    async with hosting(chosen, config) as host:
        job = replace(job, program=external(config, host, job, agent).program)
        played = await run_episode(lease(first), job, (), drops)
    (batch,) = to_table([played]).combine_chunks().to_batches()
    known = Known("run", limits=job.limits)
    return Played(played, check_rows(batch, known)[0], to_row(played), table)


def external(config: ExternalConfig, host: Hosting, job: Setting, agent: Agent | None = None) -> External:
    """What a runner makes of a job."""
    return External(
        config=config,
        agent=agent or Agent(),
        template=TEMPLATE,
        limits=job.limits,
        model="m",
        context=CONTEXT,
        origin=host.origin,
        episodes=host.episodes,
        secrets=config.secrets(),
        environ=dict(os.environ),
    )
