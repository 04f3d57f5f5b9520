"""Error vocabulary.

    RolloutError
      Stalled            a run comes no further for now: what it has is kept, exit status 75
      UserError          the input is wrong: one line, exit status 2
      ToolError          a tool tells the policy what it did wrong; the episode goes on
      ContextExceeded    the engine says that a prompt does not fit the model; the episode is truncated
      ResourceDown       a tool or verifier cannot work at all; the episode fails and is retried
        Unavailable      not now: asking again may help
        NotRestored      a session cannot be made from its snapshot: the episode starts again
      BoundaryError      something outside the policy broke; carries the Failure that goes into the row

An episode that fails is data; a bug is a crash. Classification happens once, in `boundary`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import difflib
import traceback
from collections.abc import Iterable
from types import TracebackType

from rollout.deadlines import deadline
from rollout.trajectory import Failure, FailureKind

_LISTED = 12
"""Known names an error lists at most."""


class RolloutError(Exception):
    """Base of everything this project raises on purpose."""


class UserError(RolloutError):
    """Input a person can correct. The message is one line: file, key, what was expected."""


class Stalled(RolloutError):
    """Nothing goes on although nothing is known to be wrong: worth another try, from what is committed."""


class ToolError(RolloutError):
    """Raised by a tool: the message goes to the policy as the tool's result."""


class ContextExceeded(RolloutError):
    """Raised by a policy whose engine alone knows how long a prompt is: this one does not fit."""


class ResourceDown(RolloutError):
    """Raised by a tool, verifier or transport that cannot do its work: never shown to the policy."""


class Unavailable(ResourceDown):
    """Raised by what is gone, restarting or full: whoever has time left may ask again."""


class NotRestored(ResourceDown):
    """Raised for a snapshot that no session can be made from."""


class BoundaryError(RolloutError):
    """An await that left the process failed. `failure` says which and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind} at {failure.where}: {failure.message}")
        self.failure = failure

    def __reduce__(self) -> tuple[type[BoundaryError], tuple[Failure]]:
        return BoundaryError, (self.failure,)


class boundary(deadline):
    """Bounds one await that leaves the process and classifies whatever goes wrong in it.

    Raises BoundaryError for a deadline of `seconds` and for any exception, also a cancellation that this task was
    not asked for; lets through our own cancellation, failures already classified and wrong input.
    """

    __slots__ = ("_kind", "_where")

    def __init__(self, kind: FailureKind, where: str, seconds: float) -> None:
        super().__init__(seconds)
        self._kind, self._where = kind, where

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self.expired():
            await super().__aexit__(kind, error, trace)
            return
        try:
            await super().__aexit__(kind, error, trace)
        except TimeoutError as late:
            error = late
        if error is not None and (wrong := self._classified(error)) is not None:
            raise wrong from error

    def _classified(self, error: BaseException) -> BoundaryError | None:
        """What an error is over here; None for one that goes on as it is."""
        match error:
            case BoundaryError() | UserError():
                return None
            case TimeoutError():
                own = f"no answer within {self.seconds:.1f} s" if self.expired() else "a deadline over there passed"
                what = str(error) or own
            case asyncio.CancelledError():
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    return None
                what = "the call was cancelled over there"
            case Exception():  # the one place where foreign errors become data
                what = describe(error)
            case _:
                return None
        return BoundaryError(Failure(self._kind, self._where, what))


def describe(error: BaseException) -> str:
    """One line for a row or a log: type and first line of the message, at most 500 characters."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:500] if first else type(error).__name__


def raised_in(error: BaseException, file: str) -> str:
    """`FILE:LINE: what` of an error in code that is not ours: the last line of `file` that led to it, if one did."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}:{lines[-1]}: {describe(error)}" if lines else f"{file}: {describe(error)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or some of the known names when none is close."""
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return f"; did you mean '{close[0]}'?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; known: {', '.join(names[:_LISTED])}{more}"
