"""What a request is refused with, in each API's own shape.

OpenAI: `{"error": {"message", "type", "param", "code"}}`; Anthropic: `{"type": "error", "error": {"type", "message"},
"request_id"}`. The official clients choose their exception by the status.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from rollout.errors import RolloutError


class Kind(StrEnum):
    """Why a request is not answered. The values are Anthropic's names where it has one."""

    INVALID = "invalid_request_error"
    AUTHENTICATION = "authentication_error"
    PERMISSION = "permission_error"
    NOT_FOUND = "not_found_error"
    TOO_LARGE = "request_too_large"
    RATE_LIMIT = "rate_limit_error"
    OVERLOADED = "overloaded_error"
    TIMEOUT = "timeout_error"
    INTERNAL = "api_error"


_STATUS = {
    Kind.INVALID: 400,
    Kind.AUTHENTICATION: 401,
    Kind.PERMISSION: 403,
    Kind.NOT_FOUND: 404,
    Kind.TOO_LARGE: 413,
    Kind.RATE_LIMIT: 429,
    Kind.OVERLOADED: 503,
    Kind.TIMEOUT: 504,
    Kind.INTERNAL: 500,
}
_ANTHROPIC_OVERLOADED = 529
_OPENAI_TYPES = {
    Kind.AUTHENTICATION: "authentication_error",
    Kind.PERMISSION: "permission_error",
    Kind.RATE_LIMIT: "rate_limit_error",
    Kind.OVERLOADED: "server_error",
    Kind.TIMEOUT: "server_error",
    Kind.INTERNAL: "server_error",
}
THREADS = "thread_unsupported_request"
"""The code by which a client of Anthropic's knows that it is to go on without a thread, a conversation that the server
holds (the beta message-threads-2026-08-12)."""
_OPENAI_CODES = {Kind.RATE_LIMIT: "rate_limit_exceeded", Kind.OVERLOADED: "overloaded", Kind.TIMEOUT: "timeout"}


class Refused(RolloutError):
    """A request is not answered, or no further. `param` is the place in the body; `code` OpenAI's finer word.

    `retry_after` is seconds until asking again may help.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[Refused], tuple[Any, ...]]:
        return Refused, (self.kind, self.message, self.param, self.code, self.retry_after)

    @property
    def status(self) -> int:
        """The HTTP status of both APIs, but for overload: see `anthropic_status`."""
        return _STATUS[self.kind]

    @property
    def anthropic_status(self) -> int:
        """Anthropic says 529 when it is overloaded."""
        return _ANTHROPIC_OVERLOADED if self.kind is Kind.OVERLOADED else self.status

    @property
    def openai_code(self) -> str | None:
        """The error's `code` in OpenAI's APIs."""
        return self.code or _OPENAI_CODES.get(self.kind)


def invalid(param: str, expected: str) -> Refused:
    """A 400 that names the place in the body and says what is wrong with it."""
    return Refused(Kind.INVALID, f"{param}: {expected}" if param else expected, param or None)


def too_long(tokens: int, limit: int) -> Refused:
    """A prompt that leaves no room in the model: in the words that clients of both vendors look for."""
    message = f"prompt is too long: {tokens} tokens > {limit} maximum (the model's maximum context length)"
    return Refused(Kind.INVALID, message, "messages", "context_length_exceeded")


def no_such_model(name: str) -> Refused:
    """A 404 for a model that is not served."""
    return Refused(Kind.NOT_FOUND, f"model: '{name}' is not served here", "model", "model_not_found")


def openai_error(refused: Refused) -> dict[str, Any]:
    """The body of both OpenAI APIs."""
    kind = _OPENAI_TYPES.get(refused.kind, "invalid_request_error")
    error = {"message": refused.message, "type": kind, "param": refused.param, "code": refused.openai_code}
    return {"error": error}


def anthropic_error(refused: Refused, request_id: str | None = None) -> dict[str, Any]:
    """The body of Anthropic's API."""
    error: dict[str, Any] = {"type": str(refused.kind), "message": refused.message}
    if refused.code == THREADS:
        error["details"] = {"error_code": THREADS}
    return {"type": "error", "error": error, "request_id": request_id}


def malformed(error: Exception) -> Refused:
    """What a decoder says of a body, in the words of the others: the place first, and no dollar sign."""
    if isinstance(error, RecursionError):
        return invalid("", "the body is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return invalid("", "the body is not UTF-8")
    what, _, place = str(error).partition(" - at `$")
    what = what.replace("`", "")
    what = what[:1].lower() + what[1:]
    if not isinstance(error, msgspec.ValidationError):
        return invalid("", f"the body is not JSON: {what}")
    return invalid(place.rstrip("`").removeprefix("."), what)
