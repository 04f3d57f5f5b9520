"""Everything of a job that can be seen to be wrong before anything is started."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.external import check_program
from actors.setting import Names, budget_of, context_of, template_of
from actors.vllm_engine import check_config
from actors.vllm_parsers import split_reference
from resources.catalog import code_digest, load_resource, resource_class
from rollout.agents.approval_queue import REQUESTS
from rollout.agents.aside import Told
from rollout.agents.loading import Around, load_agent
from rollout.config import JobConfig, OpenAIConfig, ResourceConfig, VllmConfig
from rollout.errors import UserError, nearest
from rollout.mixture import key_of, told_of
from rollout.openai_probe import check_endpoint
from rollout.parsing import FORMATS
from rollout.resource import Resource
from rollout.storage import inside
from rollout.tasks import check_tasks, read_tasks
from rollout.template import ChatTemplate, resolve_model
from rollout.trajectory import Json, Message, Task


def make_resources(config: JobConfig) -> dict[str, Resource]:
    """The job's resources by the names of its environments.

    Raises UserError naming the key, the option, or the line of a resource's file that is wrong.
    """
    return {name: _make(name, environment) for name, environment in config.environments.items()}


def _make(name: str, environment: ResourceConfig) -> Resource:
    try:
        resource_class(environment.name)
    except UserError as error:
        raise UserError(f"{key_of(name, 'name')}: {error}") from error
    with told_of(name):
        return load_resource(environment.name, environment.options)


def check(config: JobConfig, resources: Mapping[str, Resource]) -> dict[str, str]:
    """Digests of what decides the rows besides the configuration, after looking at all of it.

    Raises UserError for a malformed task file, unknown tools, limits that do not fit, a model folder that cannot be
    used, a first task that does not fit the model, an endpoint that does not answer or wants a key.
    """
    digests: dict[str, str] = {}
    for name, environment in config.environments.items():
        digests[f"resources.{name}" if name else "resource"] = code_digest(resources[name])
        with told_of(name):
            tasks = check_tasks(environment.tasks)
        if tasks is not None:
            digests[f"resources.{name}.tasks" if name else "tasks"] = tasks
    _check_tools(config, resources.values())
    _check_limits(config)
    firsts = {name: _first_task(config, name, resource) for name, resource in resources.items()}
    template = check_model(config)
    check_program(config)
    with ThreadPoolExecutor(1) as aside:  # of a loop that may be running here
        variables = aside.submit(asyncio.run, _check_agent(config, template)).result()
    if template is not None:
        digests["template"] = hashlib.sha256(template.source.encode()).hexdigest()
        template = template.using(variables)
        for name, task in firsts.items():
            _check_fit(config, name, resources[name], template, task)
    if isinstance(config.model, OpenAIConfig):
        check_endpoint(config.model)
    return digests


def _first_task(config: JobConfig, name: str, resource: Resource) -> Task:
    environment = config.environments[name]
    with told_of(name):
        if (first := next(read_tasks(environment.tasks, resource, config.run.seed), None)) is None:
            raise UserError(f"resource {environment.name}: it gives no task")
    return first


def _check_tools(config: JobConfig, resources: Collection[Resource]) -> None:
    """Each tool that the agent may use is there, in one environment at least."""
    known = {name: None for resource in resources for name in resource.bound_tools()}
    for name, times in Counter(config.agent.chosen or ()).items():
        if name not in known:
            there = " and ".join(resource.name for resource in resources)
            none = "have no tool" if len(resources) > 1 else "has no tool"
            raise UserError(f"agent.tools: {there} {none} '{name}'{nearest(name, known)}")
        if times > 1:
            raise UserError(f"agent.tools: '{name}' stands there {times} times")


async def _check_agent(config: JobConfig, template: ChatTemplate | None) -> Mapping[str, Json]:
    """All that the agent names is there, and its budget is one of a model with a price. What the chat template is told
    beside messages and tools."""
    budget = budget_of(config, Names.of(config).model)
    requests = inside(config.run.dir, REQUESTS)
    around = Around(config.model.sampling.value(), context_of(config), budget, requests, template, _unasked)
    loaded = await load_agent(config.agent, around)
    await loaded.close()
    return loaded.parts.variables


async def _unasked(*_: Any) -> Told:
    """Stands for the model that approvers will ask."""
    raise AssertionError("nobody plays here")


def _check_limits(config: JobConfig) -> None:
    limits = config.run.limits
    if limits.verify_seconds + limits.close_seconds >= limits.episode_seconds:
        raise UserError(
            f"run.limits.episode_seconds: {limits.episode_seconds:g} leaves nothing beside the "
            f"{limits.verify_seconds:g} s kept for scoring and {limits.close_seconds:g} s for closing"
        )


def check_model(config: JobConfig) -> ChatTemplate | None:
    """The chat template, after looking at the folder it comes from and at what reads the model's text.

    Raises UserError for what is wrong with them.
    """
    model = config.model
    if isinstance(model, OpenAIConfig):
        if model.tokenizer is None:
            return None
        with _named("model.tokenizer"):
            _check_folder(model.tokenizer)
            template = template_of(model)
    else:
        _check_folder(model.path)
        if isinstance(model, VllmConfig):
            check_config(model)
        template = template_of(model)
    if model.parser not in FORMATS:
        split_reference(model.parser)
    return template


def _source(config: JobConfig) -> str:
    """Where the chat template comes from."""
    model = config.model
    if isinstance(model, OpenAIConfig):
        return f"model.tokenizer: {model.tokenizer}"
    return f"model.chat_template: {model.chat_template}" if model.chat_template else f"model.path: {model.path}"


@contextmanager
def _named(key: str) -> Iterator[None]:
    """What is said of the model's folder, said of the key that named it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {str(error).removeprefix('model.path: ')}") from error


def _check_folder(path: str) -> None:
    """A folder that is not there has perhaps a neighbour of nearly its name."""
    models = [str(file.parent) for file in Path(path).parent.glob("*/tokenizer.json")]
    try:
        folder = resolve_model(path)
    except UserError as error:  # it looks like a name on the hub, and is none
        raise UserError(f"{error}{nearest(path, models) if models else ''}") from error
    if not folder.is_dir():
        raise UserError(f"model.path: {path}: no such folder{nearest(path, ['bundled', *models])}")


def _check_fit(config: JobConfig, name: str, resource: Resource, template: ChatTemplate, task: Task) -> None:
    """The first task as its episode opens, but for what the resource's session adds to it, and one more message."""
    agent = config.agent
    told = agent.instructions if isinstance(agent.instructions, str) else ""  # others are made for each episode
    instructions = resource.instructions if agent.instructions is None else told
    system: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    bound = resource.bound_tools().values()
    tools = [one.spec for one in bound if agent.chosen is None or one.spec.name in agent.chosen]
    with _named(_source(config)):
        length, reach = len(template.opening([*system, *task.messages], tools)), context_of(config)
        template.continuation([{"role": "user", "content": "?"}], ended=True)
    if reach is not None and length >= reach:
        environment = config.environments[name]
        path, whole = environment.tasks.path, f"resources.{name}" if name else f"resource {environment.name}"
        where = f"{key_of(name, 'tasks.path')}: {path}" if path else whole
        raise UserError(f"{where}: task '{task.id}' opens with {length:,} tokens; the model's context has {reach:,}")
