"""One episode of ours inside another's loop: their engine samples, our turn loop, tools and verifier do the rest.

Sessions live in this process: whoever plays more episodes than one process bears starts more of them, as verl's and
SkyRL's workers do anyway.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import uuid4

from actors.setting import Names, context_of, parser_of, template_of, vocabulary_of
from resources.catalog import load_resource
from rollout import offload
from rollout.config import JobConfig, find_conf, load
from rollout.episode import Setting, run_episode
from rollout.errors import ContextExceeded, RolloutError, UserError
from rollout.protocols import Policy
from rollout.rows import to_table
from rollout.samples import to_samples
from rollout.scheduling import sample_seed
from rollout.sessions import LocalSessions, SessionTable
from rollout.tasks import read_tasks
from rollout.template import ChatTemplate
from rollout.tokens import TokenLedger
from rollout.trajectory import Completion, FailureKind, Lease, Prompt, Sampling, Task, Trajectory

KEY = "task"
"""Where a row of another's dataset holds our task, as JSON text: a struct would have to be the same in all rows."""


@dataclass(slots=True)
class Within:
    """A policy for one episode of a trainer that has room for so many tokens of prompt and of everything after it."""

    inner: Policy
    prompt_tokens: int
    response_tokens: int
    opening: int = 0

    async def complete(self, prompt: Prompt) -> Completion:
        """Raises ContextExceeded where no room is left."""
        if prompt.turn == 0:
            self.opening = len(prompt.ids)
        room = self.response_tokens - (len(prompt.ids) - self.opening)
        if room <= 0 or self.opening > self.prompt_tokens:
            raise ContextExceeded(f"{len(prompt.ids)} tokens of prompt, {self.opening} of them in the first")
        return await self.inner.complete(replace(prompt, max_tokens=min(prompt.max_tokens, room)))


@dataclass(frozen=True, slots=True)
class Player:
    """Plays episodes of a job's environments with whatever policy it is given."""

    config: JobConfig
    template: ChatTemplate
    tables: dict[str, SessionTable]
    """Sessions by the name of their environment."""
    names: Names
    run_id: str = field(default_factory=lambda: uuid4().hex[:8])
    count: Iterator[int] = field(default_factory=itertools.count)

    @staticmethod
    def of(conf: str, overrides: Sequence[str] = ()) -> Player:
        """A player of the job in a conf: its environments, limits, agent, chat template and parser; its engine is not
        used. Raises UserError for a conf or a resource that cannot be used."""
        config = load(find_conf(conf), overrides)
        template = template_of(config.model)
        if template is None:
            raise UserError(f"{conf}: model.tokenizer: is needed, another's engine takes token ids")
        environments = config.environments
        offload.configure(max(one.verifier_processes for one in environments.values()))
        tables = {
            name: SessionTable(load_resource(one.name, one.options), max_sessions=one.max_sessions)
            for name, one in environments.items()
        }
        return Player(config, template, tables, Names.of(config))

    @property
    def sampling(self) -> Sampling:
        """The job's own."""
        return self.config.model.sampling.value()

    async def play(self, policy: Policy, task: Task, sampling: Sampling) -> Trajectory:
        """One sample of a task; one that fails outside of the policy is tried again as often as the job says."""
        if task.resource not in self.tables:
            raise UserError(f"task {task.id}: of environment '{task.resource}', the job has {', '.join(self.tables)}")
        setting, sample = self._setting(policy, task, sampling), next(self.count)
        attempts = self.config.scheduler.max_attempts
        seed = sample_seed(self.config.run.seed, task.index, sample)
        lease = Lease(self.run_id, task, sample, 1, attempts == 1, seed)
        while True:
            trajectory = await run_episode(lease, setting)
            failure = trajectory.failure
            if failure is None or lease.final or failure.kind is FailureKind.INTERNAL:
                return trajectory
            await asyncio.sleep(min(2.0**lease.attempt, 30.0))
            lease = replace(lease, attempt=lease.attempt + 1, final=lease.attempt + 1 == attempts)

    def _setting(self, policy: Policy, task: Task, sampling: Sampling) -> Setting:
        config, table = self.config, self.tables[task.resource]
        return Setting(
            agent=config.agent.value(sampling),
            policy=policy,
            sessions=LocalSessions(table),
            limits=config.limits,
            new_ledger=partial(TokenLedger, self.template, parser_of(config, self.template)),
            resource=self.names.resources[task.resource],
            model=self.names.model,
            context=context_of(config),
            vocabulary=vocabulary_of(config),
        )

    def dataset(self) -> Iterator[dict[str, Any]]:
        """The job's tasks as rows of the datasets that verl and SkyRL read; write them as Parquet."""
        for name, environment in self.config.environments.items():
            resource = self.tables[name].resource
            for task in read_tasks(environment.tasks, resource, self.config.run.seed):
                shown = list(task.messages) or [{"role": "user", "content": task.id}]  # ours come from the session
                told = {"id": task.id, "messages": task.messages, "data": task.data, "resource": name}
                yield {
                    "data_source": self.names.resources[name],
                    "agent_name": "rollout",
                    "env_class": "rollout",
                    "prompt": shown,
                    "extra_info": {"index": task.index, KEY: json.dumps(told, ensure_ascii=False)},
                }


def sampling_of(params: Mapping[str, Any], own: Sampling) -> Sampling:
    """Parameters as verl and SkyRL write them, as ours; what they do not name is as the job has it."""
    top_k = int(params.get("top_k", own.top_k))
    return replace(
        own,
        temperature=float(params.get("temperature", own.temperature)),
        top_p=float(params.get("top_p", own.top_p)),
        top_k=max(0, top_k),  # they write -1 for all
    )


def task_in(extra: Any) -> Task:
    """The task that a row's `extra_info` holds. Raises UserError when it holds none."""
    try:
        told = json.loads(extra[KEY])
        return Task(told["id"], tuple(told["messages"]), told["data"], int(extra["index"]), told["resource"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"extra_info: {error!r}: expected a row of Player.dataset()") from error


def sample_of(trajectory: Trajectory) -> dict[str, Any]:
    """The one training sample of an episode, with SAMPLES' columns.

    A token ledger never breaks a segment, so there is not more than one. Raises RolloutError when the episode failed
    (a failure is no reward) or holds no sampled token.
    """
    if (failure := trajectory.failure) is not None:
        raise RolloutError(f"{trajectory.lease.episode_id}: {failure.kind} at {failure.where}: {failure.message}")
    if not trajectory.turns:
        raise RolloutError(f"{trajectory.lease.episode_id}: {trajectory.stop_reason} before a token was sampled")
    (sample,) = to_samples(to_table([trajectory])).to_pylist()
    return sample
