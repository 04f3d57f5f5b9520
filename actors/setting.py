"""What a runner needs to play episodes, from the job's configuration and the handles of what was started for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.courier import Courier
from actors.mend import host_part
from actors.resource_host import HostedSessions, Offer
from actors.served_policy import ServedPolicy
from rollout.agents.loading import Around, Loaded, is_plain, load_agent
from rollout.conduct import plain
from rollout.config import JobConfig, OpenAIConfig, ReplicatedConfig, ResourceConfig
from rollout.episode import Setting
from rollout.latency import Latencies
from rollout.load import HostLoad, Load
from rollout.openai_policy import OpenAIPolicy
from rollout.protocols import Ledger, Policy
from rollout.segments import Parser, hermes
from rollout.template import ChatTemplate, context_length, load_template, resolve_model, vocabulary_size
from rollout.tokens import MessageLedger, TokenLedger
from rollout.waits import HERE


@dataclass(frozen=True, slots=True)
class Names:
    """What rows call what played them: as the configuration names it."""

    resources: Mapping[str, str]
    """References of the environments by name."""
    agent: str
    model: str

    @staticmethod
    def of(config: JobConfig) -> Names:
        """The names of a job."""
        model = config.model
        named = (
            model.name if isinstance(model, OpenAIConfig) else "scripted" if model.engine == "scripted" else model.path
        )
        resources = {name: environment.name for name, environment in config.environments.items()}
        return Names(resources, config.agent.name, named)


@dataclass(frozen=True, slots=True)
class Hosts:
    """The actors that hold the sessions of one environment, and what they offer."""

    handles: tuple[Any, ...]
    offer: Offer
    first: int = 0
    """Number of the first of them among all hosts of the job."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run as its runners see it. Hosts and `model` are handles of the cluster's own kind."""

    config: JobConfig
    """Its paths are absolute: see `located`."""
    names: Names
    run_id: str
    table: str
    hosts: Mapping[str, Hosts]
    """By the name of the environment."""
    model: Any = None
    """Handle of the model's deployment; None for an endpoint elsewhere."""

    @property
    def turns(self) -> Path | None:
        """Where finished turns are kept; None when they are not, nor beside a table in an object store: those cannot
        append."""
        kept = self.config.run.keep_turns and "://" not in self.table
        return Path(self.table).with_name("turns") if kept else None


async def build_settings(job: Job, owner: str) -> dict[str, Setting]:
    """Policy, sessions and ledger for the episodes of each environment, by its name; they share the policy.

    `owner` is the name that hosts know the runner by. Raises UserError for a model folder or template that cannot be
    used.
    """
    policy, new_ledger = _policy(job)
    loaded = await _agent(job)
    return {name: _setting(job, name, owner, policy, new_ledger, loaded) for name in job.hosts}


async def _agent(job: Job) -> Loaded | None:
    """What the agent is told beside instructions and tools; None when that is nothing."""
    config = job.config
    if is_plain(config.agent):
        return None
    sampling = config.model.sampling.value()
    return await load_agent(config.agent, Around(sampling, context_of(config), job.names.model))


def _setting(
    job: Job, name: str, owner: str, policy: Policy, new_ledger: Callable[[], Ledger], loaded: Loaded | None
) -> Setting:
    config, hosts = job.config, job.hosts[name]
    parts = [(host_part(number), host.exchange.remote) for number, host in enumerate(hosts.handles, hosts.first)]
    silent = config.scheduler.silent_seconds
    couriers = [Courier(HERE.heard_by(part, exchange), part, silent_seconds=silent) for part, exchange in parts]
    return Setting(
        agent=config.agent.value(config.model.sampling.value()) if loaded is None else loaded.parts.agent,
        policy=policy,
        sessions=HostedSessions(couriers, hosts.offer, owner),
        limits=config.limits,
        new_ledger=new_ledger,
        resource=job.names.resources[name],
        model=job.names.model,
        context=context_of(config),
        # What hooks, guardrails and memories did is not kept with a turn, so nobody could go on behind it.
        restores=hosts.offer.restores if loaded is None else None,
        vocabulary=vocabulary_of(config),
        conduct=plain if loaded is None else loaded.conduct,
        closes=None if loaded is None else loaded.close,
    )


def heard(setting: Setting, loads: dict[str, Load], hosts: dict[str, HostLoad], latencies: Latencies) -> None:
    """Adds what replicas and hosts told of themselves since this was asked last, and how long sessions took to open."""
    if isinstance(setting.policy, ServedPolicy):
        loads.update(setting.policy.loads())
    if isinstance(setting.sessions, HostedSessions):
        hosts.update(setting.sessions.loads())
        latencies.add(setting.sessions.take_latencies())


async def close_settings(settings: Mapping[str, Setting]) -> None:
    """Closes the connections that settings of one job hold; they can play nothing afterwards."""
    for setting in settings.values():
        if isinstance(setting.policy, OpenAIPolicy):
            await setting.policy.aclose()
        if setting.closes is not None:
            await setting.closes()


def located(config: JobConfig) -> JobConfig:
    """The job with its paths made absolute: actors do not work in the folder it was started in."""
    model = config.model
    keys = ("tokenizer",) if isinstance(model, OpenAIConfig) else ("path", "chat_template")
    several = config.resources or {}
    return config.model_copy(
        update={
            "model": model.model_copy(update={key: _absolute(path) for key in keys if (path := getattr(model, key))}),
            "resource": _found(config.resource) if config.resource is not None else None,
            "resources": {name: _found(resource) for name, resource in several.items()} or None,
        }
    )


def _found(resource: ResourceConfig) -> ResourceConfig:
    file, colon, name = resource.name.partition(":")
    return resource.model_copy(update={"name": _absolute(file) + colon + name}) if file.endswith(".py") else resource


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


def vocabulary_of(config: JobConfig) -> int | None:
    """Token ids of the model; None when nobody knows."""
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
    new_ledger = MessageLedger if template is None else partial(TokenLedger, template, parser_of(job.config, template))
    if isinstance(model, OpenAIConfig):
        return OpenAIPolicy(model), new_ledger
    return ServedPolicy(job.model, model.replicas, job.config.scheduler.silent_seconds), new_ledger


def parser_of(config: JobConfig, template: ChatTemplate) -> Parser:
    """What reads a completion's text, as the job names it."""
    if config.model.parser == "hermes":
        return partial(hermes, in_reasoning=template.opens_with_reasoning)
    from actors.vllm_parsers import vllm_parser

    model = config.model
    folder = model.tokenizer or "" if isinstance(model, OpenAIConfig) else model.path
    return vllm_parser(model.parser, resolve_model(folder))
