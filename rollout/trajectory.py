"""The nouns: what an episode is given, what it does and what is kept of it.

Everything here is a frozen value. Change is `dataclasses.replace`; whatever can be derived is a property and is
never stored. Nothing here knows about files, networks, Ray or any tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from rollout.turn import (
    Attempt,
    Completion,
    Event,
    Extras,
    FinishReason,
    Json,
    Message,
    Prompt,
    Sampling,
    Segment,
    ToolCall,
    ToolResult,
    ToolSpec,
    ToolUse,
    Turn,
    VersionSpan,
)

__all__ = [
    "Agent",
    "Attempt",
    "Completion",
    "Event",
    "Extras",
    "Failure",
    "FailureKind",
    "FinishReason",
    "Json",
    "Lease",
    "Limits",
    "Message",
    "Prompt",
    "Rescores",
    "Restores",
    "Sampling",
    "Score",
    "Seconds",
    "Segment",
    "Status",
    "StopReason",
    "Task",
    "ToolCall",
    "ToolResult",
    "ToolSpec",
    "ToolUse",
    "Trajectory",
    "Transcript",
    "Turn",
    "VersionSpan",
]


Restores = Literal["replay", "snapshot"]
"""How the session of an episode that was broken off is restored: see `Resource.restores`."""
Rescores = Literal["transcript", "replay"]
"""What a finished episode is judged by again: see `Resource.rescores`."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to be solved. `data` is for tools and verifiers; the policy sees only `messages`."""

    id: str
    messages: tuple[Message, ...]
    data: Mapping[str, Json] = field(default_factory=dict[str, Json])
    index: int = 0
    """Position in the task source: with the sample index it names an episode for ever."""
    resource: str = ""
    """Name of the environment it belongs to where a job has several."""


class StopReason(StrEnum):
    """Why an episode ended. The first group are terminations, the next truncations, the last two neither."""

    DONE = "done"
    """The policy answered without calling a tool, or in the form that it was asked for."""
    ENVIRONMENT = "environment"
    """The environment said that it is over."""
    RETURN_DIRECT = "return_direct"
    """The result of a tool was the answer."""
    HANDOFF = "handoff"
    """The policy handed over to an agent that does not follow: handoffs are not followed, or there were too many."""
    PARSE_ERROR = "parse_error"
    """The answer never had its form."""
    TOOL_RETRIES = "tool_retries"
    """A tool was called wrongly more often in a row than it may be."""
    GUARDRAIL = "guardrail"
    """A guardrail let the input or the answer go no further."""
    DENIED = "approval_denied"
    """Whoever was asked to approve a call ended the run."""
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    """The episode's budget of sampled tokens is spent, or a completion was cut by its own limit."""
    CONTEXT = "context"
    """The model has no room left: the next prompt does not fit, or a completion ran into the end."""
    TIMEOUT = "timeout"
    """The episode's deadline, less the time kept back for scoring."""
    COST = "cost"
    """The budget of the episode or of the job is spent."""
    NOT_APPROVED = "approval_timeout"
    """Nobody answered whether a call may be made."""
    FAILED = "failed"
    """Something outside the policy broke; see the failure."""
    DROPPED = "dropped"
    """It was broken off or never begun because nobody wants it any more; see the drop reason."""

    @property
    def truncated(self) -> bool:
        """True when a limit ended the episode, not the policy or the environment."""
        return self in _TRUNCATIONS


_TRUNCATIONS = frozenset(
    {
        StopReason.MAX_TURNS,
        StopReason.MAX_TOKENS,
        StopReason.CONTEXT,
        StopReason.TIMEOUT,
        StopReason.COST,
        StopReason.NOT_APPROVED,
    }
)


class Status(StrEnum):
    """What became of an episode."""

    COMPLETED = "completed"
    TRUNCATED = "truncated"
    FAILED = "failed"
    DROPPED = "dropped"


class FailureKind(StrEnum):
    """The boundary that was crossed when something outside the policy broke."""

    SEED = "seed"
    MODEL = "model"
    TOOL = "tool"
    VERIFY = "verify"
    AGENT = "agent"
    """A function of a person's own that an agent has: hook, guardrail or approver."""
    LOST = "lost"
    """The runner that held the episode died."""
    INTERNAL = "internal"
    """Our own code raised: a bug. Logged with its traceback, never retried."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What broke, where, and what it said. Never a reward."""

    kind: FailureKind
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Score:
    """A verifier's judgement. `components` add up as the verifier says; `metrics` are only for people."""

    reward: float
    components: Mapping[str, float] = field(default_factory=dict[str, float])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a verifier sees of an episode: the conversation as a person reads it, no tokens."""

    messages: tuple[Message, ...]
    stop_reason: StopReason
    rewards: tuple[float, ...] = ()
    """Step rewards in order."""
    opening: int = 0
    """How many messages there were before the policy's first turn."""
    value: Json = None
    """The answer where it is not simply the last turn's text: a value of the form asked for, or a tool's result."""
    workspace: str | None = None
    """The folder a program worked in that was the agent, on the machine of its runner, as it left it."""

    @property
    def answer(self) -> str:
        """What the policy said in its last turn, outside reasoning and tool calls; empty when it said nothing.

        An example answer in the task's own messages is not the policy's. A `value` is the answer, as text or as JSON.
        """
        if self.value is not None:
            return self.value if isinstance(self.value, str) else json.dumps(self.value, ensure_ascii=False)
        for message in reversed(self.messages[self.opening :]):
            if message["role"] == "assistant":
                return message["content"]
        return ""


@dataclass(frozen=True, slots=True)
class Limits:
    """All bounds of an episode. Seconds are wall time."""

    max_turns: int = 16
    max_tokens: int = 8192
    """Sampled tokens in the whole episode."""
    turn_tokens: int = 1024
    """Sampled tokens in one turn."""
    turn_seconds: float = 300.0
    tool_seconds: float = 60.0
    episode_seconds: float = 1800.0
    """From seeding to the closed session; verify_seconds of it are kept back for scoring."""
    seed_seconds: float = 60.0
    verify_seconds: float = 60.0
    close_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Agent:
    """How the policy is set to work."""

    name: str = "agent"
    instructions: str | None = None
    """System message; None uses the resource's own."""
    tools: tuple[str, ...] | None = None
    """Which of the resource's tools the policy gets; None gives all."""
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one sample of one task once. The driver hands it out, the row answers it."""

    run_id: str
    task: Task
    sample_index: int
    attempt: int
    """Counted from 1."""
    final: bool
    """No further attempt follows: whatever happens becomes the row."""
    seed: int
    played_by: str | None = None
    """The runner that had the attempt before this one."""
    step: int | None = None
    """Version of the weights when the attempt was handed out, in jobs whose weights change."""
    path: tuple[tuple[int, str], ...] = ()
    """Of a child: number and agent of each run on the way from the sample's own to this one."""
    longer: float = 1.0
    """How much longer than usual an episode of the task takes, where an earlier run tells."""

    @property
    def sample_id(self) -> str:
        """The id of the episode that is the sample itself, also for its children."""
        return f"{self.run_id}-{self.task.index}-{self.sample_index}"

    @property
    def episode_id(self) -> str:
        """The same for every attempt at the same sample. Children are numbered by whoever began them."""
        return self.sample_id + "".join(f".{number}" for number, _ in self.path)

    @property
    def parent_episode_id(self) -> str | None:
        """Whose child it is; None for the samples of a job."""
        return replace(self, path=self.path[:-1]).episode_id if self.path else None

    @property
    def group_id(self) -> str:
        """Shared by all samples of a task; of children, by those of the same agents on the way to them."""
        return f"{self.run_id}-{self.task.index}" + "".join(f".{agent}" for _, agent in self.path)


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where an episode's wall time went. `idle` is what is left of the total."""

    queue: float = 0.0
    model: float = 0.0
    tool: float = 0.0
    verify: float = 0.0
    total: float = 0.0

    @property
    def idle(self) -> float:
        """Neither queued, sampling, in a tool nor in a verifier."""
        return max(0.0, self.total - self.queue - self.model - self.tool - self.verify)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A finished episode: one row of the dataset."""

    lease: Lease
    resource: str
    agent: str
    model: str
    messages: tuple[Message, ...]
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    score: Score | None = None
    failure: Failure | None = None
    drop_reason: str | None = None
    restored_turns: int | None = None
    """Turns an earlier attempt had played and this one went on behind; 0 when there were some and this one started
    again all the same, None when there were none."""
    seconds: Seconds = field(default_factory=Seconds)
    started_at: float = 0.0
    finished_at: float = 0.0
    answer: Json = None
    """What the agent answered, where that is not simply the last turn's text."""
    events: tuple[Event, ...] = ()
    """What the agent's parts did, in order."""
    cost: float | None = None
    """USD of the model calls; None when that of any is not known."""
    children: tuple[Trajectory, ...] = ()
    """The runs that its agent began. Their turns, tokens and cost are theirs alone."""

    @property
    def status(self) -> Status:
        """Derived from what happened, so that it cannot disagree with it."""
        if self.drop_reason is not None:
            return Status.DROPPED
        if self.failure is not None:
            return Status.FAILED
        return Status.TRUNCATED if self.stop_reason.truncated else Status.COMPLETED

    @property
    def reward(self) -> float | None:
        """The verifier's reward; None unless the episode was scored. A failure is never a reward."""
        return self.score.reward if self.score is not None and self.failure is None else None

    @property
    def family(self) -> Iterator[Trajectory]:
        """The episode and, behind it, its children, each before its own."""
        yield self
        for child in self.children:
            yield from child.family

    @property
    def num_sampled(self) -> int:
        """Tokens the policy sampled."""
        return sum(turn.completion.num_sampled for turn in self.turns)

    @property
    def restored_tokens(self) -> int:
        """Those of them that an earlier attempt had sampled."""
        return sum(turn.completion.num_sampled for turn in self.turns[: self.restored_turns or 0])

    @property
    def num_tool_calls(self) -> int:
        """Tool calls made, run or not."""
        return sum(len(turn.tool_uses) for turn in self.turns)
