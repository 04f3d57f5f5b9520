"""Driver and runner in one process: episodes that wait for a person, a run that is stopped meanwhile and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.driver import Driver
from actors.keeper import Keeper
from actors.runner import EpisodeRunner
from actors.setting import Job, Names
from actors.watch import Watch
from resources.counter import Counter
from rollout.agents.approval_queue import REQUESTS, answer, pending
from rollout.agents.loading import Around, load_agent
from rollout.dataset import Committer, open_table
from rollout.episode import Setting
from rollout.job_section import JobConfig
from rollout.journal import left_behind, taken_up
from rollout.live import Live
from rollout.scheduling import Scheduler, samples
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.sessions import LocalSessions, SessionTable
from rollout.tally import Tally
from rollout.template import BUNDLED, load_template
from rollout.tokens import TokenLedger
from rollout.trajectory import Limits, Sampling
from rollout.watch import Bounds, Watchdog

TEMPLATE = load_template(BUNDLED)
TASKS = 6
CALLS = (("add", '{"amount": 2}'), ("submit", "{}"))
LINES = tuple(f'<tool_call>\n{{"name": "{name}", "arguments": {told}}}\n</tool_call>' for name, told in CALLS)
NAMES = Names({"": "counter"}, "agent", "scripted")


class Seen(Live):
    """A view that remembers what it was told last."""

    looks = asking = running = 0

    def update(
        self, tally: Tally, in_flight: int, total: int | None, waiting: str | None, now: float, asking: int = 0
    ) -> None:
        self.looks, self.running, self.asking = self.looks + 1, in_flight, asking


class Here(EpisodeRunner):
    """A runner whose sessions and model are in this process."""

    sessions: SessionTable

    async def start(self, name: str | None = None) -> None:
        requests, parking = self._job.requests, self._parking
        loaded = await load_agent(self._job.config.agent, Around(Sampling(), None, requests=requests, parking=parking))
        assert loaded.parts.approvals is not None
        assert loaded.parts.approvals.queue is not None
        loaded.parts.approvals.queue.poll_seconds = 0.01
        self._settings = {
            "": Setting(
                agent=loaded.parts.agent,
                policy=ScriptedPolicy(TEMPLATE, LINES),
                sessions=LocalSessions(self.sessions),
                limits=Limits(),
                new_ledger=partial(TokenLedger, TEMPLATE, hermes),
                resource="counter",
                model="scripted",
                restores="replay",
                conduct=loaded.conduct,
                patience=loaded.parts.patience,
            )
        }
        await super().start(name)


@dataclass
class Remote:
    """A runner as its driver has it: calls that go on by themselves."""

    runner: EpisodeRunner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.runner, name)

        class Method:
            remote = staticmethod(lambda *given: asyncio.ensure_future(method(*given)))

        return Method


class Run:
    """One run in a folder; every `driver` is another start of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place, self.live = folder, str(folder / REQUESTS), Seen()
        self.sessions = SessionTable(Counter(count=TASKS, target=2))
        approval = {"timeout": 3600, "policies": [{"tools": ["submit"], "approver": "human"}]}
        told = {
            "run": {"dir": str(folder)},
            "agent": {"approval": approval},
            "model": {"engine": "scripted", "turns": LINES},
            "resource": {"name": "counter"},
            "dataset": {"commit_rows": 1},
        }
        self.config = JobConfig.model_validate(told)

    def driver(self) -> Driver:
        table = str(self.folder / "episodes")
        committer = Committer(table, "run")
        tasks = Counter(count=TASKS, target=2).tasks(0)
        leases = samples(tasks, "run", 1, 0, committer.done(1), 3)

        def new_runner(name: str) -> Remote:
            runner = Here(Job(self.config, NAMES, "run", table, {}))
            runner.sessions = self.sessions
            return Remote(runner)

        return Driver(
            scheduler=Scheduler(taken_up(leases, left_behind(self.folder / "turns")), 2, 3),
            keeper=Keeper(committer, self.config.dataset),
            new_runner=new_runner,
            end_runner=lambda runner: None,
            live=self.live,
            names=NAMES,
            total=TASKS,
            start_seconds=600.0,
            silent_seconds=600.0,
            watch=Watch(Watchdog(Bounds(stuck=1e8), 0.0)),
        )

    def rows(self) -> list[dict[str, Any]]:
        return open_table(self.folder).to_pyarrow_table().to_pylist()


async def until(condition: Callable[[], bool], playing: asyncio.Task[bool]) -> None:
    while not condition():
        assert not playing.done(), playing.exception()
        await asyncio.sleep(0.01)


async def test_who_waits_holds_no_place_is_not_stuck_and_outlives_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    driver = run.driver()
    playing = asyncio.create_task(driver.run(1))
    await until(lambda: len(pending(run.place)) == TASKS and run.live.asking == TASKS, playing)
    assert (run.live.running, driver.scheduler.in_flight) == (0, 2), "more wait than there are places"
    driver.watch.dog.ended(-1e9)  # nothing has ended for longer than any patience
    looks = run.live.looks
    await until(lambda: run.live.looks > looks + 1, playing)
    first, *others = (one.id for one in pending(run.place))
    answer(run.place, first, "approve")
    await until(lambda: driver.meters.committed == 1, playing)
    driver.interrupt()
    assert await playing is False
    assert len(run.sessions) == 0, "what waited is closed"
    assert [one.id for one in pending(run.place)] == others
    for one in others[:4]:
        answer(run.place, one, "approve")  # while nothing runs

    again = run.driver()
    playing = asyncio.create_task(again.run(2))
    await until(lambda: again.meters.committed == 4, playing)
    assert [one.id for one in pending(run.place)] == others[4:]
    answer(run.place, others[4], {"decision": "terminate", "reason": "enough"})
    assert await playing is True
    rows = run.rows()
    assert sorted(row["task_index"] for row in rows) == list(range(TASKS))
    assert sorted(row["restored_turns"] or 0 for row in rows) == [0, 2, 2, 2, 2, 2]
    assert sorted(row["stop_reason"] for row in rows) == ["approval_denied", *["environment"] * 5]
    assert all(len(row["events"]) == 1 and row["num_turns"] == 2 for row in rows)
    assert run.sessions.opened == run.sessions.closed == 2 * TASKS - 1
