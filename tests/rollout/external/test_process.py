"""A program gets its time and no more, and leaves nothing running."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest
import uvloop
from hosted import PATIENT

from rollout.external.launch import Launch
from rollout.external.process import Ran, run_process

CHILD = "import os, sys, time; open('{file}', 'w').write(str(os.getpid())); {own}time.sleep(600)"


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Runners have uvloop's loop, tests asyncio's."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


def python(code: str, stdin: str = "") -> Launch:
    return Launch((sys.executable, "-c", code), {"PATH": os.environ["PATH"], "SECRET": "s3"}, stdin)


async def run(launch: Launch, folder: Path, seconds: float = 30.0, kill_seconds: float = 30.0) -> Ran:
    return await run_process(launch, str(folder), seconds, kill_seconds)


def number_in(file: Path) -> int:
    return int(file.read_text() or 0) if file.exists() else 0


async def gone(file: Path) -> bool:
    """Whether the process whose number is in the file ends."""
    pid = number_in(file)
    for _ in range(200):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        await asyncio.sleep(0.05)
    return False


async def test_what_it_says_and_exits_with_is_kept(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), sys.stdin.read(), sorted(os.environ)); sys.exit('no')"
    ran = await run(python(code, "go on"), tmp_path)
    assert (ran.status, ran.complained.strip(), ran.late) == (1, "no", False)
    assert ran.printed.startswith(f"{tmp_path} go on ") and "HOME" not in ran.printed


async def test_of_much_output_the_end_is_kept_and_who_does_not_listen_is_not_told(tmp_path: Path) -> None:
    ran = await run(python("for i in range(300000): print(i)\nprint('end')", "x" * 1_000_000), tmp_path)
    assert ran.status == 0 and len(ran.printed) == 65_536 and ran.printed.endswith("299999\nend\n")


@pytest.mark.parametrize("own", ["", "os.setsid(); "], ids=["in its group", "in a group of its own"])
async def test_whatever_does_not_end_in_time_is_killed_with_its_children(own: str, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    child = CHILD.format(file=file, own=own)
    code = (
        "import signal, subprocess, sys, time, os\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not os.path.exists({str(file)!r}): time.sleep(0.01)\n"
        "print('waits', flush=True)\ntime.sleep(600)"
    )
    for seconds in PATIENT:
        file.unlink(missing_ok=True)
        ran = await run(python(code), tmp_path, seconds, kill_seconds=0.2)
        if ran.printed:
            break
    assert (ran.status, ran.late, ran.printed) == (None, True, "waits\n")
    assert await gone(file)


async def test_who_is_asked_to_end_may_say_its_last(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def end(*_): print('saved', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\ntime.sleep(600)"
    )
    for seconds in PATIENT:
        ran = await run(python(code), tmp_path, seconds)
        if ran.printed:
            break
    assert (ran.late, ran.printed) == (True, "ready\nsaved\n")


async def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    child = CHILD.format(file=file, own="")
    code = (
        f"import subprocess, sys, time, os\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not os.path.exists({str(file)!r}) or not os.path.getsize({str(file)!r}): time.sleep(0.01)"
    )
    ran = await run(python(code), tmp_path)
    assert ran.status == 0 and await gone(file)


async def test_a_program_whose_episode_is_broken_off_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    task = asyncio.create_task(run(python(CHILD.format(file=file, own="")), tmp_path))
    for _ in range(1000):
        await asyncio.sleep(0.02)
        if number_in(file):
            break
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(file)


async def test_what_is_to_be_cleaned_up_is_when_it_had_to_be_killed(tmp_path: Path) -> None:
    left = tmp_path / "cleaned"
    cleanup = ("touch", str(left))
    ended = Launch(("true",), {"PATH": os.environ["PATH"]}, "", cleanup)
    assert (await run(ended, tmp_path)).status == 0 and not left.exists()
    await run(Launch(("sleep", "600"), {"PATH": os.environ["PATH"]}, "", cleanup), tmp_path, seconds=0.1)
    assert left.exists()


async def test_what_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await run(Launch(("no-such-program-here",), {}, ""), tmp_path)
