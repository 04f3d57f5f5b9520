"""Committed rows as a stream: in order, group by group, shared out, and the same while files are merged."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fakes import lease
from hypothesis import given
from hypothesis import strategies as st
from test_dataset import file

from rollout import feeding
from rollout.compaction import merge
from rollout.config import find_conf, load
from rollout.dataset import Committer, RowFile, open_table, write_file
from rollout.errors import RolloutError, UserError
from rollout.feeding import Share, committed, whole_groups
from rollout.rows import to_table
from rollout.run_folder import create_or_resume
from rollout.trajectory import Message, StopReason, Task, Trajectory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of groups of two without a row."""
    folder = tmp_path / "run"
    create_or_resume(load(find_conf("scripted"), [f"run.dir={folder}", "run.samples_per_task=2"]), {}, False, False)
    return folder


@pytest.fixture
def committer(run: Path) -> Committer:
    return Committer(str(run / "episodes"), "run")


def compact(committer: Committer, old: list[RowFile]) -> None:
    merged = merge(committer.folder, old)
    assert merged is not None
    committer.replace(old, merged)


def samples(batches: Iterator[Any]) -> list[tuple[int, int]]:
    return [
        (row["task_index"], row["sample_index"])
        for batch in batches
        for row in batch.select(["task_index", "sample_index"]).to_pylist()
    ]


def test_a_place_in_the_rows_stays_true_whichever_neighbours_are_merged(committer: Committer, run: Path) -> None:
    for task in range(4):  # several files in one commit, of different lengths
        names = sorted([file(committer, (task, 0)), file(committer, (task, 1), (task, 2))], key=lambda one: one.path)
        committer.commit(names[::-1] if task % 2 else names)
    before = samples(committed(run))
    assert len(before) == 12
    compact(committer, committer.files()[1:3])
    compact(committer, committer.files()[3:5])
    assert samples(committed(run)) == before
    for start in range(13):
        assert samples(committed(run, start)) == before[start:]


def test_a_reader_goes_on_where_it_was_when_what_it_had_listed_was_merged_and_swept(
    committer: Committer, run: Path
) -> None:
    for task in range(4):
        committer.commit([file(committer, (task, 0), (task, 1))])
    rows = committed(run)
    seen = samples(iter([next(rows)]))
    compact(committer, committer.files())
    committer.sweep(keep_hours=0)
    committer.commit([file(committer, (4, 0), (4, 1))])
    assert seen + samples(rows) == [(task, sample) for task in range(4) for sample in range(2)], (
        "as it was at the start"
    )


def test_a_file_that_the_table_names_and_nobody_has_is_told(committer: Committer, run: Path) -> None:
    committer.commit([file(committer, (0, 0))])
    (run / "episodes" / committer.files()[0].path).unlink()
    with pytest.raises(RolloutError, match=r"part-.*No such file"):
        list(committed(run))


def test_columns_can_be_chosen_and_batches_are_small(committer: Committer, run: Path) -> None:
    committer.commit([file(committer, *[(task, 0) for task in range(150)])])
    batches = list(committed(run, 10, columns=["task_index"]))
    assert [batch.num_rows for batch in batches] == [54, 64, 22]
    assert batches[0].schema.names == ["task_index"]


def test_a_group_comes_whole_when_its_last_row_is_committed(committer: Committer, run: Path) -> None:
    for pair in ([(0, 0), (1, 0)], [(2, 0), (1, 1)], [(0, 1)]):
        committer.commit([file(committer, *pair)])
    assert [samples(iter([table])) for table in whole_groups(run)] == [[(1, 0), (1, 1)], [(0, 0), (0, 1)]]
    tables = list(whole_groups(run, partial=True))
    assert samples(iter(tables[2:])) == [(2, 0)], "what is not whole comes last, to who asks for it"


def test_over_sampled_groups_are_whole_with_the_rows_of_their_stragglers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = load(find_conf("scripted"), [f"run.dir={run}", "run.samples_per_task=1", "run.over_sample=1"])
    create_or_resume(made, {}, False, False)
    committer = Committer(str(run / "episodes"), "run")
    committer.commit([file(committer, (0, 0))])
    assert list(whole_groups(run)) == []
    committer.commit([file(committer, (0, 1))])
    assert len(list(whole_groups(run))) == 1


@given(st.integers(1, 9), st.lists(st.text(), max_size=30))
def test_every_group_is_held_by_exactly_one_reader(readers: int, groups: list[str]) -> None:
    for group in groups:
        assert sum(Share((number,), readers).holds(group) for number in range(readers)) == 1
        assert Share(tuple(range(readers)), readers).holds(group)


@pytest.mark.parametrize(("numbers", "of"), [((2,), 2), ((-1,), 2), ((0,), 0)])
def test_a_reader_that_there_is_not_is_refused(numbers: tuple[int, ...], of: int) -> None:
    with pytest.raises(UserError, match="expected numbers from 0"):
        Share(numbers, of)


def test_readers_who_share_a_run_get_each_group_once(committer: Committer, run: Path) -> None:
    committer.commit([file(committer, *[(task, sample) for sample in range(2) for task in range(50)])])
    shares = [samples(whole_groups(run, Share((number,), 3))) for number in range(3)]
    assert all(len(share) > 10 for share in shares)
    together = Counter(one for share in shares for one in share)
    assert together == Counter((task, sample) for task in range(50) for sample in range(2))


def test_a_follower_gets_what_is_committed_after_it_began_and_ends_in_silence(
    committer: Committer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "LOOK_SECONDS", 0.01)
    committer.commit([file(committer, (0, 0), (0, 1))])
    seen, groups = [], whole_groups(run, follow_seconds=0.5)
    for number, table in enumerate(groups):
        seen += samples(iter([table]))
        if number < 20:
            committer.commit([file(committer, (number + 1, 1), (number + 1, 0))])
        if number % 5 == 4:
            compact(committer, committer.files())
    assert seen == [(0, 0), (0, 1)] + [(task, sample) for task in range(1, 21) for sample in (1, 0)]


def test_memory_follows_what_is_not_whole_and_not_the_run(committer: Committer, run: Path) -> None:
    for first in range(0, 400, 20):
        rows = to_table([_heavy(task, sample) for task in range(first, first + 20) for sample in range(2)])
        committer.commit([write_file(committer.folder, rows)])
    whole = open_table(run).to_pyarrow_table().nbytes
    idle = most = pa.total_allocated_bytes()
    count = 0
    for table in whole_groups(run):
        count += table.num_rows
        most = max(most, pa.total_allocated_bytes())
    assert count == 800
    assert whole > 16 << 20
    assert most - idle < whole / 4


def _heavy(task: int, sample: int) -> Trajectory:
    chosen = replace(lease(Task(f"t{task}", (), {}, task)), sample_index=sample)
    told: Message = {"role": "user", "content": f"{task}" * 10_000}
    return Trajectory(chosen, "counter", "agent", "m", (told,), (), StopReason.DONE)
