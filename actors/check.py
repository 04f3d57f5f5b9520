"""Everything of a job that can be seen to be wrong before anything is started."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.setting import context_of, template_of
from actors.vllm_engine import check_config
from actors.vllm_parsers import split_reference
from resources.catalog import code_digest, load_resource, resource_class
from rollout.config import JobConfig, OpenAIConfig, VllmConfig
from rollout.errors import UserError, nearest
from rollout.openai_probe import check_endpoint
from rollout.resource import Resource
from rollout.tasks import check_tasks, read_tasks
from rollout.template import ChatTemplate, resolve_model
from rollout.trajectory import Message, Task


def make_resource(config: JobConfig) -> Resource:
    """The job's resource. Raises UserError naming the key, the option, or the line of its file that is wrong."""
    try:
        resource_class(config.resource.name)
    except UserError as error:
        raise UserError(f"resource.name: {error}") from error
    return load_resource(config.resource.name, config.resource.options)


def check(config: JobConfig, resource: Resource) -> dict[str, str]:
    """Digests of what decides the rows besides the configuration, after looking at all of it.

    Raises UserError for a malformed task file, unknown tools, limits that do not fit, a model folder that cannot be
    used, a first task that does not fit the model, an endpoint that does not answer or wants a key.
    """
    digests = {"resource": code_digest(resource)}
    if (tasks := check_tasks(config.tasks)) is not None:
        digests["tasks"] = tasks
    _check_tools(config, resource)
    _check_limits(config)
    first = next(read_tasks(config.tasks, resource, config.run.seed), None)
    if first is None:
        raise UserError(f"resource {config.resource.name}: it gives no task")
    if (template := _template(config)) is not None:
        digests["template"] = hashlib.sha256(template.source.encode()).hexdigest()
        _check_fit(config, resource, template, first)
    if isinstance(config.model, OpenAIConfig):
        check_endpoint(config.model)
    return digests


def _check_tools(config: JobConfig, resource: Resource) -> None:
    known = resource.bound_tools()
    for name, times in Counter(config.agent.tools or ()).items():
        if name not in known:
            raise UserError(f"agent.tools: {resource.name} has no tool '{name}'{nearest(name, known)}")
        if times > 1:
            raise UserError(f"agent.tools: '{name}' stands there {times} times")


def _check_limits(config: JobConfig) -> None:
    limits = config.run.limits
    if limits.verify_seconds + limits.close_seconds >= limits.episode_seconds:
        raise UserError(
            f"run.limits.episode_seconds: {limits.episode_seconds:g} leaves nothing beside the "
            f"{limits.verify_seconds:g} s kept for scoring and {limits.close_seconds:g} s for closing"
        )


def _template(config: JobConfig) -> ChatTemplate | None:
    """The chat template, after looking at the folder it comes from and at what reads the model's text."""
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
    if model.parser != "hermes":
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


def _check_fit(config: JobConfig, resource: Resource, template: ChatTemplate, task: Task) -> None:
    """The first task as its episode opens, but for what the resource's session adds to it, and one more message."""
    agent = config.agent
    instructions = agent.instructions if agent.instructions is not None else resource.instructions
    system: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    tools = [bound.spec for name, bound in resource.bound_tools().items() if agent.tools is None or name in agent.tools]
    with _named(_source(config)):
        length, reach = len(template.opening([*system, *task.messages], tools)), context_of(config)
        template.continuation([{"role": "user", "content": "?"}], ended=True)
    if reach is not None and length >= reach:
        key = "tasks.path: " + config.tasks.path if config.tasks.path else f"resource {config.resource.name}"
        raise UserError(f"{key}: task '{task.id}' opens with {length:,} tokens; the model's context has {reach:,}")
