"""Small files become large ones while everything else goes on: nothing lost, nothing doubled, nobody disturbed."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from test_dataset import file

from rollout.compaction import due, merge, merge_apart
from rollout.dataset import Committer, Fenced, RowFile, open_table
from rollout.rows import SCHEMA

MIB = 1 << 20


def files(*sizes: int) -> list[RowFile]:
    return [RowFile(f"part-{number}", size, 1, number) for number, size in enumerate(sizes)]


def tasks(folder: Path) -> list[int]:
    """Task numbers of the rows in the order of the files."""
    table = Committer(str(folder / "episodes"), "reader")
    read = [pq.read_table(folder / "episodes" / entry.path, columns=["task_index"]) for entry in table.files()]
    return [int(str(task)) for table in read for task in table["task_index"].to_pylist()]


@pytest.fixture
def committer(tmp_path: Path) -> Committer:
    return Committer(str(tmp_path / "episodes"), "run")


def compact(committer: Committer) -> None:
    old = due(committer.files(), 128 * MIB, 2)
    merged = merge(committer.folder, old)
    assert merged is not None
    committer.replace(old, merged)


def test_few_small_files_are_left_and_many_are_due() -> None:
    assert due(files(*[1000] * 31), 128 * MIB, 32) == ()
    assert len(due(files(*[1000] * 32), 128 * MIB, 32)) == 32
    assert due([], 128 * MIB, 2) == ()


def test_a_step_takes_neighbours_only_and_no_more_than_make_one_file() -> None:
    mixed = files(1, 1, 9 * MIB, 3 * MIB, 3 * MIB, 3 * MIB, 3 * MIB)
    assert [entry.path for entry in due(mixed, 128 * MIB, 4)] == ["part-3", "part-4", "part-5"]
    assert due(files(*[200 * MIB] * 50), 128 * MIB, 2) == (), "large files are left alone"


def test_files_of_the_first_level_become_large_ones_when_there_are_enough() -> None:
    merged = due(files(*[9 * MIB] * 40), 128 * MIB, 32)
    assert (len(merged), sum(entry.size for entry in merged) // MIB) == (15, 135)


def test_any_stream_of_commits_ends_as_few_files_in_order_and_a_row_is_rewritten_a_few_times() -> None:
    table, written, rewritten = list[RowFile](), 0, 0
    for number in range(5000):
        table.append(RowFile(f"part-{number}", MIB // 4, 1, number))
        written += MIB // 4
        while old := due(table, 128 * MIB, 32):
            at = table.index(old[0])
            assert table[at : at + len(old)] == list(old)
            size = sum(entry.size for entry in old)
            table[at : at + len(old)] = [RowFile("merged", size, len(old), old[0].since)]
            rewritten += size
    assert len(table) <= 2 * 32 + written // (128 * MIB)
    assert [entry.since for entry in table] == sorted(entry.since for entry in table)
    assert rewritten <= 3 * written


def test_a_compacted_table_has_the_same_rows_in_the_same_order(committer: Committer, tmp_path: Path) -> None:
    for task in range(6):
        committer.commit([file(committer, (task, 0), (task, 1))])
    compact(committer)
    committer.commit([file(committer, (6, 0))])
    assert tasks(tmp_path) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert len(committer.files()) == 2
    merged = pq.ParquetFile(tmp_path / "episodes" / committer.files()[0].path)
    assert merged.schema_arrow.equals(SCHEMA)
    assert (merged.metadata.num_row_groups, merged.metadata.row_group(0).column(0).compression) == (1, "ZSTD")
    compact(committer)
    assert tasks(tmp_path)[-1] == 6, "a rewritten file keeps its place"


def test_row_groups_do_not_end_where_the_small_files_ended(
    committer: Committer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [file(committer, *[(task, sample) for sample in range(10)]) for task in range(6)]
    batches = pq.ParquetFile(tmp_path / "episodes" / made[0].path).iter_batches()
    monkeypatch.setattr("rollout.compaction.ROW_GROUP_BYTES", 2 * sum(batch.nbytes for batch in batches) - 10)
    merged = merge(committer.folder, made)
    assert merged is not None
    metadata = pq.ParquetFile(tmp_path / "episodes" / merged.path).metadata
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)][:2] == [20, 20]
    assert metadata.num_rows == 60


def test_who_reads_increments_by_version_sees_no_row_twice(committer: Committer, tmp_path: Path) -> None:
    for task in range(4):
        committer.commit([file(committer, (task, 0))])
    compact(committer)
    log = sorted((tmp_path / "episodes" / "_delta_log").glob("*.json"))[-1].read_text()
    assert log.count('"remove"') == 4
    assert log.count('"add"') == 1
    assert '"dataChange":true' not in log
    assert log.count('"dataChange":false') == 5


def test_whoever_opened_the_table_before_reads_on(committer: Committer, tmp_path: Path) -> None:
    for task in range(4):
        committer.commit([file(committer, (task, 0))])
    before = open_table(tmp_path).to_pyarrow_dataset()
    compact(committer)
    again = Committer(committer.folder, "run")
    assert again.take_over() == 0, "replaced files are no strays"
    again.sweep(keep_hours=1)
    assert before.to_table().num_rows == 4
    again.sweep(keep_hours=0)
    assert len(list((tmp_path / "episodes").glob("part-*"))) == 1
    assert open_table(tmp_path).to_pyarrow_dataset().to_table().num_rows == 4
    again.commit([file(again, (4, 0))])
    assert tasks(tmp_path) == [0, 1, 2, 3, 4]


def test_invariant_1_a_driver_that_was_taken_over_can_neither_commit_nor_compact(
    committer: Committer, tmp_path: Path
) -> None:
    for task in range(4):
        committer.commit([file(committer, (task, 0))])
    old = committer.files()
    merged = merge(committer.folder, old)
    assert merged is not None
    stray = file(committer, (4, 0))
    again = Committer(committer.folder, "run")
    assert again.take_over() == 2
    with pytest.raises(Fenced):
        committer.replace(old, merged)
    with pytest.raises(Fenced):
        committer.commit([stray])
    compact(again)
    assert tasks(tmp_path) == [0, 1, 2, 3]


def test_a_step_that_is_stopped_or_fails_leaves_nothing(committer: Committer, tmp_path: Path) -> None:
    for task in range(4):
        committer.commit([file(committer, (task, 0))])
    before = sorted(path.name for path in (tmp_path / "episodes").iterdir())
    assert merge(committer.folder, committer.files(), lambda: False) is None
    with pytest.raises(OSError, match="gone"):
        merge(committer.folder, [*committer.files(), RowFile("gone", 1, 1)])
    assert sorted(path.name for path in (tmp_path / "episodes").iterdir()) == before


def test_a_large_merge_in_its_own_process_is_the_same(committer: Committer, tmp_path: Path) -> None:
    for task in range(4):
        committer.commit([file(committer, (task, 0))])
    before = sorted(path.name for path in (tmp_path / "episodes").iterdir())
    assert merge_apart(committer.folder, committer.files(), lambda: False, large=0) is None
    with pytest.raises(OSError, match="gone"):
        merge_apart(committer.folder, [*committer.files(), RowFile("gone", 1, 1)], lambda: True, large=0)
    assert sorted(path.name for path in (tmp_path / "episodes").iterdir()) == before
    old = committer.files()
    merged = merge_apart(committer.folder, old, lambda: True, large=0)
    assert merged is not None
    committer.replace(old, merged)
    assert tasks(tmp_path) == [0, 1, 2, 3]


WRITER = """
import sys
sys.path[:0] = sys.argv[2:]
from test_dataset import file
from rollout.compaction import due, merge
from rollout.dataset import Committer

committer = Committer(sys.argv[1], "run")
committer.take_over()
done = committer.done(2)
first = len(done) // 2
for task in range(first, first + 10_000):
    committer.commit([file(committer, (task, 0), (task, 1))])
    print(task, flush=True)
    while old := due(committer.files(), 1 << 20, 4):
        committer.replace(old, merge(committer.folder, old))
"""


def writer(folder: Path) -> subprocess.Popen[str]:
    """A process that commits groups of two rows and compacts, until it is killed."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent.parent)]
    command = [sys.executable, "-c", WRITER, str(folder / "episodes"), *paths]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_invariant_1_a_writer_that_is_killed_anywhere_loses_and_doubles_nothing(tmp_path: Path) -> None:
    told = -1
    for pause in (0.0, 0.013, 0.031, 0.057):
        process = writer(tmp_path)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= told + 12:
                break
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        told = int(rest[-1]) if rest else told + 12
        seen = Counter(tasks(tmp_path))
        assert set(seen.values()) == {2}
        assert sorted(seen) == list(range(len(seen)))
        assert told < len(seen) <= told + 2, "what was told as committed is there"
        told = len(seen) - 1
    again = Committer(str(tmp_path / "episodes"), "run")
    again.take_over()
    named = {entry.path for entry in again.files()} | set(
        DeltaTable(again.folder).vacuum(0, dry_run=True, enforce_retention_duration=False)
    )
    assert {path.name for path in (tmp_path / "episodes").glob("part-*")} <= named


def test_a_commit_costs_the_log_since_the_last_checkpoint_only(committer: Committer, tmp_path: Path) -> None:
    for task in range(45):
        committer.commit([file(committer, (task, 0))])
    checkpoints = sorted(path.name for path in (tmp_path / "episodes" / "_delta_log").glob("*.checkpoint.parquet"))
    assert len(checkpoints) == 2
