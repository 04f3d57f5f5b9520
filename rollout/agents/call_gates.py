"""What guardrails and hooks make of tool calls: the rulings before a batch, and what stands around each call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rollout.agents.arguments import as_arguments
from rollout.agents.guardrails import Block, GuardrailEvent, Guardrails, Pass
from rollout.agents.hooks import Hooks
from rollout.agents.tool_rules import Ruling
from rollout.tool_use import skipped
from rollout.trajectory import ToolCall, ToolResult


@dataclass(slots=True)
class CallGates:
    """The `Around` of one episode's tool box, and where the events of its guardrails are gathered."""

    guardrails: Guardrails | None = None
    hooks: Hooks | None = None
    events: list[GuardrailEvent] = field(default_factory=list[GuardrailEvent])

    async def admitted(self, rulings: Sequence[Ruling]) -> tuple[Ruling, ...]:
        """What the guardrails on `tool_input` make of calls that are to be made: to be asked before approval is.

        Raises BoundaryError when one breaks that is to fail the episode.
        """
        if self.guardrails is None or not self.guardrails.on("tool_input"):
            return tuple(rulings)
        return tuple([await self._admitted(self.guardrails, one) for one in rulings])

    async def before(self, call: ToolCall) -> None:
        """See Around. Tells `on_tool_call`."""
        if self.hooks is not None:
            await self.hooks.observe("on_tool_call", call.name, as_arguments(call.arguments) or {})

    async def after(self, call: ToolCall, result: ToolResult) -> ToolResult:
        """See Around. Tells `on_tool_result`, then asks the guardrails on `tool_output`."""
        if self.hooks is not None:
            await self.hooks.observe("on_tool_result", call.name, result.content)
        if self.guardrails is None or not self.guardrails.on("tool_output"):
            return result
        guarded = await self.guardrails.check("tool_output", result.content, call.name, call.id)
        self.events += guarded.events
        if isinstance(guarded.verdict, Pass):
            return result if guarded.value == result.content else replace(result, content=guarded.value)
        why = guarded.verdict.reason if isinstance(guarded.verdict, Block) else guarded.verdict.message
        return replace(result, content=f"error: {why}", error=why)

    async def _admitted(self, guardrails: Guardrails, ruling: Ruling) -> Ruling:
        if isinstance(ruling, ToolResult):
            return ruling
        if (arguments := as_arguments(ruling.arguments)) is None:
            return skipped("the arguments of a tool call must be a JSON object")
        guarded = await guardrails.check("tool_input", arguments, ruling.name, ruling.id)
        self.events += guarded.events
        if isinstance(guarded.verdict, Pass):
            if not any(event.decision == "modify" for event in guarded.events):
                return ruling
            return replace(ruling, arguments=json.dumps(guarded.value, ensure_ascii=False))
        return skipped(guarded.verdict.reason if isinstance(guarded.verdict, Block) else guarded.verdict.message)
