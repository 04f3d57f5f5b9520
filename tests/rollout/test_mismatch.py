"""Differences of logprobs by hand, and which tokens of a row can be compared at all."""

import math
from typing import Any

import numpy as np
import pytest

from rollout.mismatch import compare, excesses
from rollout.sequences import plan


def test_a_difference_by_hand() -> None:
    found = compare(np.array([-1.0, -2.0, -0.5]), np.array([-1.0, -2.0 + math.log(2), -math.inf]))
    assert (found.tokens, found.outside) == (2, 1)
    assert found.mean_abs == pytest.approx(math.log(2) / 2)
    assert found.max_abs == pytest.approx(math.log(2))
    assert (found.ratio_mean, found.ratio_std) == (pytest.approx(1.5), pytest.approx(0.5))
    assert found.k3 == pytest.approx((2 - 1 - math.log(2)) / 2)
    assert found.share == pytest.approx(math.log(2) / 2 / 1.5)


def test_k3_is_the_kl_of_what_the_tokens_were_drawn_from() -> None:
    generator = np.random.default_rng(0)
    engine, trainer = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    drawn = generator.choice(3, 200_000, p=engine)
    found = compare(np.log(engine)[drawn], np.log(trainer)[drawn])
    assert found.k3 == pytest.approx(float((engine * np.log(engine / trainer)).sum()), rel=0.02)
    assert found.ratio_mean == pytest.approx(1.0, abs=0.002)


def test_bounds() -> None:
    sure, unsure = np.full(100, -0.001), np.full(100, -1.0)
    assert excesses(compare(unsure, unsure + 0.01)) == []
    assert len(excesses(compare(unsure, unsure + 0.03))) == 1
    assert len(excesses(compare(unsure * 0.05, unsure * 0.05 + 0.008))) == 1, "small in nats, large for so sure a model"
    assert excesses(compare(sure, sure + 0.0009)) == [], "rounding is all there is"
    assert len(excesses(compare(unsure, np.r_[[-math.inf] * 2, unsure[2:]]))) == 1
    assert excesses(compare(unsure, np.r_[[-math.inf], unsure[1:]])) == []
    assert len(excesses(compare(unsure, np.full(100, -math.inf)))) == 1
    assert len(excesses(compare(unsure, np.full(100, math.nan)))) == 1
    assert excesses(compare(unsure[:0], unsure[:0])) == []


def turn(prompt: list[int], sampled: list[int], segment: int = 0, spans: Any = (), **sampling: Any) -> dict[str, Any]:
    return {
        "segment": segment,
        "prompt_ids": prompt,
        "completion_ids": sampled,
        "logprobs": [-float(token) for token in sampled],
        "versions": [{"version": name, "start": start, "end": end} for name, start, end in spans],
        "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0} | sampling,
    }


def test_each_segment_is_a_sequence_and_each_token_knows_how_it_was_sampled() -> None:
    turns = [
        turn([1, 2], [3, 4], temperature=0.5, top_p=0.9, top_k=5),
        turn([5], [6], temperature=0.0, top_p=0.9, top_k=5),
        turn([7, 8], [9], segment=1, top_k=-1),
    ]
    found = plan([{"episode_id": "e", "turns": turns}], ["default"])
    first, second = found.by_version["default"]
    assert first.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert first.places.tolist() == [2, 3, 5]
    assert first.recorded.tolist() == [-3, -4, -6]
    assert first.temperature.tolist() == [0.5, 0.5, 1.0]
    assert first.top_p.tolist() == pytest.approx([0.9, 0.9, 1.0])
    assert first.top_k.tolist() == [5, 5, 0]
    assert (second.token_ids.tolist(), second.places.tolist(), second.top_k.tolist()) == ([7, 8, 9], [2], [0])
    raw = plan([{"episode_id": "e", "turns": turns}], ["default"], processed=False)
    assert raw.by_version["default"][0].temperature.tolist() == [1, 1, 1]


def test_what_no_weights_can_tell_is_skipped_and_counted() -> None:
    silent = turn([5], [6, 7]) | {"logprobs": None}
    turns = [turn([1], [2, 3, 4], spans=[("0", 0, 1), ("1", 1, 3)]), silent, turn([8], [9], spans=[("1", 0, 1)])]
    found = plan([{"episode_id": "e", "turns": turns}], ["default"])
    assert [one.places.tolist() for one in found.by_version["default"]] == [[1]]
    assert found.skipped == {
        "after a change of weights within a turn": 2,
        "no logprobs": 2,
        "weights of version 1 are not known": 1,
    }
    later = plan([{"episode_id": "e", "turns": turns}], ["default", "1"]).by_version["1"]
    assert [(one.token_ids.tolist(), one.places.tolist()) for one in later] == [([1, 2, 3, 4, 5, 6, 7, 8, 9], [8])]


def test_what_was_drawn_under_a_grammar_is_not_compared() -> None:
    turns = [turn([1], [2, 3]), turn([4], [5, 6, 7]) | {"constrained": True}, turn([8], [9]) | {"constrained": False}]
    found = plan([{"episode_id": "e", "turns": turns}], ["default"])
    (scored,) = found.by_version["default"]
    assert scored.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9], "it is read all the same"
    assert scored.places.tolist() == [1, 2, 8]
    assert found.skipped["drawn under a grammar"] == 3
