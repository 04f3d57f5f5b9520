"""A program as a process: bounded in time, ended with all that it started, what it said last kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import psutil

from rollout.deadlines import deadline
from rollout.external.launch import Launch

_KEPT = 65_536
"""Bytes of each of its outputs that are kept."""
_REAP_SECONDS, _PIPE_SECONDS = 10.0, 1.0
"""What the system may take to end a process that was killed, and then its pipes."""
_CLEANUP_SECONDS = 20.0
_ending: set[asyncio.Task[None]] = set()
"""Processes that are being ended, also for an episode that was cancelled: the event loop keeps no hold of its tasks."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    status: int | None
    """What it exited with, the negative number of a signal; None where it had to be ended."""
    printed: str = ""
    """What it printed, the end of it where that is long,"""
    complained: str = ""
    """and what it wrote to its standard error."""
    seconds: float = 0.0

    @property
    def late(self) -> bool:
        """Its time was up."""
        return self.status is None


class _Listening(asyncio.SubprocessProtocol):
    """Keeps the last bytes of both outputs. A process has ended when it exits, whoever holds its pipes open then."""

    def __init__(self) -> None:
        self.exited = asyncio.Event()
        self.lost = asyncio.Event()
        """The process has exited and its pipes are closed."""
        self._kept = {1: bytearray(), 2: bytearray()}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self._kept[fd]
        kept += data
        if len(kept) > 2 * _KEPT:
            del kept[:-_KEPT]

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def text(self, fd: int) -> str:
        return bytes(self._kept[fd][-_KEPT:]).decode("utf-8", "replace")


async def run_process(launch: Launch, folder: str, seconds: float, kill_seconds: float) -> Ran:
    """Runs a program in `folder` for `seconds` at most: then it is asked to end, and killed `kill_seconds` later.

    When it has ended, or this is cancelled, nothing of what it started is left that stayed in its process group or was
    still its descendant. Raises OSError for one that cannot be started.
    """
    began = time.monotonic()
    transport, listening = await asyncio.get_running_loop().subprocess_exec(
        _Listening, *launch.argv, cwd=folder, env=dict(launch.env), start_new_session=True
    )
    pid, in_time = transport.get_pid(), False
    try:
        _tell(transport, launch.stdin)
        in_time = await _within(seconds, listening.exited)
        if not in_time:
            _signal(pid, _below(pid), signal.SIGTERM)
            await _within(kill_seconds, listening.exited)
    finally:
        _signal(pid, _below(pid), signal.SIGKILL)
        ending = asyncio.create_task(_end(transport, listening, () if in_time else launch.cleanup))
        _ending.add(ending)
        ending.add_done_callback(_ending.discard)
        await asyncio.shield(ending)
    return Ran(
        transport.get_returncode() if in_time else None,
        listening.text(1),
        listening.text(2),
        time.monotonic() - began,
    )


async def _within(seconds: float, event: asyncio.Event) -> bool:
    with contextlib.suppress(TimeoutError):
        async with deadline(seconds):
            await event.wait()
    return event.is_set()


def _tell(transport: asyncio.SubprocessTransport, text: str) -> None:
    stdin = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
    if stdin.is_closing():  # it has ended already
        return
    stdin.write(text.encode("utf-8", "replace"))
    stdin.write_eof()


async def _end(transport: asyncio.SubprocessTransport, listening: _Listening, cleanup: Sequence[str]) -> None:
    """Waits for the process and for the ends of its pipes, which one that got away may hold open."""
    await _clean(cleanup)
    await _within(_REAP_SECONDS, listening.exited)
    await _within(_PIPE_SECONDS, listening.lost)
    transport.close()


async def _clean(argv: Sequence[str]) -> None:
    if not argv:
        return
    nothing = asyncio.subprocess.DEVNULL
    with contextlib.suppress(OSError, TimeoutError):
        cleaning = await asyncio.create_subprocess_exec(*argv, stdin=nothing, stdout=nothing, stderr=nothing)
        try:
            async with deadline(_CLEANUP_SECONDS):
                await cleaning.wait()
        finally:
            if cleaning.returncode is None:
                cleaning.kill()


def _below(pid: int) -> list[psutil.Process]:
    """Its descendants, as long as it lives: some of them may have left its process group."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _signal(group: int, below: Sequence[psutil.Process], number: signal.Signals) -> None:
    """To the process group, which has the number of the program, and to those who have left it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
    for process in below:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
