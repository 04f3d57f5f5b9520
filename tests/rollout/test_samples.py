"""Rows as training samples: every token once, in place, and nothing left out in silence."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_rows import plainly, row, table, tables, turn

from rollout.breaks import BREAKS
from rollout.errors import UserError
from rollout.samples import SAMPLES, left_out, summed, to_samples

ALL = ("completed", "truncated", "failed", "dropped")


def derived(*rows: dict[str, Any], breaks: Any = "fork", **choices: Any) -> Any:
    samples = to_samples(table(*rows), breaks, **choices)
    samples.validate(full=True)
    assert samples.schema == SAMPLES
    return samples


def without_steps(samples: Any) -> list[dict[str, Any]]:
    return samples.drop_columns(["step_rewards"]).to_pylist()


@given(rows=tables(), breaks=st.sampled_from(["fork", "truncate", "per_turn"]), keep=st.booleans())
def test_samples_are_those_of_the_plainest_way(rows: list[dict[str, Any]], breaks: Any, keep: bool) -> None:
    choice = "keep" if keep else "drop"
    samples = derived(*rows, breaks=breaks, truncated=choice, failed=choice, dropped=choice)
    expected = plainly(rows, breaks, ALL if keep else ("completed",))
    assert without_steps(samples) == [{k: v for k, v in one.items() if k != "step_rewards"} for one in expected]


@given(rows=tables(), breaks=st.sampled_from(BREAKS), drift=st.integers(0, 6))
def test_each_sampled_token_is_trained_on_once_or_counted_as_left_out(rows: Any, breaks: Any, drift: int) -> None:
    samples = derived(*rows, breaks=breaks, drift=drift)
    sampled = Counter(token for entry in rows for turn in entry["turns"] for token in turn["completion_ids"] or ())
    trained = Counter(
        token
        for one in samples.to_pylist()
        for token, mask in zip(one["token_ids"], one["loss_mask"], strict=True)
        if mask
    )
    assert trained <= sampled
    assert trained.total() + sum(cause["tokens"] for cause in left_out(samples).values()) == sampled.total()
    seen = {one["episode_id"] for one in samples.to_pylist()}
    silent = {entry["episode_id"] for entry in rows} - seen
    assert len(silent) <= sum(cause["episodes"] for cause in left_out(samples).values())


@given(rows=tables(), breaks=st.sampled_from(BREAKS), drift=st.integers(0, 6))
def test_what_holds_for_every_sample(rows: Any, breaks: Any, drift: int) -> None:
    samples = derived(*rows, breaks=breaks, drift=drift).to_pylist()
    for one in samples:
        ids, mask, logprobs = (one[name] for name in ("token_ids", "loss_mask", "logprobs"))
        assert len(ids) == len(mask) == len(logprobs)
        assert logprobs == [-token / 8 if own else 0.0 for token, own in zip(ids, mask, strict=True)]
        assert mask.index(1) == one["prompt_length"]
        told = [place for span in one["versions"] for place in range(span["start"], span["end"])]
        assert told == [place for place, own in enumerate(mask) if own], "each sampled token has one version"
    for episode in {one["episode_id"] for one in samples}:
        siblings = [one for one in samples if one["episode_id"] == episode]
        assert sum(one["weight"] for one in siblings) == pytest.approx(1)
        assert [one["segment"] for one in siblings] == list(range(len(siblings)))
        assert {one["num_segments"] for one in siblings} == {len(siblings)}


BROKEN = (
    turn([1, 2], [10, 11, 12]),
    turn([3], [13, 14]),
    turn([1, 2, 10, 19, 12, 3, 13, 14, 4], [15, 16], 1, segment_break="anew", versions=[]),
)
"""History: 1 2 | 10 11 12 | 3 | 13 14; the next prompt tells 11 as 19."""


def test_a_small_difference_becomes_tokens_that_do_not_count() -> None:
    samples = derived(row(*BROKEN), breaks="realign", drift=2)
    (one,) = samples.to_pylist()
    assert one["token_ids"] == [1, 2, 10, 19, 12, 3, 13, 14, 4, 15, 16]
    assert one["loss_mask"] == [0, 0, 1, 0, 1, 0, 1, 1, 0, 1, 1]
    assert one["logprobs"] == [0, 0, -1.25, 0, -1.5, 0, -1.625, -1.75, 0, -1.875, -2]
    assert [(span["start"], span["end"]) for span in one["versions"]] == [(2, 3), (4, 5), (6, 8)]
    assert (one["num_segments"], one["weight"]) == (1, 1.0)
    assert left_out(samples) == {"realigned": {"episodes": 1, "tokens": 1}}


def test_a_difference_above_the_bound_forks() -> None:
    samples = derived(row(*BROKEN), breaks="realign", drift=1)
    assert without_steps(samples) == without_steps(derived(row(*BROKEN)))
    assert samples.num_rows == 2
    assert left_out(samples) == {}


def test_tokens_may_be_put_in_and_left_out() -> None:
    put_in = (turn([1], [10, 11, 12, 13]), turn([1, 10, 20, 21, 11, 12, 13, 2], [14], 1))
    (one,) = derived(row(*put_in), breaks="realign", drift=2).to_pylist()
    assert one["loss_mask"] == [0, 1, 0, 0, 1, 1, 1, 0, 1]
    cut_off = (turn([1], [10, 11]), turn([1, 10, 2], [12], 1))
    samples = derived(row(*cut_off), breaks="realign", drift=1)
    assert samples.to_pylist()[0]["token_ids"] == [1, 10, 2, 12]
    assert samples.to_pylist()[0]["loss_mask"] == [0, 1, 0, 1]
    assert left_out(samples) == {"realigned": {"episodes": 1, "tokens": 1}}


def test_what_stands_first_is_never_trained_on() -> None:
    """It follows from nothing: whoever shifts a sample by one to train on it would lose it without a word."""
    nothing_before = (turn([1], [10, 11]), turn([10, 11, 2], [12], 1))
    samples = derived(row(*nothing_before), breaks="realign", drift=1)
    assert samples.to_pylist()[0]["token_ids"] == [10, 11, 2, 12]
    assert samples.to_pylist()[0]["loss_mask"] == [0, 1, 0, 1]
    assert left_out(samples) == {"realigned": {"episodes": 1, "tokens": 1}}


def test_the_bound_is_for_all_differences_of_a_break_together() -> None:
    history = list(range(10, 30))
    told = [99 if token in (12, 20, 27) else token for token in history]
    broken = row(turn([1], history), turn([1, *told, 2], [40], 1))
    (one,) = derived(broken, breaks="realign", drift=6).to_pylist()
    assert one["loss_mask"] == [0, *(int(token != 99) for token in told), 0, 1]
    assert derived(broken, breaks="realign", drift=5).num_rows == 2


def test_a_sample_realigned_once_can_be_again() -> None:
    third = turn([1, 2, 10, 19, 12, 3, 13, 14, 4, 15, 29, 5], [17], 2)
    (one,) = derived(row(*BROKEN, third), breaks="realign", drift=2).to_pylist()
    assert one["token_ids"] == [1, 2, 10, 19, 12, 3, 13, 14, 4, 15, 29, 5, 17]
    assert one["loss_mask"] == [0, 0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1]


@given(data=st.data())
def test_a_history_told_anew_is_the_next_prompt_to_the_token(data: st.DataObject) -> None:
    tokens = st.lists(st.integers(1, 5), max_size=12)
    prompts = tokens.filter(bool)
    first, sampled, prompt = data.draw(prompts), data.draw(tokens), data.draw(prompts)
    samples = derived(row(turn(first, sampled), turn(prompt, [7], 1)), breaks="realign", drift=4).to_pylist()
    assert samples[-1]["token_ids"] == [*prompt, 7]
    if len(samples) == 1 and sampled:
        kept = sum(samples[0]["loss_mask"]) - 1
        untrained = prompt[0] == sampled[0]  # it may stand first now
        assert len(sampled) - kept <= min(4, (len(first) + len(sampled)) // 2) + untrained


def test_truncation_says_what_it_costs() -> None:
    samples = derived(row(*BROKEN), breaks="truncate")
    assert samples["token_ids"].to_pylist() == [[1, 2, 10, 11, 12, 3, 13, 14]]
    assert left_out(samples) == {"behind_break": {"episodes": 1, "tokens": 2}}


def test_a_step_reward_lies_at_the_last_token_of_its_turn() -> None:
    steps = (
        turn([1], [10, 11], reward=0.5),
        turn([2], [], reward=0.25),
        turn([3], [12, 13]),
        turn([4], [14], 1, reward=-1.0),
    )
    samples = derived(row(*steps), row(turn([1], [10]), sample=1))
    assert samples["step_rewards"].to_pylist() == [[0, 0, 0.75, 0, 0, 0, 0], [0, -1.0], None]
    per_turn = derived(row(*steps), breaks="per_turn")["step_rewards"].to_pylist()
    assert per_turn == [[0, 0, 0.75], [0] * 7, [0, -1.0]]
    early = row(turn([1], [], reward=2.0), turn([2], [10, 11]))
    assert derived(early)["step_rewards"].to_pylist() == [[0, 0, 0, 2.0]]


def test_what_becomes_of_episodes_is_a_choice_and_is_told() -> None:
    rows = (
        row(turn([1], [10]), sample=0),
        row(turn([1], [10, 11]), sample=1, status="truncated", reward=0.0),
        row(turn([1], [10]), sample=2, status="failed", reward=None),
        row(sample=3, status="dropped", reward=None),
        row(turn([1], [10]), sample=4, reward=None),
        row(turn([1], None), sample=5),
        row(turn([1], [10, 11, 12], logprobs=None), sample=6),
        row(turn([1], []), sample=7),
    )
    samples = derived(*rows)
    assert samples["sample_index"].to_pylist() == [0, 1]
    assert left_out(samples) == {
        "failed": {"episodes": 1, "tokens": 1},
        "dropped": {"episodes": 1, "tokens": 0},
        "unscored": {"episodes": 1, "tokens": 1},
        "no_token_ids": {"episodes": 1, "tokens": 0},
        "no_logprobs": {"episodes": 1, "tokens": 3},
        "nothing_sampled": {"episodes": 1, "tokens": 0},
    }
    masked = derived(*rows, truncated="mask")
    assert masked["loss_mask"].to_pylist() == [[0, 1], [0, 0, 0]]
    assert masked["logprobs"].to_pylist()[1] == [0, 0, 0]
    assert masked["reward"].to_pylist() == [1.0, 0.0]
    assert left_out(masked)["truncated"] == {"episodes": 1, "tokens": 2}
    assert derived(*rows, truncated="drop")["sample_index"].to_pylist() == [0]
    kept = derived(*rows, failed="keep")
    assert kept["sample_index"].to_pylist() == [0, 1, 2]
    assert kept["reward"].to_pylist() == [1.0, 0.0, None], "a failure is never a reward"


def test_what_was_left_out_travels_with_the_table(tmp_path: Any) -> None:
    samples = derived(row(*BROKEN), breaks="truncate")
    pq.write_table(samples, tmp_path / "samples.parquet")
    assert left_out(pq.read_table(tmp_path / "samples.parquet")) == left_out(samples)
    twice = summed([left_out(samples), left_out(samples), {}])
    assert twice == {"behind_break": {"episodes": 2, "tokens": 4}}
    assert left_out(pa.table({})) == {}


def test_many_rows_are_the_samples_of_each() -> None:
    rows = [row(*BROKEN, turn([5], [9], 2), index=index, reward=float(index)) for index in range(1200)]
    whole = derived(*rows, breaks="realign")
    assert whole.num_rows == 2400
    assert np.array_equal(whole["reward"].to_numpy(), np.repeat(np.arange(1200.0), 2))
    assert whole.slice(2398).to_pylist() == derived(rows[-1], breaks="realign").to_pylist()
    sliced = to_samples(table(*rows).slice(700, 3), "realign")
    assert sliced.to_pylist() == whole.slice(1400, 6).to_pylist()


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"breaks": "per-turn"}, "breaks: there is no 'per-turn'; did you mean 'per_turn'?"),
        ({"drift": -1}, "drift: expected a number of tokens from 0 on, found -1"),
        ({"truncated": "masked"}, "truncated: there is no 'masked'; did you mean 'mask'?"),
    ],
)
def test_choices_there_are_not(choices: Any, line: str) -> None:
    with pytest.raises(UserError) as refused:
        to_samples(table(), **choices)
    assert str(refused.value) == line
