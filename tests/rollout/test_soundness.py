"""What an engine may not have sampled: it must never become a turn."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from rollout.errors import ResourceDown
from rollout.soundness import check_completion
from rollout.trajectory import Completion, FinishReason, Prompt, Sampling

PROMPT = Prompt("r", "s", 0, [1, 2, 3], (), (), 4, Sampling(), 1.0)
SOUND = Completion(FinishReason.STOP, ids=[5, 9], logprobs=[-0.1, 0.0], prompt_tokens=3)
VOCABULARY = 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_tokens": 4}, "read 4 prompt tokens of 3"),
        ({"sampled_tokens": 3}, "2 token ids for 3 sampled tokens"),
        ({"ids": []}, "0 sampled tokens"),
        ({"ids": [1] * 5}, "5 sampled tokens, expected 1 to 4"),
        ({"ids": [5, 10]}, "none of the model's"),
        ({"ids": array("i", [-1, 5])}, "none of the model's"),
        ({"logprobs": [-0.1]}, "1 logprobs for 2 tokens"),
        ({"logprobs": [-0.1, float("nan")]}, "no finite number"),
        ({"logprobs": [-0.1, float("-inf")]}, "no finite number"),
    ],
)
def test_garbage_is_named_with_the_replica_that_gave_it(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ResourceDown, match=f"replica-7 gave garbage: .*{said}"):
        check_completion(PROMPT, replace(SOUND, replica="replica-7", **changes), VOCABULARY)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "completion",
    [
        SOUND,
        replace(SOUND, ids=None, logprobs=None, prompt_tokens=None),
        replace(SOUND, ids=[], logprobs=[], finish_reason=FinishReason.ABORT),
        replace(SOUND, logprobs=None, sampled_tokens=2),
    ],
)
def test_what_an_engine_need_not_tell_is_not_asked_for(completion: Completion) -> None:
    check_completion(PROMPT, completion, VOCABULARY)


def test_without_a_known_vocabulary_any_id_that_can_be_one_passes() -> None:
    check_completion(PROMPT, replace(SOUND, ids=[5, 2**31 - 1]), None)


def test_an_endpoint_that_renders_the_prompt_itself_counts_for_itself() -> None:
    check_completion(replace(PROMPT, ids=()), replace(SOUND, prompt_tokens=812), VOCABULARY)
