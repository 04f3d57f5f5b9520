"""The sections of a job's configuration: what a conf may say, each key with its default and one sentence.

Functions elsewhere take values, not this tree. Secrets are named, never held: a key field ends in `_env` and holds
the name of an environment variable.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from rollout.trajectory import Limits, Sampling

PathText = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]
"""A path as it is typed: shells leave the ~ of key=~/path alone."""


WHOLE = "whole"
"""Type of an error that is about several sections: its message names the key itself."""


class Section(BaseModel):
    """Base of every section: frozen, and strict about its keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        use_attribute_docstrings=True,
    )


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

    dir: PathText
    """Folder of the run: run.yaml and the dataset."""
    seed: int = 0
    """Everything drawn at random on our side follows from it."""
    samples_per_task: PositiveInt = 1
    """Episodes a task: a group."""
    over_sample: Annotated[int, Field(ge=0)] = 0
    """Further episodes a task: when samples_per_task of them have ended well, the rest is dropped as stragglers."""
    limits: LimitsConfig = LimitsConfig()
    keep_turns: bool = True
    """Writes finished turns down, so that episodes whose runner or driver dies go on where they were."""

    @property
    def group_size(self) -> int:
        """Episodes that are scheduled for a task: so many rows it gets."""
        return self.samples_per_task + self.over_sample


class TasksConfig(Section):
    """Where tasks come from: a file, or the resource's own generator when no path is given."""

    path: PathText | None = None
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


class ModelConfig(Section):
    """What every engine has."""

    sampling: SamplingConfig = SamplingConfig()
    parser: str = "hermes"
    """How reasoning and tool calls are read from text: a name in docs/parsing.md, or
    `vllm:TOOL_PARSER[+REASONING_PARSER]`."""


class RoutingConfig(Section):
    """Which replica a model call goes to: when load wins over the cache."""

    crowded: Annotated[float, Field(ge=1)] = 1.25
    """A session moves when its replica has more calls at work than this times the mean,"""
    slack: Annotated[int, Field(ge=0)] = 2
    """and so many more:"""
    kv_usage: Annotated[float, Field(gt=0, le=1)] = 0.95
    """or when the KV cache of its replica is used so far while calls wait for it."""
    uneven: Annotated[int, Field(ge=0)] = 2
    """A session that begins goes where it belongs as long as that replica has at most so many more than the mean of
    sessions."""
    max_sessions: PositiveInt = 100_000
    """Sessions, and groups, that are remembered; those that were silent longest are forgotten first."""
    idle_seconds: PositiveFloat = 600.0
    """A session that was silent so long is forgotten."""


class ReplicatedConfig(ModelConfig):
    """Engines that run in replicas on Ray Serve and speak tokens."""

    path: PathText = "bundled"
    """Folder with weights, tokenizer.json and chat template, a hub name, or `bundled`."""
    chat_template: PathText | None = None
    """File that replaces the model's own chat template."""
    replicas: PositiveInt = 1
    cpus_per_replica: Annotated[float, Field(ge=0)] = 1.0
    """CPUs Ray sets aside for each worker of a replica."""
    max_in_flight: PositiveInt = 256
    """Completions one replica works on at once; more wait in its queue."""
    drain_seconds: PositiveFloat = 30.0
    """How long a replica that is told to stop may finish what it has."""
    priority_seconds: Annotated[float, Field(ge=0)] = 10.0
    """Where calls wait for a place, each later turn counts as so many seconds of waiting: episodes that have begun end
    before others begin. 0 takes them as they come."""
    routing: RoutingConfig = RoutingConfig()


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
    """Memory for the KV cache on a CPU, 1 when not given; on GPUs vLLM takes its share of theirs."""
    start_seconds: PositiveFloat = 900.0
    """How long a replica may load and warm up."""
    engine_args: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Passed to vLLM's AsyncEngineArgs as they are."""


class ScriptedConfig(ReplicatedConfig):
    """A stand-in that says fixed lines, through the same replicas, tokens and queues."""

    engine: Literal["scripted"]
    turns: Annotated[tuple[str, ...], Field(min_length=1)]
    """What it says in turn 0, 1, ...; the last one repeats."""
    max_model_len: PositiveInt | None = None
    """How far it is said to reach, which is all the same to it; as far as the model at `path` when not given."""
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
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds the key."""
    tokenizer: PathText | None = None
    """Folder or hub name of the model's tokenizer: prompts are then sent as token ids to /completions (vLLM)."""
    max_model_len: PositiveInt | None = None
    connections: PositiveInt | None = None
    """A runner's connections to the server at most; as many as it has turns in flight when not given."""
    retries: Annotated[int, Field(ge=0)] = 4
    """Further tries after a refused connection, 408, 409, 429 or 5xx, within the turn's deadline."""
    extra_body: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Merged into every request."""


AnyModelConfig = Annotated[VllmConfig | ScriptedConfig | OpenAIConfig, Field(discriminator="engine")]


class ResourceConfig(Section):
    """An environment."""

    name: str
    """A shipped resource, `module:Class` or `file.py:Class`."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of the resource."""
    hosts: PositiveInt = 1
    """Actors that hold its sessions."""
    max_sessions: PositiveInt | None = None
    """Sessions a host may hold, and so with `hosts` how many of its episodes are in flight at most; the resource's own
    number when not given."""
    cpus_per_host: Annotated[float, Field(ge=0)] = 0.1
    verifier_processes: PositiveInt = 1
    """Processes a host keeps for work off its event loop."""


class MixedResourceConfig(ResourceConfig):
    """One of several environments of a job."""

    tasks: TasksConfig = TasksConfig()
    weight: PositiveFloat = 1.0
    """Its share of what is in flight, against the weights of the others."""


ResourceName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
"""What a job with several environments calls one of them."""


class SchedulerConfig(Section):
    """How much runs at once, and how often it is tried."""

    in_flight: PositiveInt = 256
    """Episodes at once over all runners, at most."""
    adaptive: bool = True
    """Fewer at once while an engine's KV cache is too full."""
    least_in_flight: PositiveInt = 1
    """Never fewer than this."""
    parked_max: Annotated[int, Field(ge=0)] = 10_000
    """Episodes that may wait for a person beside those in flight; more keep their places until some are answered."""
    history: PathText | None = None
    """A run whose episodes tell how long each task takes: the longest of those read ahead then start first."""
    runners: PositiveInt = 1
    """Actors that run episodes."""
    cpus_per_runner: Annotated[float, Field(ge=0)] = 0.1
    max_attempts: PositiveInt = 3
    """Tries a sample gets when something outside the policy breaks, after a pause that doubles from 1 s up to 60 s."""
    start_seconds: PositiveFloat = 120.0
    """How long the cluster may take to give what the job asks for."""
    silent_seconds: PositiveFloat = 30.0
    """How long a runner, host or replica may owe a sign of life before what it was asked is given up; a host or replica
    is replaced after twice as long."""
    stuck_seconds: PositiveFloat | None = None
    """The run stops, to be resumed, when no turn and no episode has ended well for so long; the longest limit of a
    single call times max_attempts + 1 when not given."""


class DatasetConfig(Section):
    """How rows reach the dataset."""

    commit_rows: PositiveInt = 256
    """A runner writes a file when it has so many rows,"""
    commit_seconds: PositiveFloat = 5.0
    """or when its oldest row is so old,"""
    commit_mib: PositiveInt = 32
    """or when its rows take about so much memory; with four times as much unwritten it is given no more episodes."""
    compact_files: Annotated[int, Field(ge=0)] = 32
    """So many small files in a row are made one while the run goes on; 0 leaves them."""
    file_mib: PositiveInt = 128
    """A file of this size is large: it is not rewritten any more."""
    keep_hours: Annotated[int, Field(ge=0)] = 2
    """How long replaced files stay for whoever opened the table before; increments by version reach back as far."""


class LogsConfig(Section):
    """What runners, hosts and replicas write to Ray's log files; every line of an episode has its ids."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is written; debug adds a line a turn, of this package's own code only."""
    format: Literal["text", "json"] = "text"
    """Lines for people, or for programs."""
