"""Whether a completion can be what an engine sampled, and a score what a row can hold.

An engine that is broken seldom says so: it returns ids no tokenizer knows, logprobs of another length, a count that is
not that of the prompt. None of that may become a turn: it would be learned from. It is the model's failure, and the
sample is played again.
"""

from __future__ import annotations

import math

from rollout.errors import ResourceDown
from rollout.trajectory import Completion, FinishReason, Prompt, Score


def check_completion(prompt: Prompt, completion: Completion, vocabulary: int | None) -> None:
    """Raises ResourceDown with what is wrong with a completion of `prompt`; `vocabulary` is how many ids there are,
    None when nobody knows. One pass over ids and logprobs."""
    if (wrong := _wrong(prompt, completion, vocabulary)) is not None:
        raise ResourceDown(f"{completion.replica or 'the engine'} gave garbage: {wrong}")


def check_score(score: Score) -> Score:
    """The score in plain numbers. A verifier may return anything; raises what makes it none."""
    reward = float(score.reward)
    if not math.isfinite(reward):
        raise ValueError(f"the verifier's reward is {reward}")
    components = {str(name): float(value) for name, value in score.components.items()}
    return Score(reward, components, {str(name): float(value) for name, value in score.metrics.items()})


def _wrong(prompt: Prompt, completion: Completion, vocabulary: int | None) -> str | None:
    read, sampled = len(prompt.ids), completion.ids
    if read and completion.prompt_tokens not in (None, read):
        return f"it read {completion.prompt_tokens} prompt tokens of {read}"
    if sampled is None or completion.finish_reason is FinishReason.ABORT:
        return None
    if completion.sampled_tokens not in (None, len(sampled)):
        return f"{len(sampled)} token ids for {completion.sampled_tokens} sampled tokens"
    if not 0 < len(sampled) <= prompt.max_tokens:
        return f"{len(sampled)} sampled tokens, expected 1 to {prompt.max_tokens}"
    if min(sampled) < 0 or (vocabulary is not None and max(sampled) >= vocabulary):
        return f"token ids from {min(sampled)} to {max(sampled)}, which are none of the model's"
    return _wrong_logprobs(completion, len(sampled))


def _wrong_logprobs(completion: Completion, sampled: int) -> str | None:
    logprobs = completion.logprobs
    if logprobs is None:
        return None
    if len(logprobs) != sampled:
        return f"{len(logprobs)} logprobs for {sampled} tokens"
    return None if math.isfinite(sum(logprobs)) else "a logprob that is no finite number"
