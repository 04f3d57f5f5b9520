"""What a runner needs to play episodes, from the job's configuration and the handles of what was started for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.courier import Courier
from actors.resource_host import HostedSessions, Offer
from rollout.config import JobConfig, OpenAIConfig, ReplicatedConfig
from rollout.episode import Setting
from rollout.openai_policy import OpenAIPolicy
from rollout.protocols import Ledger, Policy
from rollout.segments import Parser, hermes
from rollout.template import ChatTemplate, context_length, load_template, resolve_model, vocabulary_size
from rollout.tokens import MessageLedger, TokenLedger


@dataclass(frozen=True, slots=True)
class Names:
    """What rows call what played them: as the configuration names it."""

    resource: str
    agent: str
    model: str

    @staticmethod
    def of(config: JobConfig) -> Names:
        """The names of a job."""
        model = config.model
        named = (
            model.name if isinstance(model, OpenAIConfig) else "scripted" if model.engine == "scripted" else model.path
        )
        return Names(config.resource.name, config.agent.name, named)


@dataclass(frozen=True, slots=True)
class Job:
    """A run as its runners see it. `hosts` and `model` are handles of the cluster's own kind."""

    config: JobConfig
    """Its paths are absolute: see `located`."""
    names: Names
    run_id: str
    table: str
    offer: Offer
    hosts: tuple[Any, ...]
    model: Any = None
    """Handle of the model's deployment; None for an endpoint elsewhere."""


async def build_setting(job: Job) -> Setting:
    """Policy, sessions and ledger of a job. Raises UserError for a model folder or template that cannot be used."""
    config = job.config
    policy, new_ledger = _policy(job)
    silent = config.scheduler.silent_seconds
    couriers = [
        Courier(host.exchange.remote, f"host {number}", silent_seconds=silent) for number, host in enumerate(job.hosts)
    ]
    return Setting(
        agent=config.agent.value(config.model.sampling.value()),
        policy=policy,
        sessions=HostedSessions(couriers, job.offer),
        limits=config.run.limits.value(),
        new_ledger=new_ledger,
        resource=job.names.resource,
        model=job.names.model,
        context=context_of(config),
        vocabulary=_vocabulary(config),
    )


async def close_setting(setting: Setting) -> None:
    """Closes the connections a setting holds; it can play nothing afterwards."""
    if isinstance(setting.policy, OpenAIPolicy):
        await setting.policy.aclose()


def located(config: JobConfig) -> JobConfig:
    """The job with its paths made absolute: actors do not work in the folder it was started in."""
    model, resource = config.model, config.resource
    keys = ("tokenizer",) if isinstance(model, OpenAIConfig) else ("path", "chat_template")
    file, colon, name = resource.name.partition(":")
    there = {"name": _absolute(file) + colon + name} if file.endswith(".py") else {}
    return config.model_copy(
        update={
            "model": model.model_copy(update={key: _absolute(path) for key in keys if (path := getattr(model, key))}),
            "resource": resource.model_copy(update=there),
        }
    )


def _absolute(path: str) -> str:
    """Of a file or folder that is here; anything else is a name."""
    return str(Path(path).resolve()) if path != "bundled" and Path(path).exists() else path


def context_of(config: JobConfig) -> int | None:
    """Positions an episode may use; None when only the endpoint knows."""
    model = config.model
    if isinstance(model, OpenAIConfig):
        return model.max_model_len
    limit = getattr(model, "max_model_len", None)
    return limit or context_length(resolve_model(model.path))


def _vocabulary(config: JobConfig) -> int | None:
    model = config.model
    folder = model.tokenizer if isinstance(model, OpenAIConfig) else model.path
    return vocabulary_size(resolve_model(folder)) if folder else None


def template_of(config: ReplicatedConfig | OpenAIConfig) -> ChatTemplate | None:
    """The model's chat template; None for an endpoint that renders messages itself."""
    if isinstance(config, OpenAIConfig):
        return load_template(resolve_model(config.tokenizer)) if config.tokenizer else None
    override = Path(config.chat_template) if config.chat_template else None
    return load_template(resolve_model(config.path), override)


def _policy(job: Job) -> tuple[Policy, Callable[[], Ledger]]:
    model = job.config.model
    template = template_of(model)
    new_ledger = MessageLedger if template is None else partial(TokenLedger, template, _parser(job.config, template))
    if isinstance(model, OpenAIConfig):
        return OpenAIPolicy(model), new_ledger
    from actors.served_policy import ServedPolicy

    return ServedPolicy(job.model, model.replicas, job.config.scheduler.silent_seconds), new_ledger


def _parser(config: JobConfig, template: ChatTemplate) -> Parser:
    if config.model.parser == "hermes":
        return partial(hermes, in_reasoning=template.opens_with_reasoning)
    from actors.vllm_parsers import vllm_parser

    model = config.model
    folder = model.tokenizer or "" if isinstance(model, OpenAIConfig) else model.path
    return vllm_parser(model.parser, resolve_model(folder))
