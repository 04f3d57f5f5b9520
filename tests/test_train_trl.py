"""What TRL is handed: its own conventions, from a sample with two turns and a tool's result between them."""

# pyright: basic

import warnings

import pyarrow as pa
import pytest

from rollout.samples import SAMPLES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL warns of each vLLM that is newer than itself
    pytest.importorskip("trl")
    from scripts.train_trl import as_trl  # noqa: TID251 - what is tested here is what a reader copies

SAMPLE = {
    "episode_id": "r-0-0",
    "num_segments": 1,
    "prompt_length": 2,
    "token_ids": [1, 2, 3, 4, 5, 6],
    "loss_mask": [0, 0, 1, 1, 0, 1],
    "logprobs": [0.0, 0.0, -1.0, -2.0, 0.0, -3.0],
    "reward": 1.0,
}


def test_a_tools_result_is_part_of_the_completion_and_masked() -> None:
    assert as_trl(pa.Table.from_pylist([SAMPLE], schema=SAMPLES)) == {
        "prompt_ids": [[1, 2]],
        "completion_ids": [[3, 4, 5, 6]],
        "logprobs": [[-1.0, -2.0, 0.0, -3.0]],
        "env_mask": [[1, 1, 0, 1]],
        "episode_reward": [1.0],
    }


def test_an_episode_of_two_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="r-0-0 has 2 segments"):
        as_trl(pa.Table.from_pylist([SAMPLE | {"num_segments": 2}], schema=SAMPLES))
