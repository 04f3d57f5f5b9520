"""`rollout submit`: the job through Ray Jobs, where it survives the one who submitted it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import click
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from rollout.config import JobConfig, dump, validate
from rollout.errors import RolloutError, UserError
from rollout.mixture import key_of
from rollout.storage import absolute
from rollout.thread import threaded

ANSWER_SECONDS = 60.0
"""What the cluster's head may take to say what became of a job."""
POLL_SECONDS = 0.5
"""How often a job is asked for whose log has ended."""
_CONF = "job.yaml"
_MISSING = "No module named rollout"
_AUTH = (
    "the cluster wants a token: set RAY_AUTH_MODE=token on both sides and share the token file, or "
    "RAY_AUTH_MODE=disabled on both"
)


def submit_job(config: JobConfig, address: str, resume: bool, follow: bool) -> int:
    """Submits a job and follows its log; the job's own exit status, 0 when it is not followed.

    Task file and resource file travel with it; the run's folder is made absolute and must be reachable from the
    cluster, whose head must have a `python` with this package on its PATH. Secrets do not travel: the variables that
    `*_env` keys name must be set there. Raises UserError when no cluster answers at `address`, RolloutError when it
    stops answering.
    """
    with _reached(address), tempfile.TemporaryDirectory() as folder:
        client = JobSubmissionClient(address)
        logging.getLogger("ray").setLevel(logging.WARNING)  # it has just set that itself
        _pack(config, Path(folder))
        entrypoint = f"python -m rollout run {_CONF}" + (" --resume" if resume else "")
        job_id: str = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": folder})
    click.echo(f"submitted {job_id} to {address}", err=True)
    again = f"ray job logs --address {address} -f {job_id}"
    if not follow:
        click.echo(f"follow it with: {again}", err=True)
        return 0
    try:
        info = asyncio.run(_follow(client, job_id))
    except KeyboardInterrupt:
        click.echo(f"\nit goes on; stop it with: ray job stop --address {address} {job_id}", err=True)
        return 0
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        raise RolloutError(f"--address: {address}: {_first_line(error)}; if the job goes on, see: {again}") from error
    return _status(info, job_id)


@contextmanager
def _reached(address: str) -> Iterator[None]:
    """Names what keeps us from the cluster at `address`."""
    if not address.startswith(("http://", "https://")):  # Ray would look for a cluster there, for minutes
        raise UserError(f"--address: expected http://HOST:8265, found {address!r}")
    try:
        yield
    except AuthenticationError:
        raise UserError(f"--address: {address}: {_AUTH}") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--address: {address}: no Ray cluster answers there: {_first_line(error)}") from None


async def _follow(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """Shows the job's log while it comes; what became of the job."""
    async for text in client.tail_job_logs(job_id):
        sys.stdout.write(text)
        sys.stdout.flush()
    while True:  # the log may end before the job is said to have ended
        info = await threaded(lambda: client.get_job_info(job_id), ANSWER_SECONDS, "its head")
        if info.status.is_terminal():
            return info
        await asyncio.sleep(POLL_SECONDS)


def _status(info: JobDetails, job_id: str) -> int:
    if info.status == JobStatus.SUCCEEDED:
        return 0
    code = info.driver_exit_code
    if _MISSING in (info.message or ""):
        raise UserError(f"{job_id}: python on the PATH of the cluster's head has no rollout: start Ray where it has")
    how = f"with status {code}" if code is not None else f"as {info.status.value}: {_first_line(info.message)}"
    click.echo(f"rollout: {job_id} ended {how}", err=True)
    return code if code is not None and code > 0 else 1


def _first_line(what: object) -> str:
    return next(iter(str(what or "it does not say why").splitlines()), "no answer")


def _pack(config: JobConfig, folder: Path) -> None:
    """What the job needs of this machine, under names that hold over there."""
    tree = config.model_dump(mode="json")
    tree["run"]["dir"] = absolute(config.run.dir)
    if config.scheduler.history is not None:
        tree["scheduler"]["history"] = absolute(config.scheduler.history)
    for name, environment in config.environments.items():
        section = tree["resources"][name] if name else tree["resource"]
        tasks = section["tasks"] if name else tree["tasks"]
        if environment.tasks.path is not None:
            tasks["path"] = _take(Path(environment.tasks.path), folder, key_of(name, "tasks.path"), name)
        file, colon, attribute = environment.name.partition(":")
        if file.endswith(".py"):
            section["name"] = _take(Path(file), folder, key_of(name, "name"), name) + colon + attribute
    model = tree["model"]
    if (template := model.get("chat_template")) is not None:
        model["chat_template"] = _take(Path(template), folder, "model.chat_template")
    for key in ("path", "tokenizer"):  # too large to travel: like the run's folder, it must be reachable
        if (place := model.get(key)) is not None and Path(place).is_dir():
            model[key] = str(Path(place).resolve())
    (folder / _CONF).write_text(dump(validate(tree, "the packed job")))


def _take(path: Path, folder: Path, key: str, within: str = "") -> str:
    """Copies a file into the folder, or one `within` it: files of several environments may have one name."""
    if not path.is_file():
        raise UserError(f"{key}: {path}: no such file")
    place = Path(within) / path.name
    (folder / within).mkdir(exist_ok=True)
    shutil.copy(path, folder / place)
    return str(place)
