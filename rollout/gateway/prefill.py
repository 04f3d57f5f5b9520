"""Reading ahead: a prompt that will come is sent through the engine while the tools before it run.

After a reply with calls a program runs its tools and sends the conversation again, with their results behind it. Where
the template tells that conversation in other tokens than the policy sampled, the engine's cache ends at the first that
differs; so the conversation as it will be told is sampled from once, for one token that nobody reads. (The way of
NVIDIA Dynamo's speculative prefill.)
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import replace

from rollout.deadlines import deadline
from rollout.errors import RolloutError
from rollout.gateway.asking import Call
from rollout.gateway.counts import Counts
from rollout.gateway.scribe import as_read
from rollout.gateway.served import Served
from rollout.serving.hints import HintsConfig
from rollout.turn import NO_EXTRAS, Prompt, Sampling
from rollout.wire.reply import Whole

SECONDS = 60.0
"""What reading ahead may take: later, the request is there itself."""
LEAST = 32
"""Tokens that differ from what is cached, at least: fewer are not worth a request."""


class Prefills:
    """What is being read ahead."""

    def __init__(self, served: Served, config: HintsConfig, counts: Counts) -> None:
        self._served = served
        self._priority = config.priority + 1 if config.priority else 0
        """Behind all that anybody asks for."""
        self._counts = counts
        self._tasks: set[asyncio.Task[None]] = set()

    def wants(self, call: Call) -> bool:
        """Whether what follows this call is to be read ahead. A scribe that remembers tells the policy's own tokens:
        they are cached."""
        return call.whose.hints.speculative_prefill and call.whose.scribe is self._served.anew

    def after(self, call: Call, sampled: Sequence[int], reply: Whole) -> None:
        """The call has ended so; `sampled` are the ids of its completion."""
        if not self.wants(call) or not reply.calls:
            return
        if (prompt := self._following(call, sampled, reply)) is not None:
            task = asyncio.create_task(self._read(prompt))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends all of it."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _following(self, call: Call, sampled: Sequence[int], reply: Whole) -> Prompt | None:
        """The prompt that will come, as far as it is known; None when all of it is cached."""
        variables = call.asked.template_variables
        template = self._served.template.using(variables) if variables else self._served.template
        messages = (*call.prompt.messages, reply.message)
        try:
            ids = template.encode(template.render(as_read(template, messages), call.prompt.tools, prompted=False))
        except RolloutError:  # the template does not take it: nor will it later
            return None
        cached = [*call.prompt.ids, *sampled]
        if len(ids) >= self._served.profile.context or len(ids) - _same(ids, cached) < LEAST:
            return None
        return replace(
            call.prompt,
            request_id=f"{call.prompt.request_id}_ahead",
            turn=call.prompt.turn + 1,
            ids=array("i", ids),
            messages=messages,
            max_tokens=1,
            sampling=Sampling(),
            seconds=SECONDS,
            extras=NO_EXTRAS,
            priority=self._priority,
        )

    async def _read(self, prompt: Prompt) -> None:
        try:
            async with deadline(prompt.seconds):
                await self._served.policy.complete(prompt)
        except (RolloutError, TimeoutError):
            return  # nobody waits for it
        self._counts.prefilled += 1


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    for at, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return at
    return min(len(one), len(other))
