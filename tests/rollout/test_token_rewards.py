"""Rewards by token: every reward is given once, to a token that the policy sampled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_rows import row, table, tables, turn

from rollout.breaks import BREAKS
from rollout.errors import UserError
from rollout.samples import to_samples
from rollout.token_rewards import returns, token_rewards

STEPS = (turn([1], [10, 11], reward=0.5), turn([2], [12]), turn([3], [13, 14], 1, reward=1.0))
MADE = to_samples(table(row(*STEPS, reward=2.0), row(turn([1], [10]), sample=1, reward=3.0)))
"""Samples of the tokens 1 10 11 2 12, 3 13 14 and 1 10."""


def test_what_a_step_is_to_the_reward_is_a_choice() -> None:
    assert token_rewards(MADE).to_pylist() == [[0, 0, 0.5, 0, 0], [0, 0, 1.5], [0, 3]]
    assert token_rewards(MADE, "added").to_pylist() == [[0, 0, 0.5, 0, 0], [0, 0, 3], [0, 3]]
    assert token_rewards(MADE, "ignored").to_pylist() == [[0, 0, 0, 0, 0], [0, 0, 2], [0, 3]]
    with pytest.raises(UserError, match=r"^steps: there is no 'add'; did you mean 'added'\?$"):
        token_rewards(MADE, "add")  # pyright: ignore[reportArgumentType]


def test_returns_go_on_over_siblings_and_pass_over_what_is_no_action() -> None:
    found = returns(MADE, token_rewards(MADE), 0.5).to_pylist()
    assert found == [[0, 0.5 * 0.6875 + 0, 0.5 + 0.1875, 0, 0.375], [0, 0.75, 1.5], [0, 3]]
    assert returns(MADE, token_rewards(MADE)).to_pylist() == [[0, 2, 2, 0, 1.5], [0, 1.5, 1.5], [0, 3]]
    assert returns(MADE, token_rewards(MADE), 0.0).to_pylist() == token_rewards(MADE).to_pylist()


def test_siblings_may_come_in_any_order() -> None:
    turned = MADE.take([1, 2, 0])
    assert token_rewards(turned).to_pylist() == [[0, 0, 1.5], [0, 3], [0, 0, 0.5, 0, 0]]
    assert returns(turned, token_rewards(turned)).to_pylist() == [[0, 1.5, 1.5], [0, 3], [0, 2, 2, 0, 1.5]]


def test_a_masked_episode_has_no_token_to_reward() -> None:
    masked = to_samples(table(row(*STEPS, status="truncated")), truncated="mask")
    assert token_rewards(masked).to_pylist() == [[0] * 5, [0] * 3]


@given(rows=tables(), breaks=st.sampled_from(BREAKS), gamma=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_what_holds_for_any_episodes(rows: Any, breaks: Any, gamma: float) -> None:
    samples = to_samples(table(*rows), breaks)
    rewards = token_rewards(samples)
    given_to, masks = rewards.to_pylist(), samples["loss_mask"].to_pylist()
    episodes = samples["episode_id"].to_pylist()
    discounted = returns(samples, rewards, gamma).to_pylist()
    for entry in rows:
        own = [place for place, episode in enumerate(episodes) if episode == entry["episode_id"]]
        if not own:
            continue
        assert sum(sum(given_to[place]) for place in own) == pytest.approx(entry["reward"])
        actions = [
            (reward, sum_)
            for place in own
            for reward, sum_, mask in zip(given_to[place], discounted[place], masks[place], strict=True)
            if mask
        ]
        expected = 0.0
        for reward, sum_ in reversed(actions):
            expected = reward + gamma * expected
            assert sum_ == pytest.approx(expected, abs=1e-5)
    for reward, mask in zip(given_to, masks, strict=True):
        assert all(own or not value for value, own in zip(reward, mask, strict=True))
