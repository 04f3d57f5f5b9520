"""`rollout chat`: a person talks with a job's agent in the terminal; each conversation is a row like any other.

The model and the environment are those of the job, started as for a run. A conversation is a sample of the job's first
task: its session is there for the tools, and judged at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console
from rich.markup import escape

from actors.check import check, make_resources
from actors.cluster import started
from actors.connection import check_room, connect, disconnect
from actors.setting import Names, build_settings, close_settings
from rollout.agents.chatting import Chatting
from rollout.agents.traces import Trace, summaries, trace_view
from rollout.config import JobConfig
from rollout.dataset import Committer, write_file
from rollout.episode import Setting, run_episode
from rollout.resource import Resource
from rollout.rows import to_table
from rollout.run_folder import Run, check_folder, create_or_resume, locked
from rollout.scheduling import sample_seed
from rollout.streaming import CallComplete, CallResult, ReasoningDelta, StreamEvent, TextDelta, TurnDone
from rollout.tasks import read_tasks
from rollout.thread import DISK_SECONDS, threaded
from rollout.trajectory import Agent, Lease, Limits, Task, Trajectory, Turn

COMMANDS = "/reset ends this conversation and begins another, /trace shows what it took, /exit ends it and leaves"
DAY = 86400.0


def chat(config: JobConfig, address: str | None) -> None:
    """Talks until the person leaves. Raises UserError and RolloutError as `run_job` does."""
    check_folder(config.run.dir, resume=False)
    resources = make_resources(config)
    digests = check(config, resources)
    with locked(config.run.dir):
        run = create_or_resume(config, digests, resume=False, force=False)
        try:
            if connect(address, config.logs):
                check_room(config)
            asyncio.run(_Chat(config, run, Console()).go_on(resources))
        finally:
            disconnect()


class _Chat:
    """One person, one agent, one conversation after the other."""

    def __init__(self, config: JobConfig, run: Run, console: Console) -> None:
        self._config, self._run, self._console = config, run, console
        self._leaves = False
        self._screen = Screen(console, config.agent.name)
        self._name, self._model = config.agent.name, Names.of(config).model

    async def go_on(self, resources: Mapping[str, Resource]) -> None:
        committer = Committer(self._run.episodes, self._run.run_id)
        name, environment = next(iter(self._config.environments.items()))
        task = next(read_tasks(environment.tasks, resources[name], self._config.run.seed))
        async with started(self._config, self._run.run_id, self._run.episodes, self._console.log) as cluster:
            settings = await build_settings(cluster.job, "chat")
            try:
                self._console.print(f"[dim]{COMMANDS}[/]")
                number = 0
                while not self._leaves:
                    played = await run_episode(self._lease(task, number), self._setting(settings[name]))
                    if played.turns:
                        number += 1
                        await threaded(partial(_write, committer, played), DISK_SECONDS, "disk")
                        self._ended(played)
            finally:
                await close_settings(settings)

    def _lease(self, task: Task, number: int) -> Lease:
        seed = sample_seed(self._config.run.seed, task.index, number)
        return Lease(self._run.run_id, task, number, 1, True, seed)

    def _setting(self, setting: Setting) -> Setting:
        """The job's, with all the time that a person may take."""

        def conduct(agent: Agent, lease: Lease) -> Chatting:
            return Chatting(setting.conduct(agent, lease), self._hear, self._screen.hear)

        return replace(setting, limits=_patient(setting.limits), conduct=conduct, restores=None)

    async def _hear(self, turns: Sequence[Turn]) -> str | None:
        """What the person types; None at the end of the conversation."""
        while True:
            try:
                line = (await threaded(lambda: self._console.input("[bold]you[/] "), DAY, "what you say")).strip()
            except EOFError:
                line = "/exit"
            if line == "/trace":
                for part in trace_view(Trace(self._name, summaries(turns, self._model))):
                    self._console.print(part)
            elif line in ("/reset", "/exit"):
                self._leaves = line == "/exit"
                return None
            elif line.startswith("/"):
                self._console.print(f"[dim]{COMMANDS}[/]")
            elif line:
                return line

    def _ended(self, played: Trajectory) -> None:
        why = played.failure.message if played.failure is not None else played.stop_reason.value
        self._console.print(f"[dim]{escape(why)}; {len(played.turns)} turns are in {escape(self._config.run.dir)}[/]")


@dataclass(slots=True)
class Screen:
    """Shows what an agent does as it happens: what it says, its reasoning and its calls dim."""

    console: Console
    name: str
    _line: type[StreamEvent] | None = None
    """What the line that is being written is made of."""

    def hear(self, event: StreamEvent) -> None:
        """See Hears."""
        match event:
            case TextDelta(_, text) | ReasoningDelta(_, text):
                said = isinstance(event, TextDelta)
                if self._line is not type(event):
                    self._end_line()
                    self.console.print(f"[bold]{escape(self.name)}[/]" if said else "[dim]thinks[/]", end=" ")
                    self._line = type(event)
                self.console.print(text, end="", style=None if said else "dim", markup=False, highlight=False)
            case CallComplete(_, call):
                self._tell(f"{call.name}({call.arguments})")
            case CallResult(use):
                self._tell(f"{use.call.name} -> {use.result.content}")
            case TurnDone():
                self._end_line()
            case _:
                pass

    def _tell(self, line: str) -> None:
        self._end_line()
        self.console.print(line, style="dim", markup=False, highlight=False)

    def _end_line(self) -> None:
        if self._line is not None:
            self.console.print()
            self._line = None


def _patient(limits: Limits) -> Limits:
    """The agent's own limits of a call stay; what bounds a whole conversation is the person."""
    return replace(limits, episode_seconds=DAY, max_turns=max(1000, limits.max_turns), max_tokens=10**9)


def _write(committer: Committer, played: Trajectory) -> None:
    committer.commit([write_file(committer.folder, to_table([played]))])
