"""An episode that a program plays: it is started, its calls are taken down, what it left is told.

What failed is told apart: a program that never asked the model, an engine that failed in the last call, a tool that
cannot work are failures, and the sample is tried again. Whatever else a program does, it has been played and is scored.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rollout.conduct import Ended
from rollout.errors import BoundaryError, boundary
from rollout.external.captured import CapturedEpisode, Priced
from rollout.external.episodes import OpenEpisodes
from rollout.external.launch import Around, files, filled, launch, posted
from rollout.external.process import Ran, run_process
from rollout.external.remote import run_remote
from rollout.external.section import ExternalConfig
from rollout.external.tools import SessionTools
from rollout.programs import Played
from rollout.protocols import Seeded
from rollout.template import ChatTemplate
from rollout.thread import threaded
from rollout.trajectory import Agent, Event, Failure, FailureKind, Json, Lease, Limits, StopReason, Task, Transcript

_FOLDER_SECONDS = 120.0
"""What copying or removing a workspace may take."""
_ENDING_SECONDS = 45.0
"""What ending a program may take beyond what it is given for it."""
_HIDDEN = "[hidden]"


@dataclass(frozen=True, slots=True)
class External:
    """What all episodes of a job share whose agent is a program."""

    config: ExternalConfig
    agent: Agent
    template: ChatTemplate
    limits: Limits
    model: str
    """What it is called."""
    context: int | None
    """Tokens that it reaches."""
    origin: str
    """Where programs reach the gateway: scheme, host and port."""
    episodes: OpenEpisodes
    secrets: Mapping[str, str]
    """Values of the environment variables that the conf names,"""
    environ: Mapping[str, str]
    """and all of them."""
    trainable: bool = True
    priced: Priced | None = None
    """What model calls cost, in USD."""
    episode_usd: float | None = None
    """What those of an episode may cost."""

    @asynccontextmanager
    async def program(self, lease: Lease) -> AsyncGenerator[ExternalProgram]:
        """See Programs. The folders are there within the block. Raises BoundaryError when they cannot be made."""
        folder: Path | None = None
        if self.config.remote is None:
            async with boundary(FailureKind.AGENT, "agent.external.workspace", _FOLDER_SECONDS):
                folder = await threaded(lambda: self._made(lease.task), _FOLDER_SECONDS, "workspace")
        try:
            yield ExternalProgram(self, lease, folder)
        finally:
            if folder is not None and not self.config.keep:
                gone = folder
                await threaded(lambda: shutil.rmtree(gone, ignore_errors=True), _FOLDER_SECONDS, "workspace")

    def _made(self, task: Task) -> Path:
        """The folder of one attempt, with its workspace and home."""
        if self.config.folder is not None:
            Path(self.config.folder).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="rollout-", dir=self.config.folder))
        try:
            (folder / "home").mkdir(mode=0o700)
            if self.config.workspace is None:
                (folder / "workspace").mkdir()
            else:
                source = filled(self.config.workspace, Around(task, (), "", self.model, "", "", "", ""))
                shutil.copytree(source, folder / "workspace", symlinks=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    @property
    def where(self) -> str:
        """What failures and events call the program."""
        config = self.config
        if config.remote is not None:
            return urlsplit(config.remote).netloc
        return config.image if config.image is not None else Path(config.command[0]).name


@dataclass(slots=True)
class ExternalProgram:
    """See Program."""

    external: External
    lease: Lease
    folder: Path | None
    _scribe: CapturedEpisode | None = None
    _tools: SessionTools | None = None
    _ran: Ran | None = None
    _hidden: list[str] = field(default_factory=list[str])
    """Texts that no row may hold."""

    async def play(self, seeded: Seeded, seconds: float) -> StopReason:
        """See Program. Some of the time is kept back for a program that does not end by itself."""
        external, config, agent = self.external, self.external.config, self.external.agent
        seconds = max(0.9 * seconds, seconds - config.kill_seconds)
        seconds = min(seconds, config.seconds or seconds)
        if seconds <= 0:
            return StopReason.TIMEOUT
        scribe = self._scribe = CapturedEpisode(
            external.template,
            external.limits,
            time.monotonic() + seconds,
            model=external.model,
            agent=external.agent.name,
            context=external.context,
            trainable=external.trainable,
            priced=external.priced,
            usd=external.episode_usd,
        )
        specs = tuple(spec for spec in seeded.tools if agent.tools is None or spec.name in agent.tools)
        tools = self._tools = SessionTools(seeded.session, specs, external.limits.tool_seconds, scribe)
        token = external.episodes.open(scribe, tools)
        self._hidden = [token, *external.secrets.values()]
        try:
            around = self._around(seeded, token)
            async with boundary(FailureKind.AGENT, external.where, seconds + config.kill_seconds + _ENDING_SECONDS):
                self._ran = await self._run(around, seconds)
        except BoundaryError as error:
            failure = error.failure
            hidden = Failure(failure.kind, failure.where, self._shown(failure.message))
            raise BoundaryError(hidden) from error.__cause__
        finally:
            external.episodes.close(token)
        return self._stop(scribe, tools, self._ran)

    def _around(self, seeded: Seeded, token: str) -> Around:
        external, folder = self.external, self.folder
        words = external.agent.instructions if external.agent.instructions is not None else seeded.instructions
        return Around(
            task=self.lease.task,
            opening=seeded.messages,
            instructions=words or "",
            model=external.model,
            origin=external.origin,
            token=token,
            workspace="" if folder is None else str(folder / "workspace"),
            home="" if folder is None else str(folder / "home"),
        )

    async def _run(self, around: Around, seconds: float) -> Ran:
        external, config = self.external, self.external.config
        if config.remote is not None:
            bearer = None if config.bearer_env is None else external.secrets[config.bearer_env]
            return await run_remote(config.remote, posted(config, around, seconds), bearer, seconds)
        if written := files(config, around):
            await threaded(lambda: _write(Path(around.home), written), _FOLDER_SECONDS, "home")
        process = launch(config, around, external.secrets, external.environ)
        return await run_process(process, around.workspace, seconds, config.kill_seconds)

    def _stop(self, scribe: CapturedEpisode, tools: SessionTools, ran: Ran) -> StopReason:
        """Why it ended. Raises BoundaryError for what is neither the program's doing nor the policy's."""
        if tools.broken is not None:
            raise tools.broken
        if scribe.broken is not None:
            raise BoundaryError(scribe.broken)
        if not scribe.called and not scribe.full:
            raise BoundaryError(Failure(FailureKind.AGENT, self.external.where, self._shown(_silent(ran))))
        if scribe.stop is not None:
            return scribe.stop
        if ran.late:
            return StopReason.TIMEOUT
        return StopReason.CONTEXT if scribe.full and ran.status else StopReason.DONE

    def played(self) -> Played:
        """See Program."""
        scribe, tools = self._scribe, self._tools
        if scribe is None or tools is None:
            return Played()
        events = [*tools.events, *self._events(scribe)]
        messages, opening = scribe.messages, scribe.opening
        return Played(
            turns=scribe.turns,
            messages=messages,
            opening=opening,
            rewards=tuple(tools.rewards),
            tool_seconds=tools.spent,
            ended=Ended(self._answer(scribe, Transcript(messages, StopReason.DONE, (), opening)), tuple(events)),
            workspace=None if self.folder is None else str(self.folder / "workspace"),
        )

    def _answer(self, scribe: CapturedEpisode, transcript: Transcript) -> Json:
        """What it answered; None where the messages say so."""
        if self.external.config.answer == "printed" and self._ran is not None:
            answer = self._shown(self._ran.printed.strip())
        else:
            answer = scribe.answer
        return None if answer == transcript.answer else answer

    def _events(self, scribe: CapturedEpisode) -> list[Event]:
        if (ran := self._ran) is None:
            return []
        kept = self.external.config.output_chars
        detail: dict[str, Json] = {"status": ran.status, "late": ran.late}
        for name, text in (("printed", ran.printed), ("complained", ran.complained)):
            detail[name] = self._shown(text)[-kept:] if kept else ""
        if self.external.config.keep and self.folder is not None:
            detail["folder"] = str(self.folder)
        turn = max(0, scribe.num_turns - 1)
        return [Event(turn, "program", self.external.where, detail, ran.seconds)]

    def _shown(self, text: str) -> str:
        """A text without what is secret."""
        for secret in self._hidden:
            text = text.replace(secret, _HIDDEN)
        return text


def _silent(ran: Ran) -> str:
    """What is said of a program that never asked the model."""
    if ran.late:
        return f"asked the model nothing within {ran.seconds:.1f} s"
    lines = [line.strip() for line in (ran.complained or ran.printed).splitlines() if line.strip()]
    said = f"; it said: {lines[-1][:300]}" if lines else ""
    how = "ended" if ran.status == 0 else f"exited with {ran.status}"
    return f"{how} without an answer of the model{said}"


def _write(home: Path, written: Mapping[str, str]) -> None:
    """Files that only their owner reads."""
    for name, text in written.items():
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(text, "utf-8")
