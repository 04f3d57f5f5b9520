"""The arithmetic of the plain trainer, on numbers worked out by hand and on a sample of the bundled model."""

# pyright: basic

import numpy as np
import pyarrow as pa
import pytest
import torch

from rollout.samples import SAMPLES
from scripts.learning import staleness  # noqa: TID251 - as below
from scripts.train_grpo import (  # noqa: TID251 - what is tested here is what a reader copies
    Learner,
    group_advantages,
    policy_loss,
    read,
    token_logprobs,
)

PROMPT, SAMPLED, OTHER, RESULT = [367, 5, 9, 14, 30], [40, 41, 42, 369], [40, 41, 43, 369], [368, 77, 78]


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner((1e-3, 1e-3, 1e-3), warmup=1, updates=1, seed=0)


def one(group: str, reward: float, logprobs: list[float] | None = None, versions: list[str] | None = None) -> dict:
    """A sample of two turns with a tool's result between them; each turn has a version of its own."""
    ids = [*PROMPT, *SAMPLED, *RESULT, *SAMPLED]
    mask = [0] * len(PROMPT) + [1] * len(SAMPLED) + [0] * len(RESULT) + [1] * len(SAMPLED)
    starts = [len(PROMPT), len(PROMPT) + len(SAMPLED) + len(RESULT)]
    spans = [
        {"version": version, "start": start, "end": start + len(SAMPLED)}
        for version, start in zip(versions or ["0", "0"], starts, strict=True)
    ]
    told = {"group_id": group, "reward": reward, "weight": 1.0, "token_ids": ids, "loss_mask": mask, "versions": spans}
    return told | {"logprobs": logprobs or [0.0] * len(ids)}


def table(*samples: dict) -> pa.Table:
    return pa.Table.from_pylist(list(samples), schema=SAMPLES)


def own_logprobs(learner: Learner, sample: dict) -> list[float]:
    """What an engine with the learner's weights would record, from the whole distribution at every position."""
    ids = torch.tensor([sample["token_ids"]])
    with torch.no_grad():
        every = torch.log_softmax(learner.model(input_ids=ids).logits[0], -1)
    return [
        float(every[at - 1, token]) if mask else 0.0
        for at, (token, mask) in enumerate(zip(sample["token_ids"], sample["loss_mask"], strict=True))
    ]


def test_an_advantage_is_the_distance_to_the_group_in_standard_deviations() -> None:
    groups, rewards = np.array(["a", "b", "a", "b", "a", "a"]), np.array([1.0, 0.5, 0.0, 0.5, 0.0, 1.0])
    told = group_advantages(groups, rewards, np.ones(6))
    assert told.tolist() == [1.0, 0.0, -1.0, 0.0, -1.0, 1.0]


def test_a_turn_is_worth_its_episode_unless_that_was_lost_before_it() -> None:
    told = []
    for name, step, reward in (("right", 0.0, 1.0), ("astray", -1.0, 0.0), ("wrong", 0.0, 0.0), ("good", 0.0, 1.0)):
        sample = one("g", reward) | {"episode_id": name, "segment": 0, "num_segments": 1}
        rewards = [0.0] * len(sample["token_ids"])
        rewards[len(PROMPT) + len(SAMPLED) - 1] = step
        told.append(sample | {"step_rewards": rewards})
    found = [sample.advantages.tolist() for sample in read(table(*told))]
    first = [0.5, -0.5, -0.5, 0.5]  # four were as far: their mean is 1/2
    last = [3 / 7, 0.0, -4 / 7, 3 / 7]  # only three were: the mean of all seven that count is 4/7
    for begins, ends, advantages in zip(first, last, found, strict=True):
        expected = [0.0] * len(PROMPT) + [begins] * 4
        if ends:  # else the sample is only as long as it teaches
            expected += [0.0] * len(RESULT) + [ends] * 4
        assert advantages == pytest.approx(expected, abs=1e-6)


def test_siblings_count_as_the_one_episode_that_they_are() -> None:
    whole = group_advantages(np.array(["a", "a", "a"]), np.array([1.0, 0.0, 0.0]), np.ones(3))
    forked = group_advantages(np.array(["a"] * 4), np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.5, 0.5, 1.0, 1.0]))
    assert forked == pytest.approx([whole[0], *whole])


def test_a_token_teaches_by_its_ratio_until_it_has_moved_far_enough() -> None:
    ratios, advantages = [0.5, 1.0, 1.2, 2.0, 0.5, 1.0, 1.2, 9.0], [1.0] * 4 + [-1.0] * 4
    logprobs = torch.tensor(ratios).log().requires_grad_()
    policy_loss(logprobs, torch.zeros(8), torch.tensor(advantages)).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.5, -1.0, -1.2, 0.0, 0.0, 1.0, 1.2, 2.0])


def test_ratios_of_what_the_model_sampled_itself_are_one(learner: Learner) -> None:
    logprobs = own_logprobs(learner, one("g", 1.0))
    figures = Learner((0.0, 0.0, 0.0), warmup=1, updates=1, seed=0).learn(
        table(one("g", 1.0, logprobs), one("g", 0.0, logprobs)), version=0
    )
    assert figures["tokens"] == 4 * len(SAMPLED)
    assert figures["ratio_p01"] == pytest.approx(1.0, abs=1e-5)
    assert figures["ratio_p99"] == pytest.approx(1.0, abs=1e-5)
    assert figures["clipped"] == 0.0


def test_padding_changes_no_logprob(learner: Learner) -> None:
    sample, _ = read(table(one("g", 1.0), one("g", 0.0)))
    with torch.no_grad():
        alone = token_logprobs(learner.model, sample.ids[None], sample.chosen[None])
        more = torch.nn.functional.pad(sample.ids, (0, 7))[None], torch.nn.functional.pad(sample.chosen, (0, 7))[None]
        assert token_logprobs(learner.model, *more) == pytest.approx(alone, abs=1e-5)


def test_what_earned_more_becomes_likelier_than_what_earned_less() -> None:
    own = Learner((1e-4, 1e-4, 1e-4), warmup=1, updates=1, seed=0)
    better, worse = one("g", 1.0), one("g", 0.0) | {"token_ids": [*PROMPT, *OTHER, *RESULT, *OTHER]}
    told = [sample | {"logprobs": own_logprobs(own, sample)} for sample in (better, worse)]
    own.learn(table(*told), version=0)
    after = [sum(own_logprobs(own, sample)) for sample in (better, worse)]
    assert after[0] - after[1] > sum(told[0]["logprobs"]) - sum(told[1]["logprobs"])


def test_staleness_counts_tokens() -> None:
    told = staleness(table(one("g", 1.0, versions=["3", "4"]), one("g", 0.0, versions=["5", "5"])), version=5)
    assert told == {"stale_mean": 0.75, "stale_max": 2.0, "off_policy": 0.5}
