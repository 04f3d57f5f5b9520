"""What a run tells the outside: every metric by name, and how a driver's counts become them.

Ray's endpoint shows each as `ray_<name>`. All of them come from the driver: what runners report to it are exactly the
rows, so the counters are those of the dataset. They rise when an episode ends, not with its turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rollout.latency import CAUSES, Latencies
from rollout.load import Heard, HostLoad, Load
from rollout.tally import Tally

COMMON_TAGS = ("run", "resource")
"""Tags of every metric: the run's id and its resource."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A counter's name ends in `_total`; `tags` are its own, besides COMMON_TAGS."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    tags: tuple[str, ...] = ()


def _bucket(cause: str) -> str:
    """Its buckets have a metric of their own: Ray's agent holds 2,000 series of a metric (docs/metrics.md)."""
    return f"rollout_{cause}_seconds_bucket_total"


METRICS = (
    Metric("rollout_episodes_total", "counter", "Episodes that ended, by status.", ("status",)),
    Metric("rollout_episode_stops_total", "counter", "Episodes that ended, by stop reason.", ("reason",)),
    Metric("rollout_failures_total", "counter", "Episodes that ended as failed rows, by kind of failure.", ("kind",)),
    Metric(
        "rollout_retries_total", "counter", "Attempts that failed and are made again, by kind of failure.", ("kind",)
    ),
    Metric("rollout_reward_sum", "gauge", "Sum of all rewards; it falls where rewards are negative."),
    Metric("rollout_reward_count", "gauge", "Episodes in that sum."),
    Metric("rollout_turns_total", "counter", "Model calls of the episodes that ended."),
    Metric("rollout_prompt_tokens_total", "counter", "Tokens of all prompts, as the engine counts them."),
    Metric("rollout_cached_prompt_tokens_total", "counter", "Prompt tokens the engine's prefix cache had."),
    Metric("rollout_completion_tokens_total", "counter", "Sampled tokens."),
    Metric("rollout_tool_calls_total", "counter", "Tool calls of the policy."),
    Metric("rollout_tool_errors_total", "counter", "Tool calls whose result is an error."),
    *(
        Metric(_bucket(cause), "counter", f"How often {words} at most `le` seconds.", ("le",))
        for cause, words in CAUSES.items()
    ),
    Metric("rollout_latency_seconds_sum_total", "counter", "Seconds they took altogether, by cause.", ("cause",)),
    Metric("rollout_committed_rows_total", "counter", "Rows that were committed."),
    Metric("rollout_runners", "gauge", "Episode runners at work."),
    Metric("rollout_episodes_in_flight", "gauge", "Episodes being played."),
    Metric("rollout_episodes_asking", "gauge", "Episodes that wait for a person's approval."),
    Metric("rollout_episodes_left", "gauge", "Episodes that have not ended; none where nobody knows how many come."),
    Metric("rollout_rows_unwritten", "gauge", "Episodes that ended and are not committed."),
    Metric("rollout_engine_running", "gauge", "Completions an engine is sampling.", ("replica",)),
    Metric("rollout_engine_waiting", "gauge", "Completions that wait in or before an engine.", ("replica",)),
    Metric("rollout_engine_kv_usage_ratio", "gauge", "Share of an engine's KV cache in use.", ("replica",)),
    Metric("rollout_engine_preemptions_total", "counter", "Completions an engine had to start again.", ("replica",)),
    Metric(
        "rollout_routes_total",
        "counter",
        "Model calls by why they went to their replica: sticks, group, placed, load, lost.",
        ("why",),
    ),
    Metric("rollout_sessions_open", "gauge", "Sessions a resource host holds.", ("host",)),
    Metric("rollout_sessions_expired", "gauge", "Sessions a host closed at the end of their time.", ("host",)),
    Metric("rollout_offload_calls", "gauge", "Verifier calls in a host's processes or before them.", ("host",)),
)


class Sample(NamedTuple):
    """What one metric stands at. For a counter that is all there has been, not what is new."""

    name: str
    tags: tuple[str, ...]
    """Values of the metric's own tags, in their order."""
    value: float


class Risen:
    """Turns what a counter stands at into what it has risen by since it was told last."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}

    def __call__(self, sample: Sample) -> float:
        """How much is new. News that came late, and would have it fall, is none: 0."""
        key = (sample.name, sample.tags)
        more = sample.value - self._told.get(key, 0.0)
        if more <= 0:
            return 0.0
        self._told[key] = sample.value
        return more


@dataclass(frozen=True, slots=True)
class Now:
    """Where a run stands, besides what is counted."""

    runners: int
    in_flight: int
    unwritten: int
    left: int | None
    asking: int = 0


@dataclass(slots=True)
class Meters:
    """What a driver gathers besides its tally. It grows with replicas and hosts, not with episodes."""

    latencies: Latencies = field(default_factory=Latencies)
    retries: Counter[str] = field(default_factory=Counter[str])
    """Attempts that failed and are made again, by the kind of their failure."""
    routes: Counter[str] = field(default_factory=Counter[str])
    """Model calls by why they went to the replica they went to (`rollout.serving.routing.Why`)."""
    committed: int = 0
    """Rows."""
    loads: Heard[Load] = field(default_factory=Heard[Load])
    hosts: Heard[HostLoad] = field(default_factory=lambda: Heard[HostLoad](float("inf")))
    """Hosts are heard of only when something is asked of them; until then what they said holds."""

    def samples(self, tally: Tally, at: Now, now: float) -> Iterator[Sample]:
        """Everything there is to tell."""
        yield from _of_tally(tally)
        for kind, count in self.retries.items():
            yield Sample("rollout_retries_total", (kind,), count)
        for why, count in self.routes.items():
            yield Sample("rollout_routes_total", (why,), count)
        for cause, bound, count in self.latencies.at_most():
            yield Sample(_bucket(cause), (bound,), count)
        for cause, seconds in self.latencies.sums():
            yield Sample("rollout_latency_seconds_sum_total", (cause,), seconds)
        yield Sample("rollout_committed_rows_total", (), self.committed)
        yield Sample("rollout_runners", (), at.runners)
        yield Sample("rollout_episodes_in_flight", (), at.in_flight)
        yield Sample("rollout_episodes_asking", (), at.asking)
        yield Sample("rollout_rows_unwritten", (), at.unwritten)
        if at.left is not None:
            yield Sample("rollout_episodes_left", (), at.left)
        yield from _of_engines(self.loads.fresh(now))
        yield from _of_hosts(self.hosts.fresh(now))


def _of_tally(tally: Tally) -> Iterator[Sample]:
    for name, counts in (("episodes", tally.statuses), ("episode_stops", tally.stops), ("failures", tally.failures)):
        for key, count in counts.items():
            yield Sample(f"rollout_{name}_total", (key,), count)
    yield Sample("rollout_reward_sum", (), tally.rewards)
    yield Sample("rollout_reward_count", (), tally.scored)
    yield Sample("rollout_turns_total", (), tally.turns)
    yield Sample("rollout_prompt_tokens_total", (), tally.prompt_tokens)
    yield Sample("rollout_cached_prompt_tokens_total", (), tally.cached_tokens)
    yield Sample("rollout_completion_tokens_total", (), tally.completion_tokens)
    yield Sample("rollout_tool_calls_total", (), tally.tool_calls)
    yield Sample("rollout_tool_errors_total", (), tally.tool_errors)


def _of_engines(loads: Mapping[str, Load]) -> Iterator[Sample]:
    for replica, load in loads.items():
        yield Sample("rollout_engine_running", (replica,), load.running)
        yield Sample("rollout_engine_waiting", (replica,), load.waiting)
        yield Sample("rollout_engine_kv_usage_ratio", (replica,), load.kv_usage)
        yield Sample("rollout_engine_preemptions_total", (replica,), load.preemptions)


def _of_hosts(hosts: Mapping[str, HostLoad]) -> Iterator[Sample]:
    for host, load in hosts.items():
        yield Sample("rollout_sessions_open", (host,), load.open)
        yield Sample("rollout_sessions_expired", (host,), load.expired)
        yield Sample("rollout_offload_calls", (host,), load.offloaded)
