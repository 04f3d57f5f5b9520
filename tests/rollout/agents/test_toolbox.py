"""The tool box: in what order calls are made, that each has one result, and that it is what `use_tools` gives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from rollout.agents.tool_rules import ToolRule, out_of_retries, unruled
from rollout.agents.toolbox import BoxUsed, ToolBox
from rollout.errors import BoundaryError, ResourceDown, ToolError, UserError
from rollout.resource import Resource, tool
from rollout.sessions import LocalSession, SessionTable
from rollout.tool_use import skipped, use_tools
from rollout.trajectory import (
    Failure,
    FailureKind,
    Score,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
    ToolUse,
    Transcript,
)

NAMES = ("note", "fail", "crash", "down", "end", "search", "hand")
SECONDS = 5.0


@dataclass
class Desk(Resource):
    """What is done at it is written down, when it begins and when it ends."""

    name = "desk"
    restores = "snapshot"
    diary: list[str] = field(default_factory=list[str])
    gate: asyncio.Event | None = None

    async def seed_session(self, task: Task, seed: int) -> list[str]:
        return self.diary

    @tool
    async def note(self, session: list[str], what: str) -> str:
        """Write down."""
        session.append(f"begin {what}")
        for _ in range(3 if what != "slow" else 9):
            await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        session.append(f"end {what}")
        return what

    @tool
    async def fail(self, session: list[str]) -> str:
        """Is used wrongly."""
        raise ToolError("not like this")

    @tool
    async def crash(self, session: list[str]) -> str:
        """Has a bug."""
        raise KeyError("bug")

    @tool
    async def down(self, session: list[str]) -> str:
        """Cannot work."""
        raise ResourceDown("no disk")

    @tool
    async def end(self, session: list[str]) -> ToolResult:
        """Ends the episode."""
        session.append("over")
        return ToolResult("over", done=True, reward=0.5)

    async def snapshot(self, session: list[str]) -> bytes:
        return ",".join(session).encode()

    async def verify(self, session: list[str], transcript: Transcript) -> Score | float:
        return 1.0


@dataclass
class Shelf:
    """A ToolSet of two tools: one that finds long texts, one that hands over."""

    text: str = "found"
    closed: int = 0

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        nothing = {"type": "object", "properties": {}}
        return ToolSpec("search", "Search.", nothing), ToolSpec("hand", "Hand over.", nothing)

    async def call(self, call: ToolCall, seconds: float) -> ToolResult:
        if call.arguments == "down":
            raise ResourceDown("the shelf fell")
        return ToolResult(self.text)

    async def close(self) -> None:
        self.closed += 1


@dataclass
class Log:
    """An Around that remembers, and that breaks where it is told to."""

    told: list[str] = field(default_factory=list[str])
    breaks: str = ""

    async def before(self, call: ToolCall) -> None:
        self.told.append(f"before {call.id}")
        self._break(f"before {call.id}")

    async def after(self, call: ToolCall, result: ToolResult) -> ToolResult:
        self.told.append(f"after {call.id} {result.content}")
        self._break(f"after {call.id}")
        return result

    def _break(self, what: str) -> None:
        if what == self.breaks:
            raise BoundaryError(Failure(FailureKind.AGENT, "hook", "broke"))


def calls(*whats: str) -> list[ToolCall]:
    """`note` calls for words, other tools by their names."""
    return [
        ToolCall(f"c{place}", what, "{}")
        if what in NAMES or not what
        else ToolCall(f"c{place}", "note", f'{{"what": "{what}"}}')
        for place, what in enumerate(whats)
    ]


async def session(desk: Desk) -> LocalSession:
    table = SessionTable(desk)
    opened, _ = await table.seed(Task("t", ()), 0, 60)
    return LocalSession(table, opened)


async def use(box: ToolBox, given: Sequence[ToolCall], desk: Desk | None = None, **more: Any) -> BoxUsed:
    return await box.use(await session(desk or Desk()), given, NAMES, SECONDS, False, **more)


def told(used: BoxUsed) -> list[str]:
    return [use.result.content for use in used.uses]


def timeless(uses: Sequence[ToolUse]) -> list[ToolUse]:
    return [replace(use, result=replace(use.result, seconds=0.0)) for use in uses]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("what", [("a",), ("a", "fail", "b"), ("end", "a"), ("a", "down", "crash", ""), ("other", "")])
async def test_a_plain_box_gives_what_use_tools_gives(what: tuple[str, ...], cut: bool) -> None:
    given = [replace(call, name="lost") if "other" in call.arguments else call for call in calls(*what)]
    box = await ToolBox().use(await session(Desk()), given, NAMES, SECONDS, cut)
    plain = await use_tools(await session(Desk()), given, NAMES, SECONDS, cut)
    assert timeless(box.uses) == timeless(plain.uses)
    assert box.snapshot == plain.snapshot
    assert str(box.broken) == str(plain.broken)
    assert (box.direct, box.handoff) == (None, None)


async def test_vector_6_two_calls_run_at_once_and_their_results_stand_in_the_order_of_the_calls() -> None:
    desk, log = Desk(), Log()
    used = await use(ToolBox(around=log), calls("slow", "fail", "b"), desk)
    assert told(used) == ["slow", "error: not like this", "b"], "one that fails does not affect the others"
    assert desk.diary == ["begin slow", "begin b", "end b", "end slow"]
    assert log.told[:3] == ["before c0", "before c1", "before c2"], "all are told of before any has a result"
    assert log.told[3:] == ["after c0 slow", "after c1 error: not like this", "after c2 b"]


@pytest.mark.parametrize(
    "box",
    [
        ToolBox(parallel=False),
        ToolBox(handoffs=frozenset({"hand"}), sets=(Shelf(),)),
        ToolBox(rules={"note": ToolRule(sequential=True)}),
        ToolBox(max_concurrency=1),
        ToolBox(rules={"crash": ToolRule(return_direct=True)}),
    ],
    ids=["parallel off", "agent with handoffs", "barrier", "one at a time", "a tool of the batch returns directly"],
)
async def test_vector_6_otherwise_they_run_one_after_another(box: ToolBox) -> None:
    desk = Desk()
    await use(box, calls("slow", "b", "crash"), desk)
    assert desk.diary == ["begin slow", "end slow", "begin b", "end b"]
    desk = Desk()
    await use(ToolBox(), calls("slow", "b"), desk, in_turn=True)
    assert desk.diary == ["begin slow", "end slow", "begin b", "end b"]


async def test_a_barrier_runs_alone_behind_what_was_asked_before_it() -> None:
    desk = Desk()
    box = ToolBox(sets=(Shelf(),), rules={"end": ToolRule(sequential=True)})
    used = await use(box, calls("a", "b", "end", "c"), desk)
    assert desk.diary == ["begin a", "begin b", "end a", "end b", "over"]
    assert told(used)[2:] == ["over", "error: not executed: the environment has ended"]
    assert used.uses[3].result.skipped


async def test_no_more_run_at_once_than_may() -> None:
    desk = Desk(gate=asyncio.Event())
    running = asyncio.create_task(use(ToolBox(max_concurrency=2), calls("a", "b", "c", "d"), desk))
    for _ in range(100):  # far more than it takes them to begin
        await asyncio.sleep(0)
    assert desk.diary == ["begin a", "begin b"]
    assert desk.gate is not None
    desk.gate.set()
    assert told(await running) == ["a", "b", "c", "d"]


async def test_vector_7_a_direct_answer_ends_the_batch_and_its_siblings_have_results() -> None:
    desk = Desk()
    used = await use(ToolBox((Shelf(),), {"search": ToolRule(return_direct=True)}), calls("a", "search", "b"), desk)
    assert used.direct == 1
    assert told(used) == ["a", "found", "error: not executed: search gave the answer"]
    assert [one.result.skipped for one in used.uses] == [False, False, True]
    assert desk.diary == ["begin a", "end a"]


@pytest.mark.parametrize("given", [calls("fail", "a"), [ToolCall("c0", "note", '{"whta": 1}'), *calls("a")]])
async def test_vector_7_an_error_does_not_return_directly_and_neither_do_wrong_arguments(given: list[ToolCall]) -> None:
    used = await use(ToolBox(rules={given[0].name: ToolRule(return_direct=True)}), given)
    assert used.uses[0].result.error is not None
    assert told(used)[1] == "a"
    assert used.direct == (None if given[0].name == "fail" else 1)


async def test_the_first_handoff_wins() -> None:
    used = await use(ToolBox((Shelf(),), handoffs=frozenset({"hand"})), calls("hand", "hand", "a"))
    assert used.handoff == 0
    assert told(used)[1:] == ["error: not executed: hand handed over"] * 2


async def test_rulings_are_kept_to() -> None:
    desk = Desk()
    given = calls("a", "b", "c")
    rulings = list(unruled(given, NAMES, False))
    rulings[0], rulings[1] = skipped("denied"), replace(given[1], arguments='{"what": "other"}')
    used = await use(ToolBox(), given, desk, rulings=rulings)
    assert told(used) == ["error: denied", "other", "c"]
    assert [one.call for one in used.uses] == given, "what was sampled is what is recorded"


async def test_what_breaks_outside_ends_the_turn_and_every_call_has_its_result() -> None:
    desk = Desk()
    used = await use(ToolBox(parallel=False), calls("a", "down", "b"), desk)
    assert used.broken is not None
    assert "no disk" in str(used.broken)
    assert used.uses[1].result.error == str(used.broken)
    assert used.uses[2].result.skipped
    shelf = await use(ToolBox((Shelf(),)), [ToolCall("c0", "search", "down")])
    assert "the shelf fell" in str(shelf.broken)


@pytest.mark.parametrize("parallel", [True, False])
async def test_a_crash_may_be_infrastructure_but_the_policys_errors_never_are(parallel: bool) -> None:
    rules = {name: ToolRule(on_error="infra_error") for name in ("crash", "fail", "note")}
    box = ToolBox(rules=rules, parallel=parallel)
    fine = await use(box, [*calls("fail"), ToolCall("c1", "note", "{"), ToolCall("c2", "note", '{"what": 3}')])
    assert fine.broken is None
    assert (await use(ToolBox(), calls("crash", "a"))).broken is None, "fed back where nothing is said"
    assert "bug" in str((await use(box, calls("crash", "a"))).broken)


async def test_a_tools_own_timeout_bounds_its_calls() -> None:
    desk = Desk(gate=asyncio.Event())
    used = await use(ToolBox(rules={"note": ToolRule(timeout=0.02)}), calls("a"), desk)
    assert used.uses[0].result.error == "note did not answer within 0.02 s"
    assert used.uses[0].result.crashed


async def test_nothing_begins_when_the_time_of_the_episode_is_up() -> None:
    now = [0.0]

    class Slow(Log):
        async def after(self, call: ToolCall, result: ToolResult) -> ToolResult:
            now[0] += 10
            return result

    box = ToolBox(parallel=False, around=Slow(), clock=lambda: now[0])
    used = await use(box, calls("a", "b", "c"), left=15.0)
    assert told(used) == ["a", "b", "error: not executed: the time of the episode is up"]


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(("breaks", "made"), [("before c1", 2), ("after c1", 3)])
async def test_a_function_around_a_call_that_breaks_fails_the_turn(breaks: str, made: int, parallel: bool) -> None:
    used = await use(ToolBox(around=Log(breaks=breaks), parallel=parallel), calls("a", "b", "c"))
    assert used.broken is not None
    assert used.broken.failure.kind is FailureKind.AGENT
    assert len(used.uses) == 3
    assert any(use.result.skipped for use in used.uses) == (not parallel or breaks.startswith("before"))


async def test_output_is_trimmed_once_and_whole_for_whoever_observes() -> None:
    text = "".join(f"line {number}\n" for number in range(100))
    log = Log()
    box = ToolBox((Shelf(text),), {"hand": ToolRule(max_output=0)}, max_output=100, around=log)
    used = await use(box, calls("search", "hand"))
    assert len(told(used)[0]) < 150
    assert "characters left out" in told(used)[0]
    assert told(used)[1] == text, "a tool's own limit wins"
    assert used.outputs == (text, text)
    assert log.told[-1] == f"after c1 {text}"


async def test_tools_of_one_name_and_rules_of_none_are_refused() -> None:
    specs = SessionTable(Desk()).specs
    assert len(ToolBox((Shelf(),)).specs(specs)) == len(specs) + 2
    with pytest.raises(UserError, match="'search' is the name of two tools"):
        ToolBox((Shelf(), Shelf())).specs(specs)
    with pytest.raises(UserError, match="there is no tool 'serch'; did you mean 'search'"):
        ToolBox((Shelf(),), {"serch": ToolRule()}).specs(specs)


async def test_closing_closes_every_set() -> None:
    class Stuck(Shelf):
        async def close(self) -> None:
            raise OSError("stuck")

    shelf = Shelf()
    with pytest.raises(OSError, match="stuck"):
        await ToolBox((Stuck(), shelf)).close()
    assert shelf.closed == 1


def test_retries_are_errors_in_a_row() -> None:
    wrong, right = ToolResult("", error="no"), ToolResult("yes")
    rules = {"note": ToolRule(retries=1)}

    def spent(*results: ToolResult) -> str | None:
        return out_of_retries([ToolUse(ToolCall("c", "note", "{}"), one) for one in results], rules)

    assert spent(wrong) is None
    assert spent(wrong, skipped("not executed"), wrong) == "note"
    assert spent(wrong, right, wrong) is None
    assert out_of_retries([ToolUse(ToolCall("c", "other", "{}"), wrong)] * 9, rules) is None
