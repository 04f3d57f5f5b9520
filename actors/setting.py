"""What a runner needs to play episodes, from the job's configuration and the handles of what was started for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.courier import Courier
from actors.mend import host_part
from actors.rates import SharedLimiter
from actors.resource_host import HostedSessions, Offer
from actors.served_policy import ServedPolicy
from rollout.agents.approval_queue import REQUESTS
from rollout.agents.aside import Model
from rollout.agents.loading import Around, Loaded, is_plain, load_agent
from rollout.agents.loading import located as located_agent
from rollout.agents.parts import Budget
from rollout.agents.pricing import Prices
from rollout.agents.retry import RetryConfig, RetryingPolicy
from rollout.conduct import Conduct, plain, plain_early
from rollout.config import JobConfig, OpenAIConfig, ReplicatedConfig, ResourceConfig
from rollout.episode import Setting
from rollout.latency import Latencies
from rollout.load import HostLoad, Load
from rollout.openai_policy import OpenAIPolicy
from rollout.parking import Parking
from rollout.parsing import FORMATS
from rollout.protocols import Ledger, Policy
from rollout.segments import Parser, reading
from rollout.serving.routing import Router
from rollout.storage import inside
from rollout.stream_reading import MessageReader, token_reader
from rollout.streaming import Reader
from rollout.template import ChatTemplate, context_length, load_template, resolve_model, vocabulary_size
from rollout.tokens import MessageLedger, TokenLedger
from rollout.trajectory import Agent, Completion, Lease, ToolSpec, Turn
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
    rates: Any = None
    """The actor that keeps the rate limits; None where there are none."""

    @property
    def requests(self) -> str:
        """The folder where calls wait for a person's approval."""
        return inside(self.table.rpartition("/")[0], REQUESTS)

    @property
    def turns(self) -> Path | None:
        """Where finished turns are kept; None when they are not, nor beside a table in an object store: those cannot
        append."""
        kept = self.config.run.keep_turns and "://" not in self.table
        return Path(self.table).with_name("turns") if kept else None


async def build_settings(job: Job, owner: str, parking: Parking | None = None) -> dict[str, Setting]:
    """Policy, sessions and ledger for the episodes of each environment, by its name; they share the policy.

    `owner` is the name that hosts know the runner by, `parking` where its episodes wait for people. Raises UserError
    for a model folder or template that cannot be used.
    """
    template = template_of(job.config.model)
    policy = _policy(job)
    loaded = await _agent(job, template, policy, parking or Parking())
    if template is not None and loaded is not None:
        template = template.using(loaded.parts.variables)
    new_ledger = _new_ledger(job.config, template)
    settings = {name: _setting(job, name, owner, policy, new_ledger, loaded) for name in job.hosts}
    new_reader = _new_reader(job.config, template)
    return {name: replace(setting, new_reader=new_reader) for name, setting in settings.items()}


async def _agent(job: Job, template: ChatTemplate | None, policy: Policy, parking: Parking) -> Loaded | None:
    """What the agent is told beside instructions and tools; None when that is nothing."""
    config = job.config
    if is_plain(config.agent) or config.agent.external is not None:
        return None
    sampling = config.model.sampling.value()
    budget = budget_of(config, job.names.model)
    context, new_ledger = context_of(config), _new_ledger(config, template)
    model = Model(policy, new_ledger, job.names.model, template is not None, context, _priced_alone(budget))
    seconds = config.run.limits.value().tool_seconds
    around = Around(sampling, context, budget, job.requests, template, model, parking, seconds)
    return await load_agent(config.agent, around)


def budget_of(config: JobConfig, model: str) -> Budget:
    """Prices of the job and what an episode may cost. Raises UserError for a limit on a model without a price."""
    prices = Prices.of(config.pricing)
    for key, limit in (("cost.episode_usd", config.cost.episode_usd), ("cost.job_usd", config.cost.job_usd)):
        if limit is not None:
            prices.require(model, key)
    return Budget(prices, model, config.cost.episode_usd)


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
        # Nobody could go on behind turns that do not tell all that was done: see `Parts.goes_on`.
        restores=hosts.offer.restores if loaded is None or loaded.goes_on else None,
        vocabulary=vocabulary_of(config),
        conduct=_plain(config) if loaded is None else loaded.conduct,
        patience=0.0 if loaded is None else loaded.parts.patience * config.limits.max_turns,
        closes=None if loaded is None else loaded.close,
        priced=_priced(budget_of(config, job.names.model)),
    )


def _plain(config: JobConfig) -> Callable[[Agent, Lease], Conduct]:
    """How an agent with instructions and tools goes about an episode."""
    return partial(plain_early, config.limits.tool_seconds) if config.agent.streaming_tools else plain


def _new_reader(config: JobConfig, template: ChatTemplate | None) -> Callable[[int, Sequence[ToolSpec]], Reader]:
    """What reads a turn while it is sampled; vLLM's parsers read it at its end."""
    if template is None:
        return MessageReader
    form = FORMATS.get(config.model.parser)
    machine = None if form is None else partial(form.open, in_reasoning=template.opens_with_reasoning)
    return partial(token_reader, template, machine)


def heard(
    setting: Setting, loads: dict[str, Load], hosts: dict[str, HostLoad], latencies: Latencies, routes: Counter[str]
) -> None:
    """Adds what replicas and hosts told of themselves since this was asked last, how long sessions took to open, and
    why model calls went where they went."""
    if isinstance(policy := _engine_of(setting), ServedPolicy):
        loads.update(policy.loads())
        routes.update(policy.take_routed())
    if isinstance(setting.sessions, HostedSessions):
        hosts.update(setting.sessions.loads())
        latencies.add(setting.sessions.take_latencies())


def _engine_of(setting: Setting) -> Policy:
    """What answers in the end, whatever tries again before it."""
    return setting.policy.policy if isinstance(setting.policy, RetryingPolicy) else setting.policy


def _priced_alone(budget: Budget) -> Callable[[Completion], float | None]:
    """What a model call that is no turn costs; None for a model without a price."""
    if budget.prices.price(budget.model) is None:
        return lambda completion: None
    return lambda completion: budget.prices.usage(budget.model, completion).usd


def _priced(budget: Budget) -> Callable[[Sequence[Turn]], float | None] | None:
    """What turns cost; None for a model without a price."""
    return None if budget.prices.price(budget.model) is None else lambda turns: budget.used(turns).usd


async def close_settings(settings: Mapping[str, Setting]) -> None:
    """Closes the connections that settings of one job hold; they can play nothing afterwards."""
    for setting in settings.values():
        if isinstance(policy := _engine_of(setting), OpenAIPolicy):
            await policy.aclose()
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
            "agent": located_agent(config.agent),
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


def _new_ledger(config: JobConfig, template: ChatTemplate | None) -> Callable[[], Ledger]:
    return MessageLedger if template is None else partial(TokenLedger, template, parser_of(config, template))


def _policy(job: Job) -> Policy:
    retry = job.config.agent.retry
    if retry is None and job.rates is None:
        return _engine(job)
    limiter = None if job.rates is None else SharedLimiter(job.rates, job.config.rate_limits)
    return RetryingPolicy(_engine(job, retries=0), job.names.model, retry or RetryConfig(), limiter)


def _engine(job: Job, retries: int | None = None) -> Policy:
    """What samples; `retries` 0 where another part tries again."""
    model = job.config.model
    if isinstance(model, OpenAIConfig):
        return OpenAIPolicy(model if retries is None else model.model_copy(update={"retries": retries}))
    router = Router(model.routing)
    return ServedPolicy(job.model, model.replicas, job.config.scheduler.silent_seconds, router)


def parser_of(config: JobConfig, template: ChatTemplate) -> Parser:
    """What reads a completion's text, as the job names it."""
    if (form := FORMATS.get(config.model.parser)) is not None:
        return reading(form, in_reasoning=template.opens_with_reasoning)
    from actors.vllm_parsers import vllm_parser

    model = config.model
    folder = model.tokenizer or "" if isinstance(model, OpenAIConfig) else model.path
    return vllm_parser(model.parser, resolve_model(folder))
