"""Error vocabulary.

    RolloutError
      UserError          the input is wrong: one line, exit status 2
      ToolError          a tool tells the policy what it did wrong; the episode goes on
      ResourceDown       a tool or verifier cannot work at all; the episode fails and is retried
      BoundaryError      something outside the policy broke; carries the Failure that goes into the row

An episode that fails is data; a bug is a crash. Classification happens once, in `boundary`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from rollout.trajectory import Failure, FailureKind


class RolloutError(Exception):
    """Base of everything this project raises on purpose."""


class UserError(RolloutError):
    """Input a person can correct. The message is one line: file, key, what was expected."""


class ToolError(RolloutError):
    """Raised by a tool: the message goes to the policy as the tool's result."""


class ResourceDown(RolloutError):
    """Raised by a tool, verifier or transport that cannot do its work: never shown to the policy."""


class BoundaryError(RolloutError):
    """An await that left the process failed. `failure` says which and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind} at {failure.where}: {failure.message}")
        self.failure = failure

    def __reduce__(self) -> tuple[type[BoundaryError], tuple[Failure]]:
        return BoundaryError, (self.failure,)


@asynccontextmanager
async def boundary(kind: FailureKind, where: str, seconds: float) -> AsyncIterator[None]:
    """Bounds one await that leaves the process and classifies whatever goes wrong in it.

    Raises BoundaryError for a deadline of `seconds` and for any exception but cancellation, bugs in our own
    assertions, failures already classified and wrong input.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except (BoundaryError, UserError, AssertionError):
        raise
    except TimeoutError as error:
        message = str(error) or f"no answer within {seconds:.1f} s"
        raise BoundaryError(Failure(kind, where, message)) from error
    except Exception as error:  # the one place where foreign errors become data
        raise BoundaryError(Failure(kind, where, describe(error))) from error


def describe(error: BaseException) -> str:
    """One line for a row or a log: type and first line of the message, at most 500 characters."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:500] if first else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or the known names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
