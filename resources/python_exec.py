"""Small programming problems with a tool that runs Python.

The policy hands in by ending its last message with a fenced ```python block; that code is called on the hidden tests.
Expected values never enter the process that runs it, so a program cannot read or forge them. How far a program is
held back, and what this is not, is in `resources.sandbox`.
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from rollout.resource import Resource, Solution, tool
from rollout.trajectory import Message, Score, Task, Transcript

from resources.sandbox import Bounds, Outcome, Sandbox

_PROBLEMS = Path(__file__).with_name("data") / "python_exec.jsonl"
_BLOCK = re.compile(r"```(?:python|py)[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_RESULT_BYTES = 1 << 20
_STATEMENT = """Write the Python function `{function}`.

{statement}

Example: `{example}`

Try it with run_python if you like. End with the whole function in one ```python block."""

# One line a test, so that a later test that hangs takes nothing from the earlier ones.
_HARNESS = """
import json, sys
job, out = json.loads(sys.stdin.read()), sys.stdout
sys.stdout = sys.stderr
space = {"__name__": "solution"}
exec(compile(job["code"], "solution.py", "exec"), space)
for index, arguments in enumerate(job["calls"]):
    try:
        value = json.dumps(space[job["function"]](*arguments), sort_keys=True)
    except BaseException as error:
        print(index, repr(error), file=sys.stderr)
    else:
        out.write(json.dumps([index, value]) + "\\n")
"""


@dataclass(frozen=True, slots=True)
class Desk:
    """A session: the hidden tests. Nothing is kept from one program to the next."""

    function: str
    tests: Sequence[Mapping[str, Any]]


class PythonExec(Resource):
    """Write a function, try it out in a sandbox, hand it in; scored on hidden tests.

    Args:
        count: How many of the bundled problems; None takes all.
        wall_seconds: Wall time of one program.
        memory_mb: Address space of one program, in MiB.
        concurrency: Programs at once on one host; None takes one a core.
    """

    name = "python_exec"
    instructions = "You write Python with the standard library only."
    restores = "snapshot"  # no program need run twice, nor print the same again
    rescores = "transcript"

    def __init__(
        self,
        count: NonNegativeInt | None = None,
        wall_seconds: PositiveFloat = 10.0,
        memory_mb: PositiveInt = 512,
        concurrency: PositiveInt | None = None,
    ) -> None:
        known = len(_PROBLEMS.read_text(encoding="utf-8").splitlines())
        self.num_tasks = known if count is None else min(count, known)
        self._wall_seconds = wall_seconds
        bounds = Bounds(wall_seconds, cpu_seconds=max(1, round(wall_seconds)), memory_bytes=memory_mb << 20)
        self._sandbox = Sandbox(bounds) if concurrency is None else Sandbox(bounds, concurrency)

    def tasks(self, seed: int) -> Iterator[Task]:
        problems = [json.loads(line) for line in _PROBLEMS.read_text(encoding="utf-8").splitlines()]
        random.Random(f"python_exec/{seed}").shuffle(problems)
        for index, problem in enumerate(problems[: self.num_tasks]):
            message: Message = {"role": "user", "content": _STATEMENT.format(**problem)}
            data = {key: problem[key] for key in ("function", "tests", "solution")}
            yield Task(f"python_exec-{problem['id']}", (message,), data, index)

    async def seed_session(self, task: Task, seed: int) -> Desk:
        return Desk(task.data["function"], task.data["tests"])

    @tool
    async def run_python(self, session: Desk, code: str) -> str:
        """Run a Python program by itself and see what it prints.

        Args:
            code: The whole program; nothing is kept from earlier runs.
        """
        return self._report(await self._sandbox.run(code))

    async def snapshot(self, session: Desk) -> bytes:
        return b""

    async def restore(self, task: Task, seed: int, snapshot: bytes) -> Desk:
        return Desk(task.data["function"], task.data["tests"])

    async def verify(self, session: Desk, transcript: Transcript) -> Score:
        """1.0 when all hidden tests pass, else 0.0; `tests` is the fraction that do."""
        blocks = _BLOCK.findall(transcript.answer)
        passed = await self._passed(session, blocks[-1]) if blocks else 0
        said = transcript.messages[transcript.opening :]
        made = [call["function"]["name"] for message in said for call in message.get("tool_calls", ())]
        counts = {"runs": float(made.count("run_python")), "handed_in": float(bool(blocks))}
        return Score(float(passed == len(session.tests)), {"tests": passed / len(session.tests)}, counts)

    def gold(self, task: Task) -> Solution:
        code = task.data["solution"]
        return Solution((("run_python", {"code": code}),), f"```python\n{code}```")

    def wrong(self, task: Task) -> Solution:
        code = f"def {task.data['function']}(*arguments):\n    return None\n"
        return Solution((("run_python", {"code": code + "print('never tried')\n"}),), f"```python\n{code}```")

    async def _passed(self, session: Desk, code: str) -> int:
        calls = [test["args"] for test in session.tests]
        job = json.dumps({"code": code, "function": session.function, "calls": calls})
        outcome = await self._sandbox.run(_HARNESS, stdin=job, output_bytes=_RESULT_BYTES)
        given: dict[int, str] = {}
        for line in outcome.stdout.splitlines():
            match _parsed(line):
                case [int(index), str(value)]:
                    given.setdefault(index, value)
                case _:
                    pass  # the program wrote to the descriptor itself
        wanted = [json.dumps(test["expected"], sort_keys=True) for test in session.tests]
        return sum(given.get(index) == value for index, value in enumerate(wanted))

    def _report(self, outcome: Outcome) -> str:
        lines = [text.rstrip("\n") for text in (outcome.stdout, outcome.stderr) if text.strip()]
        if outcome.timed_out:
            lines.append(f"[stopped: ran longer than {self._wall_seconds:g} s]")
        elif outcome.exit_code == -signal.SIGXCPU:
            lines.append("[stopped: out of CPU time]")
        elif outcome.exit_code < 0:
            lines.append(f"[killed by {signal.Signals(-outcome.exit_code).name}]")
        elif outcome.exit_code > 0:
            lines.append(f"[exit status {outcome.exit_code}]")
        return "\n".join(lines) or "[no output]"


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
