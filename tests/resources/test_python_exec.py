import asyncio
import os
import socket
import sys
import tempfile
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from resources import python_exec
from resources.python_exec import PythonExec
from resources.sandbox import Bounds, Sandbox
from rollout.errors import ResourceDown
from rollout.sessions import SessionTable
from rollout.trajectory import StopReason, Task, ToolCall, Transcript

LAYERS = ("namespace", "landlock", "seccomp")
ALL_OR_NONE = [LAYERS, ()]
SMALL = Bounds(wall_seconds=3.0, cpu_seconds=1, memory_bytes=256 << 20, file_bytes=1 << 20, output_bytes=1000)
DOUBLE = {"function": "double", "tests": [{"args": [n], "expected": 2 * n} for n in range(4)]}


def answer(code: str) -> Transcript:
    message = {"role": "assistant", "content": f"First:\n```python\nx = 1\n```\nNo, this:\n```python\n{code}\n```"}
    return Transcript((message,), StopReason.DONE)  # pyright: ignore[reportArgumentType]


async def score_of(code: str) -> tuple[float, float]:
    resource = PythonExec(wall_seconds=2.0)
    session = await resource.seed_session(Task("t", (), DOUBLE), 0)
    score = await resource.verify(session, answer(code))
    return score.reward, score.components["tests"]


@pytest.mark.parametrize("layers", ALL_OR_NONE)
async def test_a_program_runs_in_an_empty_place_with_nothing_inherited(
    layers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    code = "import os, sys\nprint(os.listdir('.'), 'SECRET_TOKEN' in os.environ, input(), file=sys.stdout)"
    outcome = await Sandbox(SMALL, layers=layers).run(code, stdin="given\n")
    assert (outcome.stdout, outcome.stderr, outcome.exit_code) == ("[] False given\n", "", 0)


async def test_a_traceback_shows_the_program_and_not_the_sandbox() -> None:
    outcome = await Sandbox(SMALL).run("def f():\n    return 1 / 0\n\nf()\n")
    assert outcome.exit_code == 1
    assert 'File "main.py", line 2, in f\n    return 1 / 0' in outcome.stderr
    assert "jail" not in outcome.stderr


@pytest.mark.parametrize("layers", ALL_OR_NONE)
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "hog = []\nwhile True: hog.append(bytearray(1 << 20))",
        "import os\nwhile True: os.fork()",
        "while True: print('x' * 1000)",
        "open('big', 'w').write('x' * (2 << 20))",
        "import subprocess\nsubprocess.run(['/bin/true'])",
        "def f(): f()\nimport sys; sys.setrecursionlimit(10**9); f()",
        "import os\nos.abort()",
    ],
)
async def test_a_bad_program_costs_its_own_run_and_nothing_else(code: str, layers: tuple[str, ...]) -> None:
    sandbox = Sandbox(SMALL, concurrency=2, layers=layers)
    bad, good = await asyncio.gather(sandbox.run(code), sandbox.run("print(6 * 7)"))
    assert bad.exit_code != 0
    assert len(bad.stdout) < 1200
    assert (good.stdout, good.exit_code) == ("42\n", 0)


@pytest.mark.parametrize("layers", [*ALL_OR_NONE, ("namespace",), ("seccomp",)])
async def test_no_program_reaches_the_network(layers: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))\nprint('connected')"
        outcome = await Sandbox(SMALL, layers=layers).run(code)
    assert outcome.exit_code == 1
    assert "connected" not in outcome.stdout


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        ("landlock", f"open({str(Path(python_exec.__file__).with_name('data') / 'python_exec.jsonl')!r})"),
        ("namespace", "import os; os.chmod('/', 0o755)"),
        ("namespace", "import os; open(f'/proc/{os.getppid()}/environ').read()"),
        ("namespace", "for name in range(200): open(str(name), 'w').write('x' * (1 << 20))"),
        ("seccomp", "import os; os.kill(os.getppid(), 0)"),
        ("seccomp", "import socket; socket.socket(socket.AF_UNIX)"),
    ],
)
async def test_what_a_layer_forbids_where_the_kernel_has_it(layer: str, code: str) -> None:
    outcome = await Sandbox(SMALL, layers=(layer,)).run(code)
    if layer not in outcome.layers:
        pytest.skip(f"this kernel has no {layer}")
    assert outcome.exit_code == 1


@pytest.mark.parametrize("layers", ALL_OR_NONE)
async def test_threads_and_the_standard_library_work(layers: tuple[str, ...]) -> None:
    code = (
        "import asyncio, decimal, hashlib, sqlite3, tempfile, threading, zoneinfo\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "open('a', 'w').write('file'); print(open('a').read())\n"
        "tempfile.TemporaryFile().write(b'x')\n"
        "print(sqlite3.connect(':memory:').execute('select 1').fetchone())\n"
    )
    outcome = await Sandbox(SMALL, layers=layers).run(code)
    assert (outcome.stdout, outcome.stderr) == ("thread\nfile\n(1,)\n", "")


async def test_long_output_keeps_its_beginning_and_its_end() -> None:
    outcome = await Sandbox(SMALL).run("print('start' + 'x' * 5000 + 'end')")
    assert outcome.stdout.startswith("start")
    assert outcome.stdout.endswith("end\n")
    assert "bytes left out" in outcome.stdout


async def test_a_cancelled_run_leaves_no_process(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"import os, time\nopen({str(note)!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(1000)"
    running = asyncio.create_task(Sandbox(layers=()).run(code))
    while not (note.exists() and note.read_text().endswith("\n")):  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


async def test_a_sandbox_without_time_to_start_is_down() -> None:
    with pytest.raises(ResourceDown, match="no time to start"):
        await Sandbox(Bounds(wall_seconds=1e-6)).run("print(1)")


@pytest.mark.parametrize("place", [(sys, "executable"), (tempfile, "tempdir")])
async def test_a_sandbox_that_cannot_start_never_scores(
    place: tuple[ModuleType, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*place, "/nowhere")
    resource = PythonExec()
    table = SessionTable(resource)
    session, _ = await table.seed(Task("t", (), DOUBLE), 0, 60)
    with pytest.raises(ResourceDown):
        await table.call(session, ToolCall("a", "run_python", '{"code": "print(1)"}'), 30)
    with pytest.raises(ResourceDown):
        await table.verify(session, answer("def double(n): return 2 * n"), 30)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def double(n): return 2 * n", (1.0, 1.0)),
        ("print('noise', flush=True)\ndef double(n): return n + n", (1.0, 1.0)),
        ("def double(n): return n * n", (0.0, 0.5)),
        ("def double(n):\n    if n == 2: raise SystemExit\n    return 2 * n", (0.0, 0.75)),
        ("def double(n):\n    while n == 2: pass\n    return 2 * n", (0.0, 0.5)),
        ("def double(n): return float(2 * n)", (0.0, 0.0)),
        ("def treble(n): return 3 * n", (0.0, 0.0)),
        ("def double(n): return object()", (0.0, 0.0)),
        ("import os; os._exit(0)", (0.0, 0.0)),
        ("import os; os.write(1, b'[0, \"0\"]\\n[1]\\n{}\\nnonsense\\n'); os._exit(0)", (0.0, 0.25)),
        ("def (", (0.0, 0.0)),
    ],
)
async def test_the_last_block_is_scored_on_the_hidden_tests(code: str, expected: tuple[float, float]) -> None:
    assert await score_of(code) == expected


async def test_without_a_block_nothing_is_run_and_nothing_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere")
    resource = PythonExec()
    session = await resource.seed_session(Task("t", (), DOUBLE), 0)
    cut = Transcript(({"role": "assistant", "content": "def double(n): return 2 * n"},), StopReason.MAX_TOKENS)
    score = await resource.verify(session, cut)
    assert (score.reward, score.metrics["handed_in"]) == (0.0, 0.0)


async def test_the_tool_says_how_a_program_ended() -> None:
    resource = PythonExec(wall_seconds=1.0)
    session = await resource.seed_session(Task("t", (), DOUBLE), 0)
    assert await resource.run_python(session, "print('hi')") == "hi"
    assert await resource.run_python(session, "x = 1") == "[no output]"
    assert await resource.run_python(session, "import sys; sys.exit(3)") == "[exit status 3]"
    assert await resource.run_python(session, "import os; os.abort()") == "[killed by SIGABRT]"
    assert "ran longer than 1 s" in await resource.run_python(session, "import time; time.sleep(100)")


@pytest.mark.timeout(120)
async def test_every_problem_is_solved_by_its_solution() -> None:
    resource = PythonExec()
    tasks = list(resource.tasks(0))
    assert len(tasks) >= 12
    for task in tasks:
        session = await resource.seed_session(task, 0)
        gold = Transcript(({"role": "assistant", "content": resource.gold(task).answer},), StopReason.DONE)
        assert (await resource.verify(session, gold)).reward == 1.0, task.id
        assert task.data["solution"] not in task.messages[0]["content"]


def test_the_seed_orders_the_problems() -> None:
    first, again, other = (PythonExec(count=5).tasks(seed) for seed in (0, 0, 1))
    ids = [[task.id for task in islice(tasks, 9)] for tasks in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 5
