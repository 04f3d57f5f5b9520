"""Who decides about a tool call: by rule, from a script, or by asking a function or a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from rollout.agents.approval_queue import Request
from rollout.agents.approval_section import Approver, PolicyConfig
from rollout.agents.aside import Asks, Told
from rollout.agents.calling import asked
from rollout.agents.decisions import WORDS, Approved, Decision, Denied, TimedOut, decision
from rollout.errors import BoundaryError, boundary
from rollout.references import load_function
from rollout.trajectory import Failure, FailureKind, Message

_INSTRUCTIONS = "You decide whether an agent may make a tool call."
_FORM = (
    'Answer with a JSON object and nothing else: {"decision": "approve"}, {"decision": "deny", "reason": "..."}, '
    '{"decision": "modify", "arguments": {...}}, {"decision": "redirect", "text": "..."} or '
    '{"decision": "terminate", "reason": "..."}.'
)


_SCHEMA = {
    "type": "object",
    "properties": {
        "decision": {"enum": list(WORDS)},
        "reason": {"type": "string", "maxLength": 400},
        "arguments": {"type": "object"},
        "text": {"type": "string", "maxLength": 400},
    },
    "required": ["decision"],
    "additionalProperties": False,
}
"""What a model's answer is held to where the engine can."""


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """Who decides about which calls."""

    tools: tuple[str, ...] = ("*",)
    when: Callable[..., Any] | None = None
    approver: Approver = "auto"
    message: str = "not permitted"
    script: tuple[Any, ...] = ()
    function: Callable[..., Any] | None = None
    instructions: str | None = None

    @staticmethod
    def of(config: PolicyConfig, key: str) -> ApprovalPolicy:
        """With its functions loaded. Raises UserError as `load_function` does."""
        when = None if config.when is None else load_function(config.when, f"{key}.when")
        function = None if config.function is None else load_function(config.function, f"{key}.function")
        return ApprovalPolicy(
            config.tools, when, config.approver, config.message, config.script, function, config.instructions
        )

    def names(self, tool: str) -> bool:
        """Whether the policy is about this tool."""
        return any(fnmatchcase(tool, pattern) for pattern in self.tools)

    async def reply(
        self, request: Request, model: Asks | None, seconds: float
    ) -> tuple[Decision | TimedOut, Told | None]:
        """What the approver decides, a person aside, and what a model said for that.

        Raises BoundaryError when the approver breaks or answers nonsense.
        """
        match self.approver:
            case "auto":
                return Approved(), None
            case "deny":
                return Denied(self.message), None
            case "scripted":
                return decision(self.script[min(request.turn, len(self.script) - 1)]), None
            case "function" if self.function is not None:
                return await _of_function(self.function, request, seconds), None
            case "model" if model is not None:
                return await _of_model(model, self.instructions or _INSTRUCTIONS, request, seconds)
            case _:
                raise AssertionError(f"approver {self.approver} has nobody to ask")


async def _of_function(function: Callable[..., Any], request: Request, seconds: float) -> Decision | TimedOut:
    where = f"approval of {request.tool}"
    try:
        return decision(await asked(function, (request,), seconds, where))
    except ValueError as error:
        raise BoundaryError(Failure(FailureKind.AGENT, where, str(error))) from error
    except BoundaryError as error:
        if isinstance(error.__cause__, TimeoutError):
            return TimedOut(seconds)
        raise


async def _of_model(
    model: Asks, instructions: str, request: Request, seconds: float
) -> tuple[Decision | TimedOut, Told | None]:
    told = json.dumps({"tool": request.tool, "arguments": request.arguments}, ensure_ascii=False)
    messages: list[Message] = [
        {"role": "system", "content": f"{instructions}\n{_FORM}"},
        {"role": "user", "content": told},
    ]
    try:
        async with boundary(FailureKind.MODEL, f"approval of {request.tool}", seconds):
            told = await model(messages, _SCHEMA, request.id, seconds)
            return _read(told.text), told
    except BoundaryError as error:
        if isinstance(error.__cause__, TimeoutError):
            return TimedOut(seconds), None
        raise
    raise AssertionError("a boundary swallows nothing")


def _read(text: str) -> Decision:
    """What a model said, as a decision. One that says nothing of the kind has not approved."""
    begin, end = text.find("{"), text.rfind("}")
    try:
        return decision(json.loads(text[begin : end + 1]) if 0 <= begin < end else {"decision": text.strip().lower()})
    except ValueError:
        return Denied("the approver gave no decision")
