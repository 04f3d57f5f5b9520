"""`rollout chat`: a person talks with a job's agent in the terminal; each conversation is a row like any other.

The model and the environment are those of the job, started as for a run. A conversation is a sample of the job's first
task: its session is there for the tools, and judged at the end. Where the job has a place for sessions (agent.sessions)
what is said is written down there as it happens, and a later chat goes on from it, whatever ended the one before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from rich.console import Console
from rich.markup import escape

from actors.check import check, make_resources
from actors.cluster import started
from actors.connection import check_room, connect, disconnect
from actors.setting import Job, Names, build_settings, close_settings
from rollout.agents.chatting import Chatting
from rollout.agents.conversations import new_id
from rollout.agents.conversing import Conversing
from rollout.agents.open_session import OpenSession
from rollout.agents.stored_sessions import StoredSessions, open_sessions
from rollout.agents.traces import Price, Trace, summaries, trace_view
from rollout.config import JobConfig
from rollout.database import opened
from rollout.dataset import Committer, write_file
from rollout.episode import Setting, run_episode
from rollout.episode_view import visible
from rollout.errors import BoundaryError, RolloutError, UserError
from rollout.resource import Resource
from rollout.rows import to_table
from rollout.run_folder import Run, check_folder, create_or_resume, locked, read_run
from rollout.scheduling import sample_seed
from rollout.streaming import CallComplete, CallResult, ReasoningDelta, SegmentDone, StreamEvent, TextDelta, TurnDone
from rollout.tasks import read_tasks
from rollout.thread import DISK_SECONDS, threaded
from rollout.trajectory import Agent, Lease, Limits, Task, Trajectory, Turn

COMMANDS = (
    "/reset ends this conversation and begins another, /trace shows what it took, /sessions lists those that are kept, "
    "/exit ends it and leaves"
)
DAY = 86400.0
_OF_CHATS = "chat"
"""Digest that the runs of chats have: they may be gone on with by further chats, and by nothing else."""
_LAST_SAID = 4
"""Messages of a session that are shown to the person who goes on with it."""


def chat(config: JobConfig, address: str | None, session: str | None = None, force: bool = False) -> None:
    """Talks until the person leaves, in the session of that id where one is given.

    Raises UserError and RolloutError as `run_job` does, and UserError for a session that cannot be gone on with.
    """
    if config.agent.pipeline is not None:
        raise UserError("agent.pipeline: nobody can talk with a pipeline; expected a job without one")
    if config.agent.external is not None:
        raise UserError("agent.external: nobody can talk with a program here; expected a job without one")
    sessions = asyncio.run(_sessions(config, session))
    resume = _is_of_chats(config.run.dir)
    check_folder(config.run.dir, resume)
    resources = make_resources(config)
    digests = {**check(config, resources), _OF_CHATS: "1"}
    with locked(config.run.dir):
        run = create_or_resume(config, digests, resume, force)
        try:
            if connect(address, config.logs):
                check_room(config)
            asyncio.run(Chat(config, run, Console(), sessions, session).go_on(resources))
        finally:
            disconnect()


async def _sessions(config: JobConfig, session: str | None) -> StoredSessions | None:
    """Where the job keeps sessions, if it does; the one that is named can be gone on with."""
    section = config.agent.sessions
    if session is not None and (section is None or section.store == "memory"):
        raise UserError("--session: the job keeps no sessions; expected agent.sessions on a disk: store json, sqlite")
    if section is None:
        return None
    sessions = await open_sessions(section, config.agent.name)
    if session is not None:
        await sessions.named(session)
    return sessions


def _is_of_chats(place: str) -> bool:
    try:
        return _OF_CHATS in read_run(place).digests
    except (UserError, OSError):  # `check_folder` says what is wrong with it
        return False


class Chat:
    """One person, one agent, one conversation after the other."""

    def __init__(
        self, config: JobConfig, run: Run, console: Console, sessions: StoredSessions | None, session: str | None
    ) -> None:
        self._config, self._run, self._console = config, run, console
        self._sessions, self._id = sessions, session
        self._leaves = False
        self._screen = Screen(console, config.agent.name)
        self._name, self._model = config.agent.name, Names.of(config).model
        self._price: Price | None = None
        self._asked = False
        """The conversation came so far that somebody was to speak."""

    async def go_on(self, resources: Mapping[str, Resource]) -> None:
        """Starts what the job has its agent work with, and talks."""
        name, environment = next(iter(self._config.environments.items()))
        task = next(read_tasks(environment.tasks, resources[name], self._config.run.seed))
        async with started(self._config, self._run.run_id, self._run.episodes, self._console.log) as cluster:
            settings = await build_settings(_without_sessions(cluster.job), "chat")
            try:
                await self.talk(task, settings[name])
            finally:
                await close_settings(settings)

    async def talk(self, task: Task, setting: Setting) -> None:
        """Has one conversation after the other until the person leaves."""
        committer = Committer(self._run.episodes, self._run.run_id)
        number = await threaded(lambda: _samples(self._run.place), DISK_SECONDS, "disk")
        self._console.print(f"[dim]{COMMANDS}[/]")
        anew = False
        while not self._leaves:
            session = await self._open(anew)
            played = await run_episode(self._lease(task, number), self._setting(setting, session, anew))
            anew = True
            if played.turns:
                number += 1
                await threaded(partial(_write, committer, played), DISK_SECONDS, "disk")
            if played.failure is not None and not self._asked:  # nor will the next one come so far
                raise RolloutError(str(BoundaryError(played.failure)))
            if played.turns or played.failure is not None:
                self._ended(played)

    async def _open(self, anew: bool) -> OpenSession | None:
        """The session that the next conversation goes on in."""
        if self._sessions is None:
            return None
        if self._id is None:
            self._id = new_id()[:12]
        session = await self._sessions.named(self._id)
        there = f"goes on behind {len(session.history)} messages" if session.number else "begins"
        self._console.print(f"[dim]session {session.id} {there}[/]")
        for message in () if anew else session.history[-_LAST_SAID:]:
            if message["content"]:
                self._console.print(f"[dim]{escape(visible(message['role'] + ': ' + message['content']))}[/]")
        return session

    def _lease(self, task: Task, number: int) -> Lease:
        seed = sample_seed(self._config.run.seed, task.index, number)
        return Lease(self._run.run_id, task, number, 1, True, seed)

    def _setting(self, setting: Setting, session: OpenSession | None, anew: bool) -> Setting:
        """The job's, with all the time that a person may take. What waits for an answer gets it at the start alone:
        whoever could not answer a moment ago is not asked the same at once."""
        priced = setting.priced
        self._price = None if priced is None else lambda turn, prompt: priced((turn,))
        self._asked = waits = session is not None and session.waits and not anew

        def conduct(agent: Agent, lease: Lease) -> Chatting:
            inner = setting.conduct(agent, lease)
            if session is not None:
                inner = Conversing(inner, partial(_given, session), self._model, self._price)
            return Chatting(inner, self._hear, self._screen.hear, waits)

        return replace(setting, limits=_patient(setting.limits), conduct=conduct, restores=None)

    async def _hear(self, turns: Sequence[Turn]) -> str | None:
        """What the person types; None at the end of the conversation."""
        self._asked = True
        while True:
            try:
                line = (await threaded(lambda: self._console.input("[bold]you[/] "), DAY, "what you say")).strip()
            except EOFError:
                line = "/exit"
            if line == "/trace":
                for part in trace_view(Trace(self._name, summaries(turns, self._model, self._price))):
                    self._console.print(part)
            elif line == "/sessions":
                await self._list()
            elif line in ("/reset", "/exit"):
                self._leaves = line == "/exit"
                self._id = None
                return None
            elif line.startswith("/"):
                self._console.print(f"[dim]{COMMANDS}[/]")
            elif line:
                return line

    async def _list(self) -> None:
        """The sessions that may be gone on with, the last that were spoken in first."""
        kept = () if self._sessions is None else await self._sessions.listed()
        if not kept:
            self._console.print("[dim]no sessions are kept[/]")
        for header in kept:
            at = f"{datetime.fromtimestamp(header.updated_at, UTC):%Y-%m-%d %H:%M:%S}"
            self._console.print(f"[dim]{escape(visible(header.id))}  {escape(visible(header.app))}  {at} UTC[/]")

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
            case TurnDone() | SegmentDone():
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


async def _given(session: OpenSession) -> OpenSession:
    return session


def _without_sessions(job: Job) -> Job:
    """The job as it plays without sessions: a chat goes on in one, episodes of jobs begin with copies."""
    agent = job.config.agent.model_copy(update={"sessions": None})
    return replace(job, config=job.config.model_copy(update={"agent": agent}))


def _samples(place: str) -> int:
    """How many conversations of the run there are: the number of the next."""
    with opened(place) as database:
        return database.rows("SELECT coalesce(max(sample_index) + 1, 0) AS n FROM episodes")[0]["n"]


def _write(committer: Committer, played: Trajectory) -> None:
    committer.commit([write_file(committer.folder, to_table([played]))])
