"""One job from its configuration to its last row: what `rollout run` does."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from actors.check import check, make_resources
from actors.cluster import Cluster, started
from actors.connection import check_room, connect, disconnect
from actors.driver import Driver
from actors.keeper import Keeper
from actors.metrics import RayExport
from actors.setting import Names
from actors.watch import Watch
from rollout.agents.approval_queue import REQUESTS
from rollout.config import JobConfig
from rollout.dataset import Committer
from rollout.demand import Demand
from rollout.errors import UserError
from rollout.expectation import History, read_history
from rollout.journal import discard, left_behind
from rollout.lanes import Lane
from rollout.live import Live
from rollout.mixture import count_episodes, lanes_of
from rollout.pacing import Pace
from rollout.resource import Resource
from rollout.run_folder import Run, check_folder, create_or_resume, locked, take_back
from rollout.scheduling import Scheduler
from rollout.storage import folder, is_remote
from rollout.tally import Tally
from rollout.watch import Bounds, Watchdog


def run_job(config: JobConfig, address: str | None, resume: bool, force: bool) -> bool:
    """Runs a job to its end; True when every sample has its row, False when it was stopped with work left.

    Everything a person can get wrong is looked at before anything is started. Raises UserError for that, RolloutError
    when the run cannot go on. A UserError that comes before the first row leaves no run behind.
    """
    folder = config.run.dir
    check_folder(folder, resume)
    resources = make_resources(config)
    digests = check(config, resources)
    history = read_history(path) if (path := config.scheduler.history) else None
    with locked(folder):
        run = create_or_resume(config, digests, resume, force)
        committer = Committer(run.episodes, run.run_id)
        committer.take_over(config.dataset.keep_hours)
        if force:  # what was sampled under other rules is not gone on with
            discard(run.turns)
        try:
            if connect(address, config.logs):
                check_room(config)
            return asyncio.run(_play(config, run, resources, committer, history))
        except UserError:
            if not resume and not committer.files():
                take_back(run)
            raise
        except (KeyboardInterrupt, asyncio.CancelledError):  # while the cluster was starting or ending
            return False
        finally:
            disconnect()


async def _play(
    config: JobConfig, run: Run, resources: Mapping[str, Resource], committer: Committer, history: History | None
) -> bool:
    done = committer.done(config.run.group_size)
    left = left_behind(run.turns) if config.run.keep_turns else {}
    lanes = lanes_of(config, resources, run.run_id, done, history, left)
    if not lanes:
        discard(run.turns)
        return True
    scheduler = new_scheduler(config, lanes)
    total = count_episodes(config, resources)
    live = Live(already=len(done))
    with live, _interruptible() as drivers:

        def tell(waiting: str) -> None:
            live.update(Tally(), 0, total, waiting, time.time())

        async with started(config, run.run_id, run.episodes, tell) as cluster:
            driver = new_driver(config, cluster, scheduler, committer, live, total)
            drivers.append(driver)
            if (budget := config.cost.job_usd) is not None:
                driver.budget, driver.spent = budget, committer.cost()
            complete = await driver.run(config.scheduler.runners)
        if complete:
            discard(run.turns)
            folder(run.place).clear(REQUESTS)
        if not is_remote(run.place):  # there another driver may be writing already: nothing locks it out
            committer.discard_uncommitted()  # of runners that died; no process of the job is left to write
        return complete


def new_scheduler(config: JobConfig, lanes: Sequence[Lane], demand: Demand | None = None) -> Scheduler:
    """The scheduler that a job asks for; `demand` says when another group may be begun."""
    knobs = config.scheduler
    wanted = config.run.samples_per_task if config.run.over_sample else None
    pace = Pace(knobs.in_flight, knobs.least_in_flight) if knobs.adaptive else None
    return Scheduler(lanes, knobs.in_flight, knobs.max_attempts, wanted, pace, demand, knobs.parked_max)


def new_driver(
    config: JobConfig, cluster: Cluster, scheduler: Scheduler, committer: Committer, live: Live, total: int | None
) -> Driver:
    """The driver of a job on what was started for it."""
    names = Names.of(config)
    return Driver(
        scheduler=scheduler,
        keeper=Keeper(committer, config.dataset),
        new_runner=cluster.new_runner,
        end_runner=cluster.end_runner,
        live=live,
        names=names,
        total=total,
        start_seconds=config.scheduler.start_seconds,
        silent_seconds=config.scheduler.silent_seconds,
        export=RayExport(cluster.job.run_id, "+".join(names.resources.values())),
        watch=_watch(config, cluster),
    )


def _watch(config: JobConfig, cluster: Cluster) -> Watch:
    patience, limits = config.scheduler, config.limits
    bounds = Bounds.of(
        limits, patience.max_attempts, patience.stuck_seconds, patience.silent_seconds, patience.start_seconds
    )
    return Watch(Watchdog(bounds, time.monotonic(), cluster.mender.parts), cluster.mender.mend)


@contextmanager
def _interruptible() -> Iterator[list[Driver]]:
    """The first Ctrl-C or SIGTERM lets the driver that was put into the list end in order; without one, and at every
    further signal, all ends at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None, "it runs in a loop"
    drivers: list[Driver] = []

    def stop() -> None:
        if drivers and not drivers[0].interrupted:
            drivers[0].interrupt()
        else:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield drivers
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
