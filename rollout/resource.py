"""What an environment author writes.

A resource is one small class: where its tasks come from, its tools as typed async methods, and three verbs.

    class Coin(Resource):
        name = "coin"

        def tasks(self, seed: int) -> Iterator[Task]: ...
        async def seed_session(self, task: Task, seed: int) -> Purse: ...

        @tool
        async def flip(self, session: Purse, times: int) -> str:
            '''Flip the coin.

            Args:
                times: How often.
            '''

        async def verify(self, session: Purse, transcript: Transcript) -> float: ...
        async def close(self, session: Purse) -> None: ...

The object that `seed_session` returns is the session: it is handed to every tool, to `verify` and to `close`, and to
nobody else. One Resource object serves thousands of sessions on one event loop, so tools must not block it: heavy
work goes through `rollout.offload`. Setting `restores` lets an episode outlive the process that plays it. Environments
that think in reset and step derive from StepResource.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast, get_type_hints

import docstring_parser
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from rollout.errors import ToolError
from rollout.trajectory import Message, Rescores, Restores, Score, Task, ToolResult, ToolSpec, Transcript

ToolFunction = Callable[..., Awaitable[Any]]
F = TypeVar("F", bound=ToolFunction)


def tool(function: F) -> F:
    """Marks an async method `(self, session, **arguments)` of a Resource as a tool the policy may call.

    The method's name, docstring and annotations become the tool's schema. It returns text, any JSON value, or a
    ToolResult where it wants to end the episode or give a step reward. Raising ToolError tells the policy what it did
    wrong; any other exception is told to the policy too, with its type, and recorded as the tool's error.
    """
    function.__dict__["is_tool"] = True
    return function


@dataclass(frozen=True, slots=True)
class BoundTool:
    """A tool of a resource: what the policy sees, and how its arguments are checked."""

    spec: ToolSpec
    arguments: type[BaseModel]
    function: ToolFunction

    def parse(self, text: str) -> dict[str, Any]:
        """Arguments of one call from the JSON text the policy sampled.

        Raises ToolError with a line the policy can act on.
        """
        try:
            model = self.arguments.model_validate_json(text or "{}")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ToolError(f"{self.spec.name}: {place + ': ' if place else ''}{first['msg']}") from None
        return {name: getattr(model, name) for name in self.arguments.model_fields}


@dataclass(frozen=True, slots=True)
class Solution:
    """A scripted way to play a task: tool calls in order, then an answer. For conformance tests and fakes."""

    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    answer: str = ""


class Resource:
    """Base of every environment. Options of `resource:` in a conf arrive as keyword arguments of `__init__`."""

    name: ClassVar[str]
    instructions: ClassVar[str | None] = None
    """System message that suits the tasks; an agent's own instructions win."""
    text_tool: ClassVar[str | None] = None
    """The tool that gets the policy's plain text as its only argument when it calls no tool. None: plain text ends
    the episode."""
    max_sessions: ClassVar[int] = 65_536
    """Sessions one host may hold, where a job does not say."""
    restores: ClassVar[Restores | None] = None
    """How an episode goes on whose runner died. `replay`: a fresh session is given the recorded tool calls again, and
    its answers must be the recorded ones; for tools that depend on nothing but the session, its seed and the calls.
    `snapshot`: a session is made from what `snapshot` gave after the last turn. None: the episode starts again."""
    rescores: ClassVar[Rescores | None] = None
    """How a finished episode is judged again (`rollout rescore`). `transcript`: `verify` needs nothing of a session but
    what `seed_session` puts there, so a fresh one does. `replay`: it judges the state that the tools left, so a fresh
    session is given the recorded calls again, and its answers must be the recorded ones. None: it cannot be."""
    num_tasks: int | None = None
    """How many tasks `tasks` yields, where that is known beforehand."""

    def tasks(self, seed: int) -> Iterator[Task]:
        """The resource's own tasks, always the same for a seed; may be endless."""
        raise NotImplementedError(f"{self.name} has no tasks of its own: give tasks.path")

    async def seed_session(self, task: Task, seed: int) -> Any:
        """A fresh session for one attempt at `task`; equal seeds give equal sessions."""
        raise NotImplementedError

    def opening(self, session: Any, task: Task) -> tuple[Message, ...]:
        """The conversation before the policy's first turn, without the system message."""
        return task.messages

    async def snapshot(self, session: Any) -> bytes:
        """All of a session's state, for `restore`; asked for after every turn that used a tool, so keep it small."""
        raise NotImplementedError(f"{self.name} gives no snapshots")

    async def restore(self, task: Task, seed: int, snapshot: bytes) -> Any:
        """A session that goes on where the one went that gave the snapshot, perhaps in another process."""
        raise NotImplementedError(f"{self.name} takes no snapshots")

    async def verify(self, session: Any, transcript: Transcript) -> Score | float:
        """Judges a finished episode. Called once, also for truncated ones, while the session is open."""
        raise NotImplementedError

    async def close(self, session: Any) -> None:
        """Frees what the session holds. Called once for every session that was seeded."""

    def gold(self, task: Task) -> Solution:
        """A way to play `task` that scores 1.0."""
        raise NotImplementedError(f"{self.name} gives no gold solution")

    def wrong(self, task: Task) -> Solution:
        """A way to play `task` that scores less than 1.0."""
        return Solution(calls=(), answer="")

    def bound_tools(self) -> dict[str, BoundTool]:
        """The resource's tools by name, in the order they are written."""
        found: dict[str, BoundTool] = {}
        for owner in reversed(type(self).__mro__):
            for name, member in vars(owner).items():
                if getattr(member, "is_tool", False):
                    found[name] = bind(getattr(self, name))
        return found


@dataclass(frozen=True, slots=True)
class Step:
    """What `StepResource.step` gives back, as Gymnasium defines it, with text for an observation."""

    observation: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


class StepResource(Resource):
    """An environment of reset and step. The policy acts by calling `step`, or simply by saying its action.

    The reward of an episode is the sum of its step rewards unless `verify` says otherwise.
    """

    text_tool = "step"

    async def reset(self, task: Task, seed: int) -> tuple[Any, str]:
        """A fresh session and the first observation."""
        raise NotImplementedError

    async def act(self, session: Any, action: str) -> Step:
        """Plays one action. Raises ToolError for an action that means nothing."""
        raise NotImplementedError

    async def seed_session(self, task: Task, seed: int) -> Any:
        session, observation = await self.reset(task, seed)
        return _Played(session, observation)

    def opening(self, session: Any, task: Task) -> tuple[Message, ...]:
        return (*task.messages, {"role": "user", "content": cast(_Played, session).observation})

    @tool
    async def step(self, session: Any, action: str) -> ToolResult:
        """Play one action and see what happens.

        Args:
            action: The action to play.
        """
        done = await self.act(session.state, action)
        return ToolResult(done.observation, done=done.terminated or done.truncated, reward=done.reward)

    async def verify(self, session: Any, transcript: Transcript) -> Score | float:
        return float(sum(transcript.rewards))

    async def close(self, session: Any) -> None:
        await self.leave(session.state)

    async def leave(self, session: Any) -> None:
        """Frees what the session holds."""


@dataclass(frozen=True, slots=True)
class _Played:
    state: Any
    observation: str


def bind(function: ToolFunction) -> BoundTool:
    """A tool made of a typed, documented function: schema and argument check come from signature and docstring (Google
    style). Its first parameter is not the policy's: the session, or whatever else every call is handed."""
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    told = {param.arg_name: (param.description or "").replace("\n", " ") for param in doc.params}
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), FieldInfo(default=default, description=told.get(name)))
    called = getattr(function, "__name__", "tool")
    model = create_model(called, __config__=ConfigDict(extra="forbid"), **fields)
    schema = _without_titles(model.model_json_schema())
    schema.setdefault("properties", {})
    description = " ".join((doc.description or "").split())
    return BoundTool(ToolSpec(called, description, schema), model, function)


def _without_titles(schema: Any) -> Any:
    """pydantic titles every field with its own name: noise in a prompt."""
    if isinstance(schema, dict):
        entries = cast(dict[str, Any], schema).items()
        kept = {key: value for key, value in entries if not (key == "title" and isinstance(value, str))}
        return {key: _without_titles(value) for key, value in kept.items()}
    if isinstance(schema, list):
        return [_without_titles(value) for value in cast(list[Any], schema)]
    return schema


def as_result(value: Any) -> ToolResult:
    """A tool's return value as a result: text stays text, anything else becomes compact JSON."""
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, str):
        return ToolResult(value)
    return ToolResult(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def as_score(value: Score | float) -> Score:
    """What `verify` returned as a Score."""
    return value if isinstance(value, Score) else Score(float(value))
