"""The nouns of one turn: the prompt, what the policy sampled after it, and what the world answered.

Frozen values, like those of `rollout.trajectory`, where everything else imports them from.
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
    reasoning_content: NotRequired[str | list[str]]
    """A list where reasoning stands between calls: entry i came before call i, one more may follow the last."""
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


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
    terminated); `reward` is a step reward. `skipped` says that the tool never ran, `crashed` that it broke or gave no
    answer in time, which need not be the policy's doing.
    """

    content: str
    error: str | None = None
    done: bool = False
    reward: float | None = None
    skipped: bool = False
    seconds: float = 0.0
    crashed: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of a completion, in the order sampled. `call` is set for every tool call."""

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
class Extras:
    """What a model call asks for beside its prompt and its sampling, in the words of each place that may be asked."""

    body: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Keys of an OpenAI-compatible request."""
    vllm: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Arguments of vLLM's SamplingParams."""
    grammar: Mapping[str, Json] | None = None
    """Arguments of vLLM's StructuredOutputsParams, where prompts are tokens: what is drawn then is not the policy's own
    distribution, but what the grammar leaves of it."""
    max_tokens: int | None = None
    """Sampled tokens at most; None leaves the turn's own limit."""


NO_EXTRAS = Extras()


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
    extras: Extras = NO_EXTRAS
    group: str | None = None
    """Sessions of a group begin alike: their first calls are best sampled where one of them was."""
    priority: int = 0
    """As vLLM counts: a lower one goes first, where calls wait for a place (`model.priority_seconds`)."""
    salt: str | None = None
    """Prompts share a prefix cache only with those of the same salt."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a model call that failed, and seconds until the next; None where there was none."""

    number: int
    error: str
    status: int | None
    delay: float | None


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
    attempts: tuple[Attempt, ...] = ()
    """Tries that failed before this one."""

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
    constrained: bool = False
    """A grammar left only some tokens to be drawn."""
    trainable: bool = True
    """Whether the agent's tokens are to be trained on."""

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


@dataclass(frozen=True, slots=True)
class Event:
    """Something that an agent's parts did, beside what was sampled and called."""

    turn: int
    kind: str
    """`guardrail`, `approval`, `parse_error`, `compaction`, `hook`, `handoff`, ..."""
    name: str
    detail: Mapping[str, Json] = field(default_factory=dict[str, Json])
    seconds: float = 0.0
