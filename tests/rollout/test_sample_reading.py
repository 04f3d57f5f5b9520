"""Samples of a run: whole groups from real files, whatever order their rows were committed in."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from sample_rows import row, table, turn

from rollout.dataset import Committer, write_file
from rollout.errors import UserError
from rollout.sample_reading import read_groups, read_samples
from rollout.samples import COLUMNS, SAMPLES, left_out, to_samples

ROWS = [
    row(
        turn([1, index], [10 + sample]),
        turn([2], [11], 1),
        index=index,
        sample=sample,
        reward=float(sample),
        messages=[{"role": "user", "content": "a text that samples do not need"}],
    )
    for index in range(40)
    for sample in range(4)
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """160 rows in disorder over 11 files, and a file that nobody committed."""
    rows = random.Random(0).sample(ROWS, len(ROWS))
    committer = Committer(str(tmp_path / "episodes"), "run")
    for part in [rows[start : start + 15] for start in range(0, len(rows), 15)]:
        committer.commit([write_file(committer.folder, table(*part))])
    write_file(committer.folder, table(*ROWS[:4]))
    return tmp_path


def test_every_row_comes_once_and_groups_stay_whole(run: Path) -> None:
    parts = list(read_samples(run, rows=8))
    assert len(parts) > 1
    seen: set[str] = set()
    for part in parts:
        part.validate(full=True)
        assert part.schema == SAMPLES
        groups = part["group_id"].to_pylist()
        assert seen.isdisjoint(groups)
        seen |= set(groups)
        assert groups == [group for group in dict.fromkeys(groups) for _ in range(8)], (
            "neighbours, of two segments each"
        )
    whole = pa.concat_tables(parts).to_pylist()
    expected = {(one["episode_id"], one["segment"]): one for one in to_samples(table(*ROWS)).to_pylist()}
    assert {(one["episode_id"], one["segment"]): one for one in whole} == expected
    assert len(whole) == len(expected)


def test_choices_reach_the_samples(run: Path) -> None:
    (whole,) = read_samples(run, "truncate")
    assert left_out(whole) == {"behind_break": {"episodes": 160, "tokens": 160}}


def test_groups_that_have_not_all_their_rows_are_passed_over(run: Path) -> None:
    committer = Committer(str(run / "episodes"), "run")
    committer.commit([write_file(committer.folder, table(row(turn([1], [10]), index=99)))])
    assert sum(part.num_rows for part in read_samples(run)) == 321
    assert sum(part.num_rows for part in read_samples(run, group_rows=4)) == 320
    assert list(read_samples(run, group_rows=5)) == []


def test_only_what_samples_are_made_of_is_read(run: Path) -> None:
    part = next(read_groups(run))
    assert set(part.schema.names) == set(COLUMNS)
    fields = {field.name for field in part.schema.field("turns").type.value_type}
    tokens = {"segment", "prompt_ids", "completion_ids", "logprobs", "versions"}
    assert fields == tokens | {"sampling", "reward", "trainable"}


def test_memory_follows_what_is_open_not_what_there_is(tmp_path: Path) -> None:
    committer = Committer(str(tmp_path / "episodes"), "run")
    for start in range(0, 160, 16):
        committer.commit([write_file(committer.folder, table(*ROWS[start : start + 16]))])
    sizes = [part.num_rows for part in read_groups(tmp_path, rows=16)]
    assert sizes == [16] * 10


def test_no_run_and_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run here"):
        next(read_samples(tmp_path / "none"))
    Committer(str(tmp_path / "episodes"), "run")
    assert list(read_samples(tmp_path)) == []
