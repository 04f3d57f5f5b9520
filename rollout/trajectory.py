"""The nouns: what an episode is given, what it does and what is kept of it.

Everything here is a frozen value. Change is `dataclasses.replace`; whatever can be derived is a property and is
never stored. Nothing here knows about files, networks, Ray or any tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NotRequired, TypedDict

Json = Any
"""A JSON value. Checked where it enters (task files, tool arguments), not by the type."""


class Message(TypedDict):
    """One chat message in OpenAI's shape, with `reasoning_content` as vLLM and the chat templates name it."""

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to be solved. `data` is for tools and verifiers; the policy sees only `messages`."""

    id: str
    messages: tuple[Message, ...]
    data: Mapping[str, Json] = field(default_factory=dict[str, Json])
    index: int = 0
    """Position in the task source: with the sample index it names an episode for ever."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What the policy is told about a tool. `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Json]

    def as_openai(self) -> dict[str, Any]:
        """The `tools` entry that chat templates and OpenAI-compatible servers take."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the policy made it. `arguments` is JSON text; a call that could not be read has no name and keeps
    what was sampled."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered.

    `content` is what the policy reads, also when `error` is set. `done` ends the episode (the environment
    terminated); `reward` is a step reward. `skipped` says that the tool never ran.
    """

    content: str
    error: str | None = None
    done: bool = False
    reward: float | None = None
    skipped: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of a completion, in the order sampled. `call` is set for a tool call that parsed."""

    kind: Literal["reasoning", "content", "tool_call"]
    text: str
    call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens [start, end) of a completion were sampled by weights `version`."""

    version: str
    start: int
    end: int


class FinishReason(StrEnum):
    """Why the engine stopped sampling."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. `seed` None lets the engine choose."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """One model call. A policy that speaks tokens reads `ids`; one that speaks chat reads `messages`."""

    request_id: str
    session_id: str
    turn: int
    ids: Sequence[int]
    messages: Sequence[Message]
    tools: tuple[ToolSpec, ...]
    max_tokens: int
    sampling: Sampling
    seconds: float
    """Time left for this call."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What one model call gave.

    `ids` and `logprobs` have equal length: one processed logprob (after temperature and truncation, natural log) a
    sampled token; both are None when the endpoint does not tell. `message` is set by endpoints that parse the text
    themselves, `prompt_ids` by those that render the prompt themselves.
    """

    finish_reason: FinishReason
    ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    versions: tuple[VersionSpan, ...] = ()
    cached_tokens: int | None = None
    prompt_tokens: int | None = None
    sampled_tokens: int | None = None
    replica: str = ""
    message: Message | None = None
    prompt_ids: Sequence[int] | None = None
    queue_seconds: float = 0.0

    @property
    def num_sampled(self) -> int:
        """Sampled tokens as the engine counts them; 0 when it does not tell."""
        if self.sampled_tokens is not None:
            return self.sampled_tokens
        return len(self.ids) if self.ids is not None else 0


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A call and its one result."""

    call: ToolCall
    result: ToolResult


@dataclass(frozen=True, slots=True)
class Turn:
    """One completion and what the world answered."""

    agent: str
    segment: int
    prompt_ids: Sequence[int] | None
    """Only what was appended since the previous turn of the segment."""
    completion: Completion
    segments: tuple[Segment, ...]
    tool_uses: tuple[ToolUse, ...] = ()
    segment_break: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    model_seconds: float = 0.0

    @property
    def reward(self) -> float | None:
        """Sum of the step rewards of this turn; None when the environment gave none."""
        rewards = [use.result.reward for use in self.tool_uses if use.result.reward is not None]
        return sum(rewards) if rewards else None

    @property
    def text(self) -> str:
        """What the policy said outside reasoning and tool calls."""
        return "".join(part.text for part in self.segments if part.kind == "content").strip()

    @property
    def reasoning(self) -> str:
        """All reasoning of the turn."""
        return "\n".join(part.text for part in self.segments if part.kind == "reasoning").strip()


class StopReason(StrEnum):
    """Why an episode ended. The first two are terminations; the next five truncations; the last one neither."""

    DONE = "done"
    """The policy answered without calling a tool."""
    ENVIRONMENT = "environment"
    """The environment said that it is over."""
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    """The episode's budget of sampled tokens is spent, or a completion was cut by its own limit."""
    CONTEXT = "context"
    """The next prompt does not fit the model."""
    TIMEOUT = "timeout"
    """The episode's deadline, less the time kept back for scoring."""
    FAILED = "failed"
    """Something outside the policy broke; see the failure."""

    @property
    def truncated(self) -> bool:
        """True when a limit ended the episode, not the policy or the environment."""
        return self in _TRUNCATIONS


_TRUNCATIONS = frozenset({StopReason.MAX_TURNS, StopReason.MAX_TOKENS, StopReason.CONTEXT, StopReason.TIMEOUT})


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

    @property
    def answer(self) -> str:
        """The last thing the policy said, outside reasoning and tool calls; empty when it said nothing."""
        for message in reversed(self.messages):
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

    @property
    def episode_id(self) -> str:
        """The same for every attempt at the same sample."""
        return f"{self.run_id}-{self.task.index}-{self.sample_index}"

    @property
    def group_id(self) -> str:
        """Shared by all samples of a task."""
        return f"{self.run_id}-{self.task.index}"


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
    seconds: Seconds = field(default_factory=Seconds)
    started_at: float = 0.0
    finished_at: float = 0.0

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
        """The verifier's reward; None unless the episode was scored."""
        return self.score.reward if self.score is not None else None

    @property
    def num_sampled(self) -> int:
        """Tokens the policy sampled."""
        return sum(turn.completion.num_sampled for turn in self.turns)

    @property
    def num_tool_calls(self) -> int:
        """Tool calls made, run or not."""
        return sum(len(turn.tool_uses) for turn in self.turns)
