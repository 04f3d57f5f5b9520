"""A job's configuration: one YAML, composed by OmegaConf, validated once by pydantic, frozen ever after.

Unknown keys are refused with the nearest known one. Functions elsewhere take values, not this tree.
Secrets are named, never held: a key field ends in `_env` and holds the name of an environment variable.
"""

from __future__ import annotations

import difflib
import os
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from rollout.errors import UserError, nearest
from rollout.trajectory import Agent, Limits, Sampling

PACKAGED = Path(__file__).parent / "conf"
"""Example jobs inside an installed wheel."""
CHECKOUT = Path(__file__).parent.parent / "conf"
"""The same jobs in a checkout."""


class Section(BaseModel):
    """Base of every section: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LimitsConfig(Section):
    """Bounds of an episode."""

    max_turns: PositiveInt = 16
    """Model calls in an episode; 1 is a single-turn job."""
    max_tokens: PositiveInt = 8192
    """Sampled tokens in an episode."""
    turn_tokens: PositiveInt = 1024
    """Sampled tokens in a turn."""
    turn_seconds: PositiveFloat = 300.0
    """One model call."""
    tool_seconds: PositiveFloat = 60.0
    """One tool call."""
    episode_seconds: PositiveFloat = 1800.0
    """A whole episode, scoring included."""
    seed_seconds: PositiveFloat = 60.0
    """Opening a session."""
    verify_seconds: PositiveFloat = 60.0
    """Scoring; kept back from episode_seconds."""
    close_seconds: PositiveFloat = 10.0
    """Closing a session."""

    def value(self) -> Limits:
        """As the episode loop takes it."""
        return Limits(**self.model_dump())


class RunConfig(Section):
    """What is run and where it is kept."""

    dir: str
    """Folder of the run: run.yaml and the dataset."""
    seed: int = 0
    """Everything drawn at random on our side follows from it."""
    samples_per_task: PositiveInt = 1
    """Episodes a task: a group."""
    limits: LimitsConfig = LimitsConfig()


class TasksConfig(Section):
    """Where tasks come from: a file, or the resource's own generator when no path is given."""

    path: str | None = None
    """JSONL or Parquet with id, prompt or messages, and data."""
    count: PositiveInt | None = None
    """Take only the first so many; needed when a generator is endless."""


class SamplingConfig(Section):
    """How tokens are drawn."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 keeps all."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, besides the model's own end of turn."""

    def value(self) -> Sampling:
        """As the engine takes it."""
        return Sampling(**self.model_dump())


class AgentConfig(Section):
    """How the policy is set to work."""

    name: str = "agent"
    instructions: str | None = None
    """System message; the resource's own when not given."""
    tools: tuple[str, ...] | None = None
    """Which of the resource's tools it gets; all when not given."""

    def value(self, sampling: Sampling) -> Agent:
        """As the episode loop takes it."""
        return Agent(self.name, self.instructions, self.tools, sampling)


class ModelConfig(Section):
    """What every engine has."""

    sampling: SamplingConfig = SamplingConfig()
    parser: str = "hermes"
    """How reasoning and tool calls are read from text: `hermes`, or `vllm:TOOL_PARSER[+REASONING_PARSER]`."""


class ReplicatedConfig(ModelConfig):
    """Engines that run in replicas on Ray Serve and speak tokens."""

    path: str = "bundled"
    """Folder with weights, tokenizer.json and chat template, a hub name, or `bundled`."""
    chat_template: str | None = None
    """File that replaces the model's own chat template."""
    replicas: PositiveInt = 1
    cpus_per_replica: Annotated[float, Field(ge=0)] = 1.0
    """CPUs Ray sets aside for each worker of a replica."""
    max_in_flight: PositiveInt = 256
    """Completions one replica works on at once; more wait in its queue."""
    drain_seconds: PositiveFloat = 30.0
    """How long a replica that is told to stop may finish what it has."""


class VllmConfig(ReplicatedConfig):
    """vLLM's AsyncLLM inside each replica."""

    engine: Literal["vllm"] = "vllm"
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each worker of a replica: 1 on GPU nodes, 0 for vLLM on the CPU."""
    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    max_model_len: PositiveInt | None = None
    """Context length; the model's own when not given."""
    dtype: str = "bfloat16"
    kv_cache_gib: PositiveFloat | None = None
    """Memory for the KV cache on a CPU."""
    start_seconds: PositiveFloat = 900.0
    """How long a replica may load and warm up."""
    engine_args: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Passed to vLLM's AsyncEngineArgs as they are."""


class ScriptedConfig(ReplicatedConfig):
    """A stand-in that says fixed lines, through the same replicas, tokens and queues."""

    engine: Literal["scripted"]
    turns: tuple[str, ...]
    """What it says in turn 0, 1, ...; the last one repeats."""
    latency_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Mean time a completion takes."""
    latency_spread: Annotated[float, Field(ge=0)] = 0.0
    """Sigma of a log-normal around it; 0 makes it constant."""


class OpenAIConfig(ModelConfig):
    """Any OpenAI-compatible endpoint."""

    engine: Literal["openai"]
    base_url: str
    """Up to and including /v1."""
    name: str
    """The model as the server calls it."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    tokenizer: str | None = None
    """Folder or hub name of the model's tokenizer: prompts are then sent as token ids to /completions (vLLM)."""
    max_model_len: PositiveInt | None = None
    connections: PositiveInt = 4096
    retries: Annotated[int, Field(ge=0)] = 4
    """Further tries after a refused connection, 408, 409, 429 or 5xx, within the turn's deadline."""
    extra_body: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Merged into every request."""


AnyModelConfig = Annotated[VllmConfig | ScriptedConfig | OpenAIConfig, Field(discriminator="engine")]


class ResourceConfig(Section):
    """The environment."""

    name: str
    """A shipped resource, `module:Class` or `file.py:Class`."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of the resource."""
    hosts: PositiveInt = 1
    """Actors that hold its sessions."""
    cpus_per_host: Annotated[float, Field(ge=0)] = 0.1
    verifier_processes: PositiveInt = 1
    """Processes a host keeps for work off its event loop."""


class SchedulerConfig(Section):
    """How much runs at once, and how often it is tried."""

    in_flight: PositiveInt = 256
    """Episodes at once over all runners."""
    runners: PositiveInt = 1
    """Actors that run episodes."""
    cpus_per_runner: Annotated[float, Field(ge=0)] = 0.1
    max_attempts: PositiveInt = 3
    """Tries a sample gets when something outside the policy breaks."""
    start_seconds: PositiveFloat = 120.0
    """How long the cluster may take to give what the job asks for."""


class DatasetConfig(Section):
    """How rows reach the dataset."""

    commit_rows: PositiveInt = 256
    """A runner writes a file when it has so many rows,"""
    commit_seconds: PositiveFloat = 5.0
    """or when its oldest row is so old."""


class JobConfig(Section):
    """One job."""

    run: RunConfig
    tasks: TasksConfig = TasksConfig()
    agent: AgentConfig = AgentConfig()
    model: AnyModelConfig
    resource: ResourceConfig
    scheduler: SchedulerConfig = SchedulerConfig()
    dataset: DatasetConfig = DatasetConfig()


def find_conf(name: str) -> Path:
    """The file `name` stands for: a path, or the name of an example job. Raises UserError with the nearest one."""
    path = Path(name)
    if path.is_file():
        return path
    folder = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    if (example := folder / path.name).is_file() or (example := folder / f"{path.name}.yaml").is_file():
        return example
    beside = [str(file) for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    examples = [file.name for file in folder.glob("*.yaml")]
    raise UserError(f"{name}: no such file{nearest(name, [*beside, *examples])}")


def load(path: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Composes `path` with its defaults and `key=value` overrides and validates the whole.

    Raises UserError with one line naming file, key, what was expected and the nearest known name.
    """
    try:
        merged = OmegaConf.merge(_compose(path, ()), _dotlist(overrides))
        raw = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key or 'interpolation'}: {str(error).splitlines()[0]}") from error
    return validate(raw, str(path))


def validate(raw: Any, origin: str) -> JobConfig:
    """A plain tree as a JobConfig; `origin` is named in the UserError."""
    if isinstance(raw, dict) and isinstance(model := cast(dict[str, Any], raw).get("model"), dict):
        cast(dict[str, Any], model).setdefault("engine", "vllm")
    try:
        return JobConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error.errors(include_url=False)[0])}") from None


def dump(config: JobConfig) -> str:
    """The resolved configuration as YAML, as it is kept with the run."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _compose(path: Path, above: tuple[Path, ...]) -> DictConfig:
    """`path` on top of the files its `defaults` list names, relative to it."""
    if path.resolve() in above:
        raise UserError(f"{path}: defaults: it includes itself")
    if not path.is_file():
        by = f", named by {above[-1].name}" if above else ""
        raise UserError(f"{path}: no such file{by}")
    try:
        own = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if isinstance(own, ListConfig):
        raise UserError(f"{path}: expected sections (run, model, resource, ...), found a list")
    if "defaults" not in own:
        return own
    names = cast(list[str], OmegaConf.to_container(cast(DictConfig, own.pop("defaults"))))
    parts = [_compose(path.parent / name, (*above, path.resolve())) for name in names]
    return cast(DictConfig, OmegaConf.merge(*parts, own))


def _dotlist(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise UserError(f"{override}: expected key=value, like model.replicas=2")
    return OmegaConf.from_dotlist(list(overrides))


def _explain(error: ErrorDetails) -> str:
    """One validation error as `key: what was expected`."""
    place = _without_tag(error["loc"])
    key = ".".join(str(part) for part in place)
    if error["type"] == "extra_forbidden":
        siblings = _keys_at(place[:-1], cast(dict[str, Any], error).get("loc", ()))
        close = difflib.get_close_matches(str(place[-1]), siblings, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(siblings)}"
        return f"{key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{key}: missing; a value is needed"
    given = error.get("input")
    shown = "" if isinstance(given, dict | list) else f", found {given!r}"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}"


def _without_tag(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """pydantic puts the discriminator's value into the place: model.vllm.replicas."""
    if len(place) > 1 and place[0] == "model" and place[1] in ("vllm", "scripted", "openai"):
        return ("model", *place[2:])
    return place


def _keys_at(place: Sequence[int | str], full: Sequence[int | str]) -> list[str]:
    """Known keys of the section at `place`."""
    models: list[type[BaseModel]] = [JobConfig]
    for part in place:
        models = [
            inner
            for model in models
            for name, info in model.model_fields.items()
            if name == part
            for inner in _models_in(info.annotation)
        ]
    tag = full[1] if len(full) > 1 and full[0] == "model" else None
    tagged = [model for model in models if "engine" in model.model_fields and tag in _literals(model)]
    return sorted({name for model in (tagged or models) for name in model.model_fields})


def _literals(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["engine"].annotation)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for inner in get_args(annotation):
            yield from _models_in(inner)


def secret(name_of_variable: str | None) -> str | None:
    """The value of the environment variable a `*_env` key names. Raises UserError when it is not set."""
    if name_of_variable is None:
        return None
    value = os.environ.get(name_of_variable)
    if not value:
        raise UserError(f"model.api_key_env: the environment variable {name_of_variable} is not set")
    return value
