"""What the boundary makes of everything that can go wrong behind it."""

import asyncio
import pickle

import pytest
from fakes import hang

from rollout.errors import BoundaryError, ResourceDown, RolloutError, UserError, boundary, describe, nearest
from rollout.trajectory import Failure, FailureKind


async def broken(error: BaseException) -> Failure:
    """The failure that an error becomes."""
    with pytest.raises(BoundaryError) as caught:
        async with boundary(FailureKind.TOOL, "add", 10):
            raise error
    assert caught.value.__cause__ is error
    return caught.value.failure


@pytest.mark.parametrize("error", [ValueError("odd"), OSError("odd"), AssertionError("odd"), ResourceDown("odd")])
async def test_foreign_errors_become_failures(error: Exception) -> None:
    assert await broken(error) == Failure(FailureKind.TOOL, "add", f"{type(error).__name__}: odd")


async def test_invariant_5_a_deadline_is_told_from_one_that_passed_elsewhere() -> None:
    with pytest.raises(BoundaryError, match=r"no answer within 0\.0 s"):
        async with boundary(FailureKind.TOOL, "add", 0.01):
            await hang()
    assert (await broken(TimeoutError())).message == "a deadline over there passed"
    assert (await broken(TimeoutError("connecting"))).message == "connecting"


@pytest.mark.parametrize("error", [UserError("x"), BoundaryError(Failure(FailureKind.MODEL, "m", "x"))])
async def test_what_is_classified_already_passes(error: RolloutError) -> None:
    with pytest.raises(RolloutError) as caught:
        async with boundary(FailureKind.TOOL, "add", 10):
            raise error
    assert caught.value is error


async def test_our_own_cancellation_passes_and_a_foreign_one_is_a_failure() -> None:
    assert (await broken(asyncio.CancelledError())).message == "the call was cancelled over there"

    async def bounded() -> None:
        async with boundary(FailureKind.TOOL, "add", 10):
            await hang()

    task = asyncio.create_task(bounded())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_outer_deadline_is_the_outer_ones() -> None:
    with pytest.raises(BoundaryError) as caught:
        async with boundary(FailureKind.LOST, "outer", 0.01), boundary(FailureKind.TOOL, "inner", 10):
            await hang()
    assert caught.value.failure.where == "outer"


def test_a_failure_keeps_itself_through_pickling() -> None:
    error = BoundaryError(Failure(FailureKind.VERIFY, "counter", "gone"))
    again = pickle.loads(pickle.dumps(error))
    assert (again.failure, str(again)) == (error.failure, "verify at counter: gone")


def test_an_error_is_described_in_one_bounded_line() -> None:
    assert describe(ValueError("first\nsecond")) == "ValueError: first"
    assert describe(KeyError()) == "KeyError"
    assert len(describe(ValueError("x" * 10_000))) == 500


def test_the_nearest_name_is_told_or_some_of_the_known_ones() -> None:
    assert nearest("replica", ["replicas", "retries"]) == "; did you mean 'replicas'?"
    assert nearest("xyz", ["b", "a"]) == "; known: a, b"
    assert nearest("xyz", [f"{number:03}" for number in range(100)]).endswith("011 and 88 more")
