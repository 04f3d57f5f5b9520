"""One job from its configuration to its last row: what `rollout run` does."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.check import check, make_resource
from actors.cluster import Cluster, started
from actors.connection import check_room, connect, disconnect
from actors.driver import Driver
from actors.setting import Names
from rollout.config import JobConfig
from rollout.dataset import Committer
from rollout.errors import UserError
from rollout.live import Live
from rollout.resource import Resource
from rollout.run_folder import Run, check_folder, create_or_resume, locked, take_back
from rollout.scheduling import Scheduler, samples
from rollout.tasks import count_tasks, read_tasks


def run_job(config: JobConfig, address: str | None, resume: bool, force: bool) -> bool:
    """Runs a job to its end; True when every sample has its row, False when it was stopped with work left.

    Everything a person can get wrong is looked at before anything is started. Raises UserError for that, RolloutError
    when the run cannot go on. A UserError that comes before the first row leaves no run behind.
    """
    folder = Path(config.run.dir)
    check_folder(folder, resume)
    resource = make_resource(config)
    digests = check(config, resource)
    with locked(folder):
        run = create_or_resume(config, digests, resume, force)
        committer = Committer(run.episodes, run.run_id)
        committer.discard_uncommitted()
        try:
            if connect(address):
                check_room(config)
            return asyncio.run(_play(config, run, resource, committer))
        except UserError:
            if not resume and not committer.last:
                take_back(run)
            raise
        except (KeyboardInterrupt, asyncio.CancelledError):  # while the cluster was starting or ending
            return False
        finally:
            disconnect()


async def _play(config: JobConfig, run: Run, resource: Resource, committer: Committer) -> bool:
    each = config.run.samples_per_task
    done = committer.done(each)
    tasks = read_tasks(config.tasks, resource, config.run.seed)
    source = samples(tasks, run.run_id, each, config.run.seed, done, config.scheduler.max_attempts)
    if (first := next(source, None)) is None:
        return True
    in_flight, attempts = config.scheduler.in_flight, config.scheduler.max_attempts
    scheduler = Scheduler(itertools.chain([first], source), in_flight, attempts)
    count = count_tasks(config.tasks, resource)
    total = count * each if count is not None else None
    live = Live(already=len(done))
    with live, _interruptible() as drivers:
        async with started(config, run.run_id, run.episodes) as cluster:
            driver = _driver(config, cluster, scheduler, committer, live, total)
            drivers.append(driver)
            complete = await driver.run(config.scheduler.runners)
        committer.discard_uncommitted()  # of runners that died; no process of the job is left to write
        return complete


def _driver(
    config: JobConfig, cluster: Cluster, scheduler: Scheduler, committer: Committer, live: Live, total: int | None
) -> Driver:
    return Driver(
        scheduler=scheduler,
        committer=committer,
        new_runner=cluster.new_runner,
        end_runner=cluster.end_runner,
        live=live,
        names=Names.of(config),
        total=total,
        start_seconds=config.scheduler.start_seconds,
        silent_seconds=config.scheduler.silent_seconds,
    )


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
