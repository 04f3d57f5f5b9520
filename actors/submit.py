"""`rollout submit`: the job through Ray Jobs, where it survives the one who submitted it."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from rollout.config import JobConfig, dump, validate
from rollout.errors import UserError

_CONF = "job.yaml"
_AUTH = (
    "the cluster wants a token: set RAY_AUTH_MODE=token on both sides and share the token file, or "
    "RAY_AUTH_MODE=disabled on both"
)


def submit_job(config: JobConfig, address: str, resume: bool, follow: bool) -> int:
    """Submits a job and follows its log; the job's own exit status, 0 when it is not followed.

    Task file and resource file travel with it; the run's folder is made absolute and must be reachable from the
    cluster. Secrets do not travel: the variables that `*_env` keys name must be set there. Raises UserError when no
    cluster answers at `address`.
    """
    client = _client(address)
    with tempfile.TemporaryDirectory() as folder:
        _pack(config, Path(folder))
        entrypoint = f"python -m rollout run {_CONF}" + (" --resume" if resume else "")
        job_id: str = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": folder})
    click.echo(f"submitted {job_id} to {address}", err=True)
    if not follow:
        click.echo(f"follow it with: ray job logs --address {address} -f {job_id}", err=True)
        return 0
    try:
        asyncio.run(_follow(client, job_id))
    except KeyboardInterrupt:
        click.echo(f"\nit goes on; stop it with: ray job stop --address {address} {job_id}", err=True)
        return 0
    info: Any = client.get_job_info(job_id)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    click.echo(f"rollout: {job_id} ended as {info.status}: {info.message}", err=True)
    return info.driver_exit_code if info.driver_exit_code is not None else 1


def _client(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(f"--address: {address}: {_AUTH}") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "no answer")
        kind = _AUTH if "authentication" in str(error).lower() else f"no Ray cluster answers there: {reason}"
        raise UserError(f"--address: {address}: {kind}") from None


def _pack(config: JobConfig, folder: Path) -> None:
    """What the job needs of this machine, under names that hold over there."""
    tree = config.model_dump(mode="json")
    tree["run"]["dir"] = str(Path(config.run.dir).resolve())
    if config.tasks.path is not None:
        tree["tasks"]["path"] = _take(Path(config.tasks.path), folder, "tasks.path")
    file, colon, name = config.resource.name.partition(":")
    if file.endswith(".py"):
        tree["resource"]["name"] = _take(Path(file), folder, "resource.name") + colon + name
    template = tree["model"].get("chat_template")
    if template is not None:
        tree["model"]["chat_template"] = _take(Path(template), folder, "model.chat_template")
    (folder / _CONF).write_text(dump(validate(tree, "the packed job")))


def _take(path: Path, folder: Path, key: str) -> str:
    if not path.is_file():
        raise UserError(f"{key}: {path}: no such file")
    shutil.copy(path, folder / path.name)
    return path.name


async def _follow(client: JobSubmissionClient, job_id: str) -> None:
    async for text in client.tail_job_logs(job_id):
        sys.stdout.write(text)
        sys.stdout.flush()
