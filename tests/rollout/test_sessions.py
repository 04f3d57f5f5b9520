import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest

from rollout.errors import NotRestored, ResourceDown, ToolError
from rollout.resource import Resource, tool
from rollout.sessions import LocalSessions, SessionTable
from rollout.trajectory import Score, StopReason, Task, ToolCall, Transcript

TASK = Task("t", ({"role": "user", "content": "Go."},))
EMPTY = Transcript((), StopReason.DONE)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Lab(Resource):
    """Sessions are numbers; what becomes of them is written down."""

    name = "lab"
    max_sessions = 3
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    seeded: int = 0
    ended: list[int] = field(default_factory=list[int])
    stuck: tuple[int, ...] = ()

    async def seed_session(self, task: Task, seed: int) -> int:
        if seed < 0:
            await self.gate.wait()
        self.seeded += 1
        return self.seeded

    @tool
    async def do(self, session: int, what: str) -> Any:
        """Do something.

        Args:
            what: What.
        """
        match what:
            case "hang":
                await asyncio.Event().wait()
            case "refuse":
                raise ToolError("not today")
            case "break":
                raise KeyError("bug")
            case "down":
                raise ResourceDown("no disk")
        return {"session": session}

    async def verify(self, session: int, transcript: Transcript) -> Score | float:
        if transcript.stop_reason is StopReason.TIMEOUT:
            await asyncio.Event().wait()
        return session

    async def close(self, session: int) -> None:
        self.ended.append(session)
        if session in self.stuck:
            raise RuntimeError("it will not go")


def do(what: str) -> ToolCall:
    return ToolCall("a", "do", f'{{"what": "{what}"}}')


async def test_a_session_is_seeded_used_judged_and_closed() -> None:
    table = SessionTable(Lab())
    session, messages = await table.seed(TASK, 0, 60)
    assert messages == TASK.messages
    assert (await table.call(session, do("it"), 5)).content == '{"session":1}'
    assert await table.verify(session, EMPTY, 5) == Score(1.0)
    await table.close(session)
    await table.close(session)
    assert (len(table), table.opened, table.closed) == (0, 1, 1)


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("refuse", "error: not today"),
        ("break", "error: KeyError: 'bug'"),
        ("hang", "error: do did not answer within 0.01 s"),
    ],
)
async def test_what_goes_wrong_in_a_tool_is_told_to_the_policy(what: str, content: str) -> None:
    table = SessionTable(Lab())
    session, _ = await table.seed(TASK, 0, 60)
    result = await table.call(session, do(what), 0.01 if what == "hang" else 5)
    assert (result.content, result.error) == (content, content.removeprefix("error: "))


async def test_a_tool_that_cannot_work_is_not_the_policys_doing() -> None:
    table = SessionTable(Lab())
    session, _ = await table.seed(TASK, 0, 60)
    with pytest.raises(ResourceDown):
        await table.call(session, do("down"), 5)


async def test_unknown_tools_and_bad_arguments_are_results() -> None:
    table = SessionTable(Lab())
    session, _ = await table.seed(TASK, 0, 60)
    assert (await table.call(session, ToolCall("a", "od", "{}"), 5)).content == (
        "error: there is no tool 'od'; did you mean 'do'?"
    )
    assert (await table.call(session, ToolCall("a", "do", "{"), 5)).error is not None


async def test_a_verifier_that_hangs_is_cut_off_and_scores_nothing() -> None:
    table = SessionTable(Lab())
    session, _ = await table.seed(TASK, 0, 60)
    with pytest.raises(TimeoutError):
        await table.verify(session, Transcript((), StopReason.TIMEOUT), 0.01)


async def test_forgotten_sessions_are_closed_when_their_time_is_up() -> None:
    clock, lab = Clock(), Lab()
    table = SessionTable(lab, clock)
    short, _ = await table.seed(TASK, 0, 10)
    long, _ = await table.seed(TASK, 0, 20)
    clock.now += 9.9
    assert await table.sweep() == 0
    clock.now += 0.1
    assert await table.sweep() == 1
    assert (lab.ended, table.expired, len(table)) == ([1], 1, 1)
    assert (await table.call(long, do("it"), 5)).error is None
    with pytest.raises(ResourceDown, match="closed or expired"):
        await table.call(short, do("it"), 5)
    await table.close(short)
    assert lab.ended == [1]


async def test_one_session_that_will_not_close_keeps_no_other_open(caplog: pytest.LogCaptureFixture) -> None:
    clock, lab = Clock(), Lab(stuck=(1,))
    table = SessionTable(lab, clock)
    for _ in range(3):
        await table.seed(TASK, 0, 10)
    clock.now += 10
    with caplog.at_level(logging.WARNING):
        assert await table.sweep() == 3
    assert (sorted(lab.ended), len(table)) == ([1, 2, 3], 0)
    assert "it will not go" in caplog.text


async def test_a_host_takes_no_more_than_it_may_also_all_at_once() -> None:
    lab = Lab()
    table = SessionTable(lab)
    seeding = [asyncio.create_task(table.seed(TASK, -1, 60)) for _ in range(5)]
    await asyncio.sleep(0)
    lab.gate.set()
    ends = await asyncio.gather(*seeding, return_exceptions=True)
    assert [isinstance(end, ResourceDown) for end in ends] == [False] * 3 + [True] * 2
    assert len(table) == 3


async def test_a_seed_that_fails_leaves_its_place_free() -> None:
    table = SessionTable(Lab())
    for _ in range(4):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await table.seed(TASK, -1, 60)
    assert (await table.seed(TASK, 0, 60))[0]


class Slow(Lab):
    """A session is what was done in it, in the order in which it ended."""

    restores = "snapshot"

    async def seed_session(self, task: Task, seed: int) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return []

    @tool
    async def do(self, session: list[str], what: str) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do something, after a while."""
        for _ in range(int(what)):
            await asyncio.sleep(0)
        session.append(what)
        return what

    async def snapshot(self, session: list[str]) -> bytes:
        if "7" in session:
            raise RuntimeError("the camera is broken")
        await asyncio.sleep(0)
        return " ".join(session).encode()

    async def restore(self, task: Task, seed: int, snapshot: bytes) -> list[str]:
        return snapshot.decode("ascii").split()


async def test_the_last_call_to_end_brings_the_sessions_state() -> None:
    table = SessionTable(Slow())
    session, _ = await table.seed(TASK, 0, 60)
    answers = await asyncio.gather(*(table.answer(session, do(what), 5) for what in ("4", "9", "2")))
    assert [(result.content, snapshot) for result, snapshot in answers] == [("4", None), ("9", b"2 4 9"), ("2", None)]
    again, _ = await table.seed(TASK, 0, 60, b"2 4 9")
    assert (await table.answer(again, do("0"), 5))[1] == b"2 4 9 0"


async def test_a_snapshot_that_another_call_runs_into_is_none() -> None:
    table = SessionTable(Slow())
    session, _ = await table.seed(TASK, 0, 60)
    first = asyncio.create_task(table.answer(session, do("0"), 5))
    while not table._open[session].state:  # noqa: ASYNC110 # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0)
    second = await table.answer(session, do("0"), 5)
    assert [(await first)[1], second[1]] == [None, b"0 0"]


async def test_a_snapshot_that_cannot_be_taken_does_not_cost_the_call(caplog: pytest.LogCaptureFixture) -> None:
    table = SessionTable(Slow())
    session, _ = await table.seed(TASK, 0, 60)
    result, snapshot = await table.answer(session, do("7"), 5)
    assert (result.content, result.error, snapshot) == ("7", None, None)
    assert "the camera is broken" in caplog.text


async def test_a_snapshot_that_says_nothing_opens_no_session() -> None:
    table = SessionTable(Slow())
    with pytest.raises(NotRestored, match="UnicodeDecodeError"):
        await table.seed(TASK, 0, 60, b"\xff")
    assert (len(table), table.opened) == (0, 0)


async def test_a_local_session_offers_what_a_host_does() -> None:
    lab = Lab()
    seeded = await LocalSessions(SessionTable(lab)).seed_session(TASK, 0, 60)
    assert ([spec.name for spec in seeded.tools], seeded.messages, seeded.text_tool) == (["do"], TASK.messages, None)
    result, snapshot = await seeded.session.call(do("it"), 5)
    assert (result.error, snapshot) == (None, None)
    assert (await seeded.session.verify(EMPTY, 5)).reward == 1.0
    await seeded.session.close()
    assert lab.ended == [1]
