"""All token formats on drawn episodes: what a trainer can read back is what the samples say, to the last token.

Each format has a reader here that does what its trainer does with the file (docs/export.md): cut, shift, pad, mask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_rows import row, table, turn

from rollout.advantages import with_advantages
from rollout.breaks import BREAKS
from rollout.errors import UserError
from rollout.export.forks import FORKS, Chosen
from rollout.export.formats import CHATS, NAMES, TOKENS, find
from rollout.export.sample import Sample, samples_of
from rollout.export.writing import write_jsonl, write_parquet
from rollout.samples import to_samples

Read = dict[str, Any]
"""token_ids, loss_mask and logprobs as a trainer has them; reward and advantages where it is given them."""
PAD = 77


def split(prompt: list[int], response: list[int], mask: list[int], logprobs: list[float]) -> Read:
    """The whole sequence of a format that has its prompt apart."""
    none = [0] * len(prompt)
    return {"token_ids": prompt + response, "loss_mask": none + mask, "logprobs": none + logprobs}


def trl(told: Read) -> Read:
    read = split(told["prompt_ids"], told["completion_ids"], told["env_mask"], told["logprobs"])
    return read | {"reward": told["reward"]}


def trl_async(told: Read) -> Read:
    advantages = [told["advantage"] * mask for mask in told["completion_mask"]]
    names = {"token_ids": "input_ids", "loss_mask": "completion_mask", "logprobs": "old_log_probs"}
    return {name: told[theirs] for name, theirs in names.items()} | {"advantages": advantages}


def verl(told: Read) -> Read:
    """Padded as verl pads: the prompt left, the response right; and cut again by the attention mask."""
    prompt, response = told["prompt_ids"], told["response_ids"]
    wide, long = len(prompt) + 3, len(response) + 2
    ids = [PAD] * (wide - len(prompt)) + prompt + response + [PAD] * (long - len(response))
    attention = [0] * (wide - len(prompt)) + [1] * (len(prompt) + len(response)) + [0] * (long - len(response))
    mask = [0] * wide + told["response_mask"] + [0] * (long - len(response))
    logprobs = [0.0] * wide + told["response_logprobs"] + [0.0] * (long - len(response))
    kept = [[value for value, real in zip(values, attention, strict=True) if real] for values in (ids, mask, logprobs)]
    return dict(zip(("token_ids", "loss_mask", "logprobs"), kept, strict=True)) | {"reward": told["reward_score"]}


def skyrl(told: Read) -> Read:
    """One block, padded left; what is of the response is right-aligned."""
    prompt, response = told["prompt_token_ids"], told["response_ids"]
    block = [PAD] * 3 + prompt + response
    mask = [0] * 5 + told["loss_masks"]
    logprobs = [0.0] * 5 + told["rollout_logprobs"]
    assert len(told["rewards"]) == len(response) and all(reward == 0 for reward in told["rewards"][:-1])
    end = len(response)
    read = split(block[3 : len(block) - end], block[len(block) - end :], mask[-end:], logprobs[-end:])
    return read | {"reward": sum(told["rewards"]) if told["is_last_step"] else told["rollout"]["reward"]}


def prime_rl(told: Read) -> Read:
    assert len(told["temperatures"]) == len(told["token_ids"])
    names = {"token_ids": "token_ids", "loss_mask": "mask", "logprobs": "logprobs", "advantages": "advantages"}
    return {name: told[theirs] for name, theirs in names.items()}


def slime(told: Read) -> Read:
    cut = len(told["tokens"]) - told["response_length"]
    assert len(told["loss_mask"]) == len(told["rollout_log_probs"]) == told["response_length"]
    read = split(told["tokens"][:cut], told["tokens"][cut:], told["loss_mask"], told["rollout_log_probs"])
    return read | {"reward": told["reward"]}


def nemo_rl(told: Read) -> Read:
    ids, mask, logprobs = [], [], []
    for message in told["message_log"]:
        found = message.get("generation_logprobs")
        assert (found is not None) == (message["role"] == "assistant")
        ids += message["token_ids"]
        mask += [int(found is not None)] * len(message["token_ids"])
        logprobs += found if found is not None else [0.0] * len(message["token_ids"])
    assert told["length"] == len(ids)
    return {"token_ids": ids, "loss_mask": mask, "logprobs": logprobs, "reward": told["total_reward"]}


def openrlhf(told: Read) -> Read:
    """Ranges become a mask, then mask and logprobs lose their first place."""
    mask = [0] * len(told["observation_tokens"])
    for start, end in told["action_ranges"]:
        mask[start:end] = [1] * (end - start)
    return unshifted(told["observation_tokens"], mask[1:], told["rollout_log_probs"][1:]) | {"reward": told["reward"]}


def tinker(told: Read) -> Read:
    assert told["model_input"][1:] == told["target_tokens"][:-1]
    read = unshifted(told["model_input"][:1] + told["target_tokens"], told["mask"], told["logprobs"])
    return read | {"advantages": [0.0, *told["advantages"]]}


def unshifted(ids: list[int], mask: list[int], logprobs: list[float]) -> Read:
    assert len(mask) == len(logprobs) == len(ids) - 1
    return {"token_ids": ids, "loss_mask": [0, *mask], "logprobs": [0.0, *logprobs]}


READERS: dict[str, Callable[[Read], Read]] = {
    "trl": trl,
    "trl-async": trl_async,
    "verl": verl,
    "skyrl": skyrl,
    "prime-rl": prime_rl,
    "slime": slime,
    "nemo-rl": nemo_rl,
    "openrlhf": openrlhf,
    "tinker": tinker,
}


@st.composite
def runs(draw: st.DrawFn) -> Any:
    """Rows of two tasks: turns of several segments, whose tokens' logprobs tell the token."""
    ids = st.lists(st.integers(1, 9), min_size=1, max_size=4)
    rows = []
    for index in range(2):
        for sample in range(draw(st.integers(1, 3))):
            segment, turns = 0, []
            for number in range(draw(st.integers(1, 4))):
                segment += number > 0 and draw(st.booleans())
                turns.append(turn(draw(ids), draw(ids), segment))
            status = draw(st.sampled_from(["completed", "truncated"]))
            reward = draw(st.sampled_from([0.0, 0.25, 1.0]))
            rows.append(row(*turns, index=index, sample=sample, status=status, reward=reward))
    return table(*draw(st.permutations(rows)))


def samples(rows: Any, **choices: Any) -> Iterator[Sample]:
    return samples_of([with_advantages(to_samples(rows, **choices))])


def test_every_token_format_has_a_reader_here() -> None:
    assert set(READERS) == set(TOKENS) and set(NAMES) == {*TOKENS, *CHATS}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@settings(max_examples=8, deadline=None)
@given(rows=runs(), breaks=st.sampled_from(BREAKS), truncated=st.sampled_from(["keep", "mask"]))
def test_what_is_read_back_is_what_the_samples_say(
    name: str, suffix: str, tmp_path_factory: pytest.TempPathFactory, rows: Any, breaks: str, truncated: str
) -> None:
    form, path = TOKENS[name], Path(tmp_path_factory.mktemp("export"), f"out.{suffix}")
    expected = list(samples(rows, breaks=breaks, truncated=truncated))
    written = map(form.project, samples(rows, breaks=breaks, truncated=truncated))
    if suffix == "parquet":
        write_parquet(path, written, form.schema)
        found = pq.read_table(path).to_pylist()
    else:
        write_jsonl(path, written)
        found = [json.loads(line) for line in path.open()]
    assert len(found) == len(expected)
    for told, sample in zip(found, expected, strict=True):
        read = READERS[name](told)
        assert read["token_ids"] == sample.token_ids.tolist()
        assert [int(value) for value in read["loss_mask"]] == sample.loss_mask.tolist()
        assert np.float32(read["logprobs"]).tolist() == sample.logprobs.tolist()
        assert form.advantages == ("advantages" in read)
        if form.advantages:
            assert np.float32(read["advantages"]).tolist() == sample.token_advantages().tolist()
        else:
            assert read["reward"] == sample.reward
        rollout = told.get("rollout") or told.get("metadata") or told["extra_env_info"]
        assert (rollout["episode_id"], rollout["segment"]) == (sample.episode_id, sample.segment)


@settings(max_examples=20, deadline=None)
@given(rows=runs(), breaks=st.sampled_from(BREAKS), forks=st.sampled_from([one for one in FORKS if one != "error"]))
def test_an_episode_weighs_1_however_many_samples_are_left_of_it(rows: Any, breaks: str, forks: Any) -> None:
    chosen = Chosen(samples(rows, breaks=breaks), forks, "verl")
    left = list(chosen)
    weights: dict[str, Fraction] = {}
    for sample in left:
        share = Fraction(sample.weight).limit_denominator(100)
        weights[sample.episode_id] = weights.get(sample.episode_id, Fraction(0)) + share
    assert set(weights.values()) == {Fraction(1)}
    assert set(weights) == set(rows["episode_id"].to_pylist())
    lost = sum(sample.sampled for sample in samples(rows, breaks=breaks)) - sum(sample.sampled for sample in left)
    assert chosen.lost == lost
    assert [sample.number for sample in left] == list(range(len(left)))


@settings(max_examples=8, deadline=None)
@given(rows=runs(), breaks=st.sampled_from(BREAKS))
def test_siblings_and_groups_stand_together(rows: Any, breaks: str) -> None:
    for key in ("group_id", "episode_id"):
        names = [getattr(sample, key) for sample in samples(rows, breaks=breaks)]
        changes = sum(one != other for one, other in pairwise(names))
        assert changes + 1 == len(set(names))
    numbers = [(sample.group_id, sample.group_number) for sample in samples(rows, breaks=breaks)]
    assert len(set(numbers)) == len({group for group, _ in numbers})


def forked() -> Any:
    return table(row(turn([1], [2, 3]), turn([4], [5], 1)))


def test_slime_siblings_share_the_id_that_its_loss_averages_over() -> None:
    made = [TOKENS["slime"].project(sample) for sample in samples(forked())]
    assert [(one["rollout_id"], one["index"]) for one in made] == [(0, 0), (0, 1)]


def test_skyrl_has_the_reward_once_in_an_episode() -> None:
    made = [TOKENS["skyrl"].project(sample) for sample in samples(forked())]
    assert [one["rewards"].tolist() for one in made] == [[0.0, 0.0], [1.0]]
    assert [one["is_last_step"] for one in made] == [False, True]


def test_a_fork_is_refused_or_chosen_from_where_there_is_no_place_for_it() -> None:
    with pytest.raises(UserError, match=r"run-0-0: 2 samples, of which trl takes one.*--forks longest"):
        list(Chosen(samples(forked()), "error", "trl"))
    assert [one.token_ids.tolist() for one in Chosen(samples(forked()), "longest", "trl")] == [[1, 2, 3]]
    assert [one.token_ids.tolist() for one in Chosen(samples(forked()), "last", "trl")] == [[4, 5]]


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'nemo-rl'"):
        find("nemorl")
