"""Python programs that somebody else wrote, run one process each, without stopping the event loop.

What it gives: a program that loops, eats memory, forks, floods its output, fills its disk or crashes the interpreter
costs its own run and nothing else; it inherits no environment, finds an empty working directory and has no network.
What holds that up depends on the kernel; `resources.jail` lists the layers, and every Outcome names those that held.
What it does not give: it is no security sandbox. The program runs as the host's user on the host's kernel. With the
namespace and landlock layers missing it can read what that user can, and a kernel bug is one system call away.
Whoever trains a policy that is good at breaking out runs the resource hosts in virtual machines.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO

from rollout.errors import ResourceDown

from resources import jail


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one program may use."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20
    """Address space, not resident memory."""
    file_bytes: int = 16 << 20
    """Size of one file, the captured output among them."""
    disk_bytes: int = 64 << 20
    """The whole working directory; held only where the namespace layer is."""
    processes: int = 32
    """Processes and threads; where seccomp holds there is one process and this bounds its threads. The kernel does
    not count those of root."""
    output_bytes: int = 8192
    """What is kept of each of standard output and standard error."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. `exit_code` is negative for the signal that killed it."""

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool
    layers: tuple[str, ...]


@dataclass(slots=True)
class Sandbox:
    """Runs programs, at most `concurrency` at once; the others wait, and their time has not begun."""

    bounds: Bounds = field(default_factory=Bounds)
    concurrency: int = field(default_factory=lambda: os.cpu_count() or 1)
    layers: tuple[str, ...] = ("namespace", "landlock", "seccomp")
    """Those to try; without seccomp the audit layer stands in."""
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.concurrency)

    async def run(self, program: str, stdin: str = "", output_bytes: int | None = None) -> Outcome:
        """Runs Python source with `stdin` as its standard input, under the standard library alone.

        `output_bytes` stands in for the bounds' own.
        Raises ResourceDown when the program could not be started; whatever it does once it runs is in the Outcome.
        """
        async with self._slots:
            try:
                directory = tempfile.mkdtemp(prefix="rollout-")
                try:
                    return await self._run(directory, program, stdin, output_bytes or self.bounds.output_bytes)
                finally:
                    # Off the loop: without its own tmpfs a program may leave very many files.
                    await asyncio.to_thread(_remove, directory)
            except OSError as error:  # no disk, no descriptors, no processes: nothing the program did
                raise ResourceDown(f"the sandbox does not work here: {error}") from error

    async def _run(self, directory: str, program: str, stdin: str, most: int) -> Outcome:
        limits = asdict(self.bounds)
        job = json.dumps({"limits": limits, "layers": self.layers, "program": program, "stdin": stdin})
        # Files, not pipes: nobody has to read while the program runs, and the limit on file size bounds the output.
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(job.encode())
            given.seek(0)
            exit_code, timed_out, status = await self._process(directory, (given, out, err))
            stdout, stderr = (_read(file, most) for file in (out, err))
        if not status:
            why = "no time to start" if timed_out else (stderr.strip().splitlines() or [f"exit status {exit_code}"])[-1]
            raise ResourceDown(f"the sandbox did not start: {why}")
        return Outcome(stdout, stderr, exit_code, timed_out, tuple(status.split(",")))

    async def _process(self, directory: str, files: tuple[IO[bytes], IO[bytes], IO[bytes]]) -> tuple[int, bool, str]:
        """Exit status, whether time ran out, and what the child said before it let the program loose."""
        reader, writer = os.pipe()
        timed_out, status = False, b""
        try:
            process = await _start(directory, files, writer)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        try:
            async with asyncio.timeout(self.bounds.wall_seconds):
                await process.wait()
        except TimeoutError:
            timed_out = True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            exit_code = await process.wait()
            os.set_blocking(reader, False)
            with suppress(BlockingIOError):  # a grandchild that got away still holds the other end
                status = os.read(reader, 256)
            os.close(reader)
        return exit_code, timed_out, status.decode()


async def _start(
    directory: str, files: tuple[IO[bytes], IO[bytes], IO[bytes]], status: int
) -> asyncio.subprocess.Process:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": directory,
        "TMPDIR": directory,
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",  # what a killed program printed is kept
        "PYTHONHASHSEED": "0",  # sets print in the same order every time
    }
    stdin, stdout, stderr = files
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-s", "-S", "-B", jail.__file__, str(status)),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=directory,
        env=environment,
        pass_fds=(status,),
        start_new_session=True,
    )


def _read(file: IO[bytes], most: int) -> str:
    """The file's text; of a long one its beginning and its end, where a traceback says what happened."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= most:
        return file.read().decode(errors="replace")
    head = file.read(most // 2)
    file.seek(size - most // 2)
    between = f"\n[... {size - 2 * (most // 2)} bytes left out ...]\n"
    return head.decode(errors="replace") + between + file.read().decode(errors="replace")


def _remove(directory: str) -> None:
    with suppress(RecursionError):  # a tower of directories can be too tall to take down; it is empty and stays
        shutil.rmtree(directory, ignore_errors=True)
