"""Several agents on one job: one after the other, in rounds, side by side, or as each other's tools.

Everything here is told how to run an agent, `run(agent, input) -> Result`, and knows nothing else about it: whoever
gives it seeds, plays and closes the child's episode, here or elsewhere. A child has a deadline; what breaks in it is
a Failure. Results come in the order of what was asked, whichever is first to end.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from rollout.agents.handoffs import Handoff
from rollout.errors import BoundaryError, ToolError, boundary
from rollout.trajectory import Failure, FailureKind, Json, ToolCall, ToolResult, ToolSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """What an agent's run gave: text or a structured value, or a handoff that was not followed."""

    value: Json
    handoff: Handoff | None = None
    done: bool = False
    """The environment has ended in it."""
    reward: float | None = None
    """What the environment paid in it."""

    @property
    def text(self) -> str:
        """The value as the next agent reads it."""
        return self.value if isinstance(self.value, str) else json.dumps(self.value, ensure_ascii=False)


Run = Callable[[str, str], Awaitable[Result]]
"""(agent's name, input) -> its result."""
StopWhen = Callable[[str, Result], Awaitable[bool]]
"""(agent that has just run, its result) -> whether that is the end."""


async def run_pipeline(run: Run, agent: str, given: str, seconds: float, max_handoffs: int = 10) -> Result:
    """Runs `agent` and whomever it hands over to, each within `seconds`.

    The next one's input is the handoff's message, or the old input where that is empty. The handoff after
    `max_handoffs` of them is not followed: it is in the result, whose value is its message.
    Raises BoundaryError when a run fails.
    """
    result = await _bounded(run, agent, given, seconds)
    for _ in range(max_handoffs):
        if (handoff := result.handoff) is None:
            return result
        given = handoff.message.strip() or given
        result = await _bounded(run, handoff.target, given, seconds)
    return result if result.handoff is None else Result(result.handoff.message, result.handoff)


async def loop_pipeline(
    run: Run, agents: Sequence[str], given: str, stop_when: StopWhen, seconds: float, max_rounds: int = 5
) -> Result:
    """Runs the agents in turn, each with the text of the result before it, each within `seconds`.

    Ends with the raw result that `stop_when` is true of, asked after every agent; after `max_rounds` rounds with the
    text of the last result. Raises ValueError without agents or rounds, BoundaryError when a run fails.
    """
    if not agents or max_rounds < 1:
        raise ValueError("a loop needs at least one agent and one round")
    for _ in range(max_rounds):
        for agent in agents:
            result = await _bounded(run, agent, given, seconds)
            if await stop_when(agent, result):
                return result
            given = result.text
    return Result(given)


async def spawn_subagents(
    run: Run,
    jobs: Sequence[tuple[str, str]],
    seconds: float,
    max_parallel: int = 8,
    return_exceptions: bool = True,
) -> tuple[Result | Failure, ...]:
    """Runs (agent, input) pairs side by side, at most `max_parallel` at once, each within `seconds`; results in order.

    A run that fails is a Failure among the results. With `return_exceptions` false the first to fail ends the
    others, and its BoundaryError is raised.
    """
    gate = asyncio.Semaphore(max_parallel)

    async def one(agent: str, given: str) -> Result | Failure:
        async with gate:
            try:
                return await _bounded(run, agent, given, seconds)
            except BoundaryError as error:
                if not return_exceptions:
                    raise
                return error.failure

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(agent, given)) for agent, given in jobs]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several.exceptions[0].__cause__
    return tuple(task.result() for task in tasks)


async def fan_out(
    run: Run,
    agent: str,
    inputs: Sequence[str],
    seconds: float,
    max_parallel: int = 8,
    return_exceptions: bool = True,
) -> tuple[Result | Failure, ...]:
    """One agent on many inputs, as `spawn_subagents`: with one input many times, a group."""
    return await spawn_subagents(run, [(agent, given) for given in inputs], seconds, max_parallel, return_exceptions)


def folded(results: Sequence[Result | Failure], reducer: Callable[[T, T], T]) -> T:
    """The values of the runs that did not fail, folded strictly from the left, without a first value of its own: one
    value comes back as it is. Raises ValueError when there is none."""
    values: list[T] = [result.value for result in results if isinstance(result, Result)]
    if not values:
        raise ValueError("no result to fold: there were no inputs, or every run failed")
    return functools.reduce(reducer, values)


class AgentTool:
    """An agent as another one's tool: takes a `task`, answers with the text of the child's result.

    ToolError from `run` (a child too many, too deep) is told to the caller. What breaks in the child is a
    BoundaryError, and with it the calling episode's failure; with `feed_back` it is only told to the policy.
    """

    def __init__(self, run: Run, agent: str, name: str, description: str, feed_back: bool = False) -> None:
        task = {"type": "string", "description": "What it is to do. It sees nothing else."}
        parameters = {"type": "object", "properties": {"task": task}, "required": ["task"]}
        self.specs = (ToolSpec(name, description, parameters),)
        self._run = run
        self._agent = agent
        self._feed_back = feed_back

    async def call(self, call: ToolCall, seconds: float) -> ToolResult:
        """Runs the child within `seconds`. Raises BoundaryError when it fails, unless that is fed back."""
        try:
            task = msgspec.json.decode(call.arguments, type=_Task).task
        except (msgspec.DecodeError, UnicodeEncodeError):
            return _error("expected a JSON object with the text `task`")
        began = time.monotonic()
        try:
            result = await _bounded(self._run, self._agent, task, seconds)
        except BoundaryError as error:
            if isinstance(error.__cause__, ToolError):
                return _error(str(error.__cause__))
            if self._feed_back:
                return _error(str(error))
            raise
        took = time.monotonic() - began
        return ToolResult(result.text, done=result.done, reward=result.reward, seconds=took)

    async def close(self) -> None:
        """Nothing is held between calls: a call that is cancelled cancels its child."""


class _Task(msgspec.Struct):
    task: str


def _error(why: str) -> ToolResult:
    return ToolResult(f"error: {why}", error=why)


async def _bounded(run: Run, agent: str, given: str, seconds: float) -> Result:
    async with boundary(FailureKind.TOOL, f"agent {agent}", seconds):
        return await run(agent, given)
    raise AssertionError("a boundary swallows nothing")
