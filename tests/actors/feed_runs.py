"""A run with real episodes in groups of two, which a process goes on writing and merging. For the tests beside it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from resources.counter import Counter
from rollout.compaction import due, merge
from rollout.config import find_conf, load
from rollout.dataset import Committer, write_file
from rollout.episode import Setting, run_episode
from rollout.rows import to_table
from rollout.run_folder import create_or_resume
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.sessions import LocalSessions, SessionTable
from rollout.template import BUNDLED, load_template
from rollout.tokens import TokenLedger
from rollout.trajectory import Agent, Lease, Limits, Task, Trajectory

ADD = '<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
SUBMIT = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
TEMPLATE = load_template(BUNDLED)


def played() -> Trajectory:
    """An episode of three turns with reward 1."""
    resource = Counter(count=1, target=2)
    setting = Setting(
        agent=Agent(),
        policy=ScriptedPolicy(TEMPLATE, (ADD, ADD, SUBMIT)),
        sessions=LocalSessions(SessionTable(resource)),
        limits=Limits(),
        new_ledger=partial(TokenLedger, TEMPLATE, hermes),
        resource="counter",
        model="scripted",
    )
    return asyncio.run(run_episode(Lease("run", next(iter(resource.tasks(0))), 0, 1, True, 7), setting))


def write(folder: Path, tasks: int) -> None:
    """Makes a run and commits the two halves of each group one after the other, merging files as they come."""
    create_or_resume(load(find_conf("scripted"), [f"run.dir={folder}", "run.samples_per_task=2"]), {}, False, False)
    committer, episode = Committer(str(folder / "episodes"), "run"), played()
    for number in range(tasks):
        for sample in range(2):
            lease = replace(episode.lease, task=Task(f"t{number}", (), {}, number), sample_index=sample)
            committer.commit([write_file(committer.folder, to_table([replace(episode, lease=lease)]))])
        print(number, flush=True)
        while old := due(committer.files(), 1 << 20, 4):
            merged = merge(committer.folder, old)
            assert merged is not None
            committer.replace(old, merged)


@contextmanager
def being_written(folder: Path, tasks: int = 10_000) -> Iterator[subprocess.Popen[str]]:
    """A process that writes the run, until it has or the block ends; some rows are there."""
    root = str(Path(__file__).parent.parent.parent)
    command = [sys.executable, __file__, str(folder), str(tasks)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": root})
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if int(line) >= 5:
                break
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
