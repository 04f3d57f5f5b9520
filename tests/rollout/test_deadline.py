"""Deadlines of one loop in one set: they end what they bound, and nothing else, as asyncio's own do."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from rollout import deadlines
from rollout.agents.calling import asked
from rollout.deadlines import deadline
from rollout.errors import BoundaryError


@pytest.fixture(params=["timer", "set"], autouse=True)
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways a deadline is kept, for deadlines as short as a test's."""
    monkeypatch.setattr(deadlines, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(deadlines, "NEAR", 5.0 if request.param == "timer" else -1.0)
    yield request.param


async def test_what_has_not_ended_by_then_is_ended() -> None:
    bound = deadline(0.02)
    with pytest.raises(TimeoutError):
        async with bound:
            await asyncio.sleep(60)
    assert bound.expired()


async def test_what_ends_in_time_is_left_alone() -> None:
    async with deadline(0.03) as bound:
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    assert not bound.expired()


async def test_the_inner_of_two_ends_alone() -> None:
    async with deadline(60) as outer:
        with pytest.raises(TimeoutError):
            async with deadline(0.02):
                await asyncio.sleep(60)
        await asyncio.sleep(0.05)
    assert not outer.expired()


async def test_the_outer_of_two_ends_both() -> None:
    inner = deadline(60)
    with pytest.raises(TimeoutError):
        async with deadline(0.02), inner:
            await asyncio.sleep(60)
    assert not inner.expired()


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def waits() -> None:
        async with deadline(60):
            await asyncio.sleep(60)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_stays_one_when_the_time_is_up_too() -> None:
    async def waits() -> None:
        async with deadline(0.02):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                asyncio.current_task().cancel()  # pyright: ignore[reportOptionalMemberAccess]
                raise

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(waits())


async def test_an_error_of_its_own_is_kept_when_the_time_is_up() -> None:
    with pytest.raises(ValueError, match="own"):
        async with deadline(0.02):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ValueError("own") from None
    await asyncio.sleep(0)  # the task was not left cancelled


async def test_thousands_end_each_in_its_time(kept: str) -> None:
    async def one(number: int) -> bool:
        try:
            async with deadline(0.02 if number % 2 else 60):
                await asyncio.sleep(60 if number % 2 else 0.05)
        except TimeoutError:
            return True
        return False

    ended = await asyncio.gather(*(one(number) for number in range(2000)))
    assert [number % 2 == 1 for number in range(2000)] == ended


def test_nothing_is_kept_of_a_loop_that_has_ended() -> None:
    async def some() -> None:
        async with deadline(60):
            await asyncio.sleep(0)

    before = len(deadlines._LOOPS)  # pyright: ignore[reportPrivateUsage]
    for _ in range(5):
        asyncio.run(some())
    gc.collect()
    assert len(deadlines._LOOPS) <= before + 1  # pyright: ignore[reportPrivateUsage]


async def at_once(value: int) -> int:
    return value + 1


async def later(value: int) -> int:
    await asyncio.sleep(0.01)
    return value + 1


async def raises_at_once(value: int) -> int:
    raise ValueError(f"no {value}")


async def raises_later(value: int) -> int:
    await asyncio.sleep(0)
    raise ValueError(f"no {value}")


async def waits_long(value: int) -> int:
    try:
        await asyncio.sleep(60)
    finally:
        ENDED.append(value)
    return value


ENDED: list[int] = []


async def test_a_function_answers_whether_it_waits_or_not() -> None:
    assert [await asked(one, (1,), 5.0, "it") for one in (at_once, later)] == [2, 2]


@pytest.mark.parametrize("function", [raises_at_once, raises_later])
async def test_what_a_function_raises_is_a_failure_of_the_agent(function: object) -> None:
    with pytest.raises(BoundaryError, match="agent at it: ValueError: no 1"):
        await asked(function, (1,), 5.0, "it")  # pyright: ignore[reportArgumentType]


async def test_a_function_that_waits_too_long_is_ended_where_it_waits() -> None:
    with pytest.raises(BoundaryError, match=r"it: no answer within 0\.05 s"):
        await asked(waits_long, (7,), 0.05, "it")
    assert ENDED.pop() == 7


async def test_a_function_is_told_of_a_cancellation() -> None:
    task = asyncio.create_task(asked(waits_long, (8,), 60.0, "it"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ENDED.pop() == 8
