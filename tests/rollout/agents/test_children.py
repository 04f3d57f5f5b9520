"""What children may use, how many there may be, and what of a reward is theirs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.agents.children import ChildrenConfig, Place, Sharing, Used, child_limits, shared_rewards
from rollout.trajectory import Limits

PARENT = Limits(max_tokens=1000, episode_seconds=500.0, verify_seconds=50.0, close_seconds=10.0)
OWN = Limits(max_tokens=800, turn_tokens=400, episode_seconds=300.0, verify_seconds=20.0, close_seconds=10.0)


def test_a_child_has_its_own_limits_within_what_is_left() -> None:
    assert child_limits(PARENT, Used(), OWN) == replace(OWN)
    left = child_limits(PARENT, Used(tokens=700, seconds=340.0), OWN)
    assert left is not None
    assert (left.max_tokens, left.turn_tokens, left.episode_seconds) == (300, 300, 100.0)
    assert (left.turn_seconds, left.tool_seconds, left.max_turns) == (100.0, 60.0, OWN.max_turns)


@pytest.mark.parametrize("used", [Used(tokens=1000), Used(tokens=1200), Used(seconds=410.0), Used(seconds=9999.0)])
def test_a_child_that_has_nothing_left_is_not_begun(used: Used) -> None:
    assert child_limits(PARENT, used, OWN) is None


@given(st.integers(0, 2000), st.floats(0, 1000), st.integers(1, 2000), st.floats(1, 1000))
def test_a_child_never_gets_more_than_is_left(tokens: int, seconds: float, own_tokens: int, own_seconds: float) -> None:
    own = replace(OWN, max_tokens=own_tokens, episode_seconds=own_seconds)
    left = child_limits(PARENT, Used(tokens, seconds), own)
    if left is not None:
        assert 0 < left.max_tokens <= min(own_tokens, PARENT.max_tokens - tokens)
        assert left.turn_tokens <= left.max_tokens
        assert seconds + left.episode_seconds <= PARENT.episode_seconds - PARENT.verify_seconds + 1e-9
        assert left.episode_seconds > left.verify_seconds + left.close_seconds


def test_depth_and_number_are_bounded() -> None:
    root = Place()
    assert root.refusal(1, 2) is None
    root = root.begun()
    assert Place(1).refusal(1, 2) == "no agent can be called from here: they are 1 deep at most"
    root = root.begun()
    assert root.refusal(1, 2) == "no further agent can be called: there were 2 already"
    assert Place().refusal(0, 9) is not None
    assert ChildrenConfig(max_depth=0).max_depth == 0


@pytest.mark.parametrize(
    ("sharing", "parent", "children"),
    [("shared", 0.9, (0.9, 0.9)), ("own", 0.9, (0.5, None)), ("none", 0.9, (None, None)), ("split", 0.3, (0.3, 0.3))],
)
def test_rewards_are_shared(sharing: Sharing, parent: float, children: tuple[float | None, ...]) -> None:
    mine, theirs = shared_rewards(sharing, 0.9, [0.5, None])
    assert (mine, theirs) == (pytest.approx(parent), pytest.approx(children))


def test_invariant_2_a_parent_without_a_reward_has_none_to_share() -> None:
    for sharing in ("shared", "split", "none"):
        assert shared_rewards(sharing, None, [0.5]) == (None, (None,))
    assert shared_rewards("own", None, [0.5]) == (None, (0.5,))


@given(st.floats(-10, 10), st.integers(0, 20))
def test_a_split_adds_up(reward: float, number: int) -> None:
    mine, theirs = shared_rewards("split", reward, [None] * number)
    assert mine is not None
    assert mine + sum(one for one in theirs if one is not None) == pytest.approx(reward)
