"""One job from its configuration to its last row: what `rollout run` does."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.cluster import Cluster, connect, disconnect, started
from actors.driver import Driver, Names
from actors.setting import model_name, template_of
from resources.catalog import code_digest, load_resource
from rollout.config import JobConfig, OpenAIConfig, secret
from rollout.dataset import Committer
from rollout.errors import UserError, nearest
from rollout.live import Live
from rollout.resource import Resource
from rollout.run_folder import Run, create_or_resume, locked
from rollout.scheduling import Scheduler, samples
from rollout.tasks import check_tasks, count_tasks, read_tasks
from rollout.template import resolve_model


def run_job(config: JobConfig, address: str | None, resume: bool, force: bool) -> bool:
    """Runs a job to its end; True when every sample has its row, False when it was stopped with work left.

    Everything a person can get wrong is looked at before anything is started. Raises UserError for that, RolloutError
    when the run cannot go on.
    """
    resource = load_resource(config.resource.name, config.resource.options)
    digests = check(config, resource)
    with locked(Path(config.run.dir)):
        run = create_or_resume(config, digests, resume, force)
        committer = Committer(run.episodes, run.run_id)
        committer.discard_uncommitted()
        connect(address)
        try:
            return asyncio.run(_play(config, run, resource, committer))
        finally:
            disconnect()


def check(config: JobConfig, resource: Resource) -> dict[str, str]:
    """Digests of what decides the rows besides the configuration, after looking at all of it.

    Raises UserError for a malformed task file, unknown tools, a model folder that cannot be used, a missing key, or
    limits that do not fit.
    """
    digests = {"resource": code_digest(resource)}
    if (tasks := check_tasks(config.tasks)) is not None:
        digests["tasks"] = tasks
    _check_tools(config, resource)
    _check_limits(config)
    if isinstance(config.model, OpenAIConfig):
        secret(config.model.api_key_env)
    if (template := template_of(config.model)) is not None:
        digests["template"] = hashlib.sha256(template.source.encode()).hexdigest()
        first = next(read_tasks(config.tasks, resource, config.run.seed), None)
        if first is None:
            raise UserError("tasks.count: the resource has no task")
        template.opening(first.messages, [bound.spec for bound in resource.bound_tools().values()])
        template.continuation([{"role": "user", "content": "?"}], ended=True)
    return digests


def _check_tools(config: JobConfig, resource: Resource) -> None:
    known = resource.bound_tools()
    for name in config.agent.tools or ():
        if name not in known:
            raise UserError(f"agent.tools: {resource.name} has no tool '{name}'{nearest(name, known)}")


def _check_limits(config: JobConfig) -> None:
    limits = config.run.limits
    if limits.verify_seconds + limits.close_seconds >= limits.episode_seconds:
        raise UserError(
            f"run.limits.episode_seconds: {limits.episode_seconds:g} leaves nothing beside the "
            f"{limits.verify_seconds:g} s kept for scoring and {limits.close_seconds:g} s for closing"
        )
    model = config.model
    if not isinstance(model, OpenAIConfig):
        folder = resolve_model(model.path)
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path: {folder}: no config.json in it" if folder.is_dir() else
                            f"model.path: {folder}: no such folder")


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
    with live:
        async with started(config, run.run_id, run.episodes) as cluster:
            driver = _driver(config, cluster, scheduler, committer, live, total)
            with _interruptible(driver):
                return await driver.run(config.scheduler.runners)


def _driver(
    config: JobConfig, cluster: Cluster, scheduler: Scheduler, committer: Committer, live: Live, total: int | None
) -> Driver:
    return Driver(
        scheduler=scheduler,
        committer=committer,
        new_runner=cluster.new_runner,
        end_runner=cluster.end_runner,
        live=live,
        names=Names(config.resource.name, config.agent.name, model_name(config)),
        total=total,
        start_seconds=config.scheduler.start_seconds,
    )


@contextmanager
def _interruptible(driver: Driver) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run in order, the second one at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def stop() -> None:
        if driver.interrupted and task is not None:
            task.cancel()
        driver.interrupt()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


