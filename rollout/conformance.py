"""What every resource has to keep, checked by playing gold and wrong solutions, without a model."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import Any

from rollout.errors import BoundaryError, boundary, describe
from rollout.resource import Resource, Solution
from rollout.sessions import SessionTable
from rollout.trajectory import FailureKind, Limits, Message, Score, StopReason, Task, ToolCall, ToolResult, Transcript

_LIMITS = Limits()
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Finding:
    """One property, whether it held, and what was seen when it did not."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Ending:
    """A played episode, as far as two equal episodes must agree."""

    results: tuple[tuple[str, str | None], ...]
    score: Score


@dataclass(slots=True)
class _Play:
    """An episode that follows a solution, one call a step, so that several can be played in turns."""

    table: SessionTable
    session_id: str
    left: list[tuple[str, ToolCall | None]]
    """What is still to be said, and the call that goes with it."""
    messages: list[Message]
    results: list[ToolResult] = field(default_factory=list[ToolResult])
    snapshot: bytes | None = None
    """The session's state after the last call, of resources that give one."""

    async def step(self) -> bool:
        """Plays what comes next; False when nothing is left to do."""
        if not self.left or any(result.done for result in self.results):
            return False
        said, call = self.left.pop(0)
        if call is None:
            self.messages.append({"role": "assistant", "content": said})
            return True
        result, self.snapshot = await self.table.answer(self.session_id, call, _LIMITS.tool_seconds)
        made = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        self.messages.append({"role": "assistant", "content": said, "tool_calls": [made]})
        self.messages.append({"role": "tool", "content": result.content, "tool_call_id": call.id})
        self.results.append(result)
        return True

    async def end(self, stop: StopReason | None = None) -> _Ending:
        """Has the episode judged as it stands."""
        ended = StopReason.ENVIRONMENT if any(result.done for result in self.results) else StopReason.DONE
        rewards = (result.reward for result in self.results if result.reward is not None)
        transcript = Transcript(tuple(self.messages), stop or ended, tuple(rewards))
        score = await self.table.verify(self.session_id, transcript, _LIMITS.verify_seconds)
        return _Ending(tuple((result.content, result.error) for result in self.results), score)


async def check(resource: Resource, samples: int = 3, seed: int = 0) -> list[Finding]:
    """Plays the first `samples` tasks of `seed` and reports on every property.

    What the resource raises is a finding, ResourceDown too. A check returns what is wrong, or an empty string.
    """
    checks: tuple[tuple[str, Callable[[_Bench], Awaitable[str]]], ...] = (
        ("tasks repeat and have ids of their own", _tasks_repeat),
        ("messages are well-formed", _messages_are_well_formed),
        ("tools are described", _tools_are_described),
        ("gold scores 1.0", _gold_scores_one),
        ("wrong scores less", _wrong_scores_less),
        ("equal seeds play equally", _plays_repeat),
        ("sessions do not share state", _sessions_are_apart),
        ("bad calls are told to the policy", _bad_calls_are_told),
        ("a truncated episode can be judged", _truncated_can_be_judged),
        ("a session is restored as it says", _sessions_are_restored),
        ("an episode is judged again as it says", _episodes_are_judged_again),
        ("sessions close, once", _sessions_close),
    )
    bench = _Bench(resource, SessionTable(resource), samples, seed)
    return [await _finding(name, function, bench) for name, function in checks]


async def _finding(name: str, function: Callable[[_Bench], Awaitable[str]], bench: _Bench) -> Finding:
    try:
        async with boundary(FailureKind.TOOL, bench.resource.name, _LIMITS.episode_seconds):
            wrong = await function(bench)
    except (BoundaryError, AssertionError) as error:  # assertions pass the boundary; here they are the resource's
        return Finding(name, False, error.failure.message if isinstance(error, BoundaryError) else describe(error))
    return Finding(name, not wrong, wrong)


@dataclass(frozen=True, slots=True)
class _Bench:
    """The resource under test and how to play it."""

    resource: Resource
    table: SessionTable
    samples: int
    seed: int

    def tasks(self) -> list[Task]:
        return list(islice(self.resource.tasks(self.seed), self.samples))

    def best(self, task: Task) -> Solution:
        """The gold solution; where the resource knows none, which is one finding and not four, the wrong one."""
        try:
            return self.resource.gold(task)
        except NotImplementedError:
            return self.resource.wrong(task)

    def script(self, solution: Solution) -> list[tuple[str, ToolCall | None]]:
        calls = enumerate((name, json.dumps(dict(arguments))) for name, arguments in solution.calls)
        script = [("", ToolCall(f"call-{n}", *call)) for n, call in calls]
        answer = None
        if (name := self.resource.text_tool) is not None:
            argument = next(iter(self.resource.bound_tools()[name].arguments.model_fields))
            answer = ToolCall("answer", name, json.dumps({argument: solution.answer}))
        return [*script, (solution.answer, answer)] if solution.answer else [*script]

    @asynccontextmanager
    async def open(self, task: Task, solution: Solution, snapshot: bytes | None = None) -> AsyncGenerator[_Play]:
        session_id, opening = await self.table.seed(task, self.seed, _LIMITS.episode_seconds, snapshot)
        told = self.resource.instructions
        system: list[Message] = [] if told is None else [{"role": "system", "content": told}]
        try:
            yield _Play(self.table, session_id, self.script(solution), [*system, *opening])
        finally:
            await self.table.close(session_id)

    async def play(self, task: Task, *solutions: Solution) -> list[_Ending]:
        """Plays the task once for every solution, all at the same time and in turns."""
        async with AsyncExitStack() as stack:
            plays = [await stack.enter_async_context(self.open(task, solution)) for solution in solutions]
            while any([await play.step() for play in plays]):
                pass
            return [await play.end() for play in plays]


async def _tasks_repeat(bench: _Bench) -> str:
    first, second = bench.tasks(), bench.tasks()
    if first != second or not first:
        return f"two readings of seed {bench.seed} differ" if first or second else "there are no tasks"
    ids = [task.id for task in first]
    return f"ids repeat: {', '.join(ids)}" if len(set(ids)) < len(ids) else ""


async def _messages_are_well_formed(bench: _Bench) -> str:
    for task in bench.tasks():
        async with bench.open(task, Solution(())) as play:
            for message in map(dict[str, Any], play.messages):
                if message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
                    return f"{task.id}: a message needs a role of {', '.join(_ROLES)} and a text: {message!r}"
            if not any(message["role"] == "user" for message in play.messages):
                return f"{task.id}: no message is the user's"
    return ""


async def _tools_are_described(bench: _Bench) -> str:
    for spec in bench.table.specs:
        if not spec.description:
            return f"{spec.name} has no docstring"
        for name, schema in spec.parameters["properties"].items():
            if not schema.get("description"):
                return f"{spec.name}: argument '{name}' is not in the docstring's Args"
    return ""


async def _gold_scores_one(bench: _Bench) -> str:
    for task in bench.tasks():
        [ending] = await bench.play(task, bench.resource.gold(task))
        if not math.isclose(ending.score.reward, 1.0):
            why = next((f"; a call failed: {error}" for _, error in ending.results if error is not None), "")
            return f"{task.id}: the gold solution scores {ending.score.reward:g}{why}"
    return ""


async def _wrong_scores_less(bench: _Bench) -> str:
    for task in bench.tasks():
        [ending] = await bench.play(task, bench.resource.wrong(task))
        if not ending.score.reward < 1.0:
            return f"{task.id}: the wrong solution scores {ending.score.reward:g}"
    return ""


async def _plays_repeat(bench: _Bench) -> str:
    for task in bench.tasks():
        for solution in (bench.best(task), bench.resource.wrong(task)):
            if difference := _difference(*await bench.play(task, solution), *await bench.play(task, solution)):
                return f"{task.id}: {difference}"
    return ""


async def _sessions_are_apart(bench: _Bench) -> str:
    for task in bench.tasks():
        gold, wrong = bench.best(task), bench.resource.wrong(task)
        [right], [other] = await bench.play(task, gold), await bench.play(task, wrong)
        for alone, beside in zip((right, other, right), await bench.play(task, gold, wrong, gold), strict=True):
            if difference := _difference(alone, beside):
                return f"{task.id}: played beside other sessions, {difference}"
    return ""


async def _bad_calls_are_told(bench: _Bench) -> str:
    bad = [ToolCall("bad", "no_such_tool", "{}")]
    for spec in bench.table.specs:
        bad += [ToolCall("bad", spec.name, text) for text in ('{"', "[]", '{"no_such_argument": 1}')]
    async with bench.open(bench.tasks()[0], Solution(())) as play:
        for call in bad:
            result = await bench.table.call(play.session_id, call, _LIMITS.tool_seconds)
            if result.error is None or not result.content:
                return f"{call.name} has no complaint about {call.arguments!r}"
    return ""


async def _truncated_can_be_judged(bench: _Bench) -> str:
    for task in bench.tasks():
        for calls in ((), bench.best(task).calls[:1]):
            async with bench.open(task, Solution(calls)) as play:
                await play.step()
                score = (await play.end(StopReason.MAX_TURNS)).score
            if not math.isfinite(score.reward):
                return f"{task.id}: cut after {len(calls)} calls it scores {score.reward}"
    return ""


async def _sessions_are_restored(bench: _Bench) -> str:
    """A session is left in the middle; another one that is restored from it ends as one that was never left."""
    if bench.resource.restores is None:
        return ""
    for task in bench.tasks():
        solution = bench.best(task)
        [whole] = await bench.play(task, solution)
        half = (len(bench.script(solution)) + 1) // 2
        async with bench.open(task, solution) as left:
            for _ in range(half):
                await left.step()
        if bench.resource.restores == "snapshot" and left.results and left.snapshot is None:
            return f"{task.id}: there is no snapshot after call {len(left.results)}"
        async with bench.open(task, solution, left.snapshot) as play:
            if (opening := play.messages) != left.messages[: len(opening)]:
                return f"{task.id}: the restored session opens with {opening!r}"
            if left.snapshot is not None:
                play.left, play.messages, play.results = left.left, left.messages, left.results
            while await play.step():
                pass
            if difference := _difference(whole, await play.end()):
                return f"{task.id}: left after {half} steps and restored, {difference}"
    return ""


async def _episodes_are_judged_again(bench: _Bench) -> str:
    """A session that saw nothing, or the same calls again, judges a finished episode as its own session did."""
    if bench.resource.rescores is None:
        return ""
    for task in bench.tasks():
        for solution in (bench.best(task), bench.resource.wrong(task)):
            async with bench.open(task, solution) as play:
                while await play.step():
                    pass
                whole = await play.end()
            async with bench.open(task, solution) as again:
                while bench.resource.rescores == "replay" and await again.step():
                    pass
                again.messages, again.results = play.messages, play.results
                if (score := (await again.end()).score) != whole.score:
                    return (
                        f"{task.id}: judged again by {bench.resource.rescores}, the score is {score}, not {whole.score}"
                    )
    return ""


async def _sessions_close(bench: _Bench) -> str:
    async with bench.open(bench.tasks()[0], Solution(())) as play:
        await bench.table.close(play.session_id)  # and again on the way out
    return f"{len(bench.table)} of {bench.table.opened} sessions are left open" if len(bench.table) else ""


def _difference(one: _Ending, other: _Ending) -> str:
    if one.results == other.results:
        return "" if one.score == other.score else f"the score is {other.score}, not {one.score}"
    pairs = enumerate(zip_longest(one.results, other.results))
    return next(f"call {place} gives {b}, not {a}" for place, (a, b) in pairs if a != b)
