"""A policy that says fixed lines: the fake that ships, for tests, examples and the benchmark."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence

from rollout.streaming import Delta, Heard
from rollout.template import ChatTemplate
from rollout.trajectory import Completion, FinishReason, Prompt, VersionSpan


def encode_lines(template: ChatTemplate, lines: Sequence[str]) -> list[list[int]]:
    """Lines as a model would sample them: their ids and the end of turn."""
    eos = sorted(template.eos_ids)[:1]
    return [template.encode(line) + eos for line in lines]


class ScriptedPolicy:
    """Says the line of its turn; the last line repeats. `script(prompt)` may choose the lines by prompt instead."""

    def __init__(
        self,
        template: ChatTemplate,
        script: Sequence[str] | Callable[[Prompt], Sequence[str]],
        latency_seconds: float = 0.0,
        piece: int = 1,
    ) -> None:
        """Who listens hears `piece` tokens at a time, evenly over the latency."""
        self._template = template
        self._script = script
        self._latency = latency_seconds
        self._piece = piece

    async def complete(self, prompt: Prompt) -> Completion:
        await asyncio.sleep(self._latency)
        return self._said(prompt)

    async def stream(self, prompt: Prompt, heard: Heard) -> Completion:
        """See StreamingPolicy."""
        said = self._said(prompt)
        ids = said.ids or ()
        clock = asyncio.get_running_loop().time
        began = clock()
        for start in range(0, len(ids), self._piece):
            piece = ids[start : start + self._piece]
            await asyncio.sleep(began + self._latency * (start + len(piece)) / len(ids) - clock())
            heard(Delta(piece))
        return said

    def _said(self, prompt: Prompt) -> Completion:
        lines = self._script(prompt) if callable(self._script) else self._script
        line = lines[min(prompt.turn, len(lines) - 1)]
        ids = array("i", encode_lines(self._template, [line])[0])
        cut = ids[: prompt.max_tokens]
        return Completion(
            finish_reason=FinishReason.STOP if len(cut) == len(ids) else FinishReason.LENGTH,
            ids=cut,
            logprobs=array("f", bytes(4 * len(cut))),
            versions=(VersionSpan("scripted", 0, len(cut)),),
            cached_tokens=0,
            prompt_tokens=len(prompt.ids),
        )
