"""Asking a model something that is no turn of the episode: a conversation of its own, one call long.

What it says is not the policy's doing, so it is in no turn and nothing of it is trained on, also where it is the same
model that is being trained; who asks puts what it took into the row's events.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from rollout.errors import ResourceDown
from rollout.protocols import Ledger, Placing, Policy
from rollout.soundness import check_completion
from rollout.trajectory import Completion, Extras, FinishReason, Json, Message, Prompt, Sampling

MOST_TOKENS = 512
"""What such an answer may take."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a model said."""

    text: str
    model: str
    prompt_tokens: int | None = None
    sampled_tokens: int = 0
    version: str | None = None
    """Of the weights that sampled the last of it; None where nobody tells."""
    usd: float | None = None
    """None where that is not known."""


Asks = Callable[[Sequence[Message], Mapping[str, Json], str, float], Awaitable[Told]]
"""A model: what it says to messages, held to a JSON schema where it can be, asked under a name, within seconds."""


@dataclass(frozen=True, slots=True)
class Model:
    """An `Asks` of a job's own model. The likeliest token counts: who decides is to decide the same again."""

    policy: Policy
    new_ledger: Callable[[], Ledger]
    name: str
    tokens: bool
    """Prompts are rendered here; a grammar then holds the answer to its schema."""
    context: int | None = None
    """Positions that the model reaches; None where nobody knows."""
    priced: Callable[[Completion], float | None] | None = None
    """What a call costs, in USD."""

    async def __call__(
        self, messages: Sequence[Message], schema: Mapping[str, Json], name: str, seconds: float
    ) -> Told:
        """Raises whatever the policy raises; ValueError where the question leaves no room for an answer."""
        ledger = self.new_ledger()
        ledger.extend(messages, ())
        ids, shown = ledger.prompt()
        room = MOST_TOKENS if self.context is None else min(MOST_TOKENS, self.context - len(ids))
        if room <= 0:
            raise ValueError(f"{self.name}: {len(ids)} tokens leave no room for an answer")
        extras = Extras(grammar={"json": schema}) if self.tokens else Extras()
        prompt = Prompt(name, name, 0, ids, shown, (), room, Sampling(temperature=0.0), seconds, extras)
        try:
            completion = await self.policy.complete(prompt)
        finally:
            if isinstance(self.policy, Placing):
                self.policy.closed(name)
        check_completion(prompt, completion, None)
        if completion.finish_reason is FinishReason.ABORT:
            raise ResourceDown(f"{completion.replica or self.name}: the engine aborted")
        text = ledger.record(completion).message["content"]
        version = completion.versions[-1].version if completion.versions else None
        usd = None if self.priced is None else self.priced(completion)
        return Told(text, self.name, completion.prompt_tokens, completion.num_sampled, version, usd)
