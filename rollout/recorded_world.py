"""A run's own environment, built again from what run.yaml says, or another in its place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rollout import offload
from rollout.agents.loading import is_plain
from rollout.config import JobConfig, validate
from rollout.errors import UserError, nearest
from rollout.mixture import LANE_TASKS, told_of
from rollout.replaying import World
from rollout.resource import Resource
from rollout.run_folder import Run, read_run
from rollout.sessions import LocalSessions, SessionTable
from rollout.storage import Place, inside
from rollout.trajectory import Sampling

Load = Callable[[str, Mapping[str, Any]], Resource]
Code = Callable[[Resource], str]
"""`resources.catalog.load_resource` and `code_digest`: given, because this layer knows no catalogue."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One environment of a run, as the run was told to make it."""

    run: Run
    config: JobConfig
    environment: str
    """The empty name where the run has only one."""
    first_task: int = 0
    end_task: int | None = None
    """Its tasks have the numbers from first_task on and before end_task."""

    @property
    def seed(self) -> int:
        """Of the run: the seeds of its samples follow from it."""
        return self.config.run.seed

    @property
    def attempts(self) -> int:
        """How often a sample was tried."""
        return self.config.scheduler.max_attempts

    @property
    def digest(self) -> str | None:
        """Of the code that the rows were played with."""
        return self.run.digests.get(f"resources.{self.environment}" if self.environment else "resource")

    def require_plain(self, what: str) -> None:
        """Raises UserError where the agent's own parts had a hand in what the environment was told."""
        if not is_plain(self.config.agent):
            raise UserError(f"agent: {what}: its hooks, guardrails and own tools are not played again")

    def options(self, reference: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a resource: those given, on top of the run's where it is the run's own resource."""
        own = self.config.environments[self.environment]
        return {**own.options, **given} if reference in (None, own.name) else dict(given)

    @contextmanager
    def world(
        self, reference: str | None, given: Mapping[str, Any], load: Load, code: Code
    ) -> Generator[tuple[World, str]]:
        """The environment in this process, and the digest of its code; None stands for the run's own.

        Raises UserError when it cannot be made. Its verifiers' processes end with the block.
        """
        own = self.config.environments[self.environment]
        with told_of(self.environment):
            resource = load(reference or own.name, self.options(reference, given))
        offload.configure(own.verifier_processes)
        sessions = LocalSessions(SessionTable(resource))
        try:
            yield (
                World(
                    sessions, resource.name, resource.rescores, self.config.limits, self.config.agent.value(Sampling())
                ),
                code(resource),
            )
        finally:
            offload.shutdown()


def recorded(place: Place, environment: str | None) -> Recorded:
    """The environment of a run that is named, or its only one.

    Raises UserError when there is no run, or when it has several and none or no such one is named.
    """
    run = read_run(place)
    config = validate(run.config, inside(place, "run.yaml"))
    names = list(config.environments)
    if names == [""]:
        if environment is not None:
            raise UserError(f"--env: {environment}: the run has one environment, without a name")
        return Recorded(run, config, "")
    if environment not in names:
        said = "the run has several" if environment is None else f"no environment '{environment}'"
        raise UserError(f"--env: {said}{nearest(environment or '', names)}")
    first = names.index(environment) * LANE_TASKS
    return Recorded(run, config, environment, first, first + LANE_TASKS)
