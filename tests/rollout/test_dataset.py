"""The table: files that are committed, files that are not, and two drivers that both think it is theirs."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from fakes import lease

from rollout.dataset import Committer, Fenced, RowFile, open_table, write_file
from rollout.errors import UserError
from rollout.progress import Done
from rollout.rows import SCHEMA, to_table
from rollout.trajectory import StopReason, Task, Trajectory


def row(task: int, sample: int) -> Trajectory:
    chosen = replace(lease(Task(f"t{task}", (), {}, task)), sample_index=sample)
    return Trajectory(chosen, "counter", "agent", "m", (), (), StopReason.DONE)


def file(committer: Committer, *samples: tuple[int, int]) -> RowFile:
    return write_file(committer.folder, to_table([row(*sample) for sample in samples]))


def episodes(folder: Path) -> list[str]:
    ids = open_table(folder).to_pyarrow_table(columns=["episode_id"])["episode_id"].to_pylist()
    return sorted(str(episode_id) for episode_id in ids)


@pytest.fixture
def committer(tmp_path: Path) -> Committer:
    return Committer(str(tmp_path / "episodes"), "run")


def test_rows_are_there_when_they_are_committed_and_not_before(committer: Committer, tmp_path: Path) -> None:
    first, second = file(committer, (0, 0), (0, 1)), file(committer, (1, 0))
    assert episodes(tmp_path) == []
    committer.commit([first])
    assert episodes(tmp_path) == ["run-0-0", "run-0-1"]
    committer.commit([second])
    assert episodes(tmp_path) == ["run-0-0", "run-0-1", "run-1-0"]
    assert (first.rows, committer.last) == (2, 2)
    assert first.size == (tmp_path / "episodes" / first.path).stat().st_size
    assert committer.done(2) == Done((0,), (3,))


def test_invariant_1_files_nobody_committed_do_not_exist_and_are_cleared_away(
    committer: Committer, tmp_path: Path
) -> None:
    kept, stray = file(committer, (0, 0)), file(committer, (0, 1))
    committer.commit([kept])
    again = Committer(committer.folder, "run")
    assert len(again.done(2)) == 1
    assert again.take_over() == 1
    assert not (tmp_path / "episodes" / stray.path).exists()
    assert episodes(tmp_path) == ["run-0-0"]
    assert again.take_over() == 0


def test_invariant_1_of_two_drivers_only_one_can_go_on(tmp_path: Path) -> None:
    folder = str(tmp_path / "episodes")
    old, new = Committer(folder, "run"), Committer(folder, "run")
    new.commit([file(new, (0, 0))])
    for _ in range(2):
        with pytest.raises(Fenced, match="another driver"):
            old.commit([file(old, (0, 0))])
    new.commit([file(new, (0, 1))])
    late = Committer(folder, "run")
    late.commit([file(late, (1, 0))])
    with pytest.raises(Fenced):
        new.commit([file(new, (1, 0))])
    assert episodes(tmp_path) == ["run-0-0", "run-0-1", "run-1-0"]


def test_a_resumed_run_goes_on_counting(committer: Committer) -> None:
    committer.commit([file(committer, (0, 0))])
    again = Committer(committer.folder, "run")
    assert again.last == 1
    again.commit([file(again, (0, 1)), file(again, (0, 2))])
    assert (again.last, len(again.done(3))) == (2, 3)


def test_samples_beyond_what_a_task_has_now_hide_no_other(committer: Committer) -> None:
    committer.commit([file(committer, (0, 0), (0, 3), (2, 1))])
    assert committer.done(4) == Done((0, 3, 9), (1, 4, 10))
    assert committer.done(2) == Done((0, 5), (1, 6)), "sample 3 of task 0 is not sample 1 of task 1"


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_written_leaves_nothing(committer: Committer, tmp_path: Path) -> None:
    table = to_table([row(0, 0)])
    with full_disk(100), pytest.raises(OSError, match="too large"):
        write_file(committer.folder, table)
    with pytest.raises(AttributeError):
        write_file(committer.folder, "no table")  # pyright: ignore[reportArgumentType]
    assert [path.name for path in (tmp_path / "episodes").iterdir()] == ["_delta_log"]


def test_a_commit_that_cannot_be_written_says_why_in_one_line_and_can_be_tried_again(
    committer: Committer, tmp_path: Path
) -> None:
    written = file(committer, (0, 0))
    with full_disk(100), pytest.raises(OSError, match="too large") as caught:
        committer.commit([written])
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert episodes(tmp_path) == []
    committer.commit([written])
    assert episodes(tmp_path) == ["run-0-0"]


@pytest.mark.parametrize("name", ["my run", "a#b", "a?b", "ü", "a%b", "a'b"])
def test_a_run_may_lie_in_any_folder(tmp_path: Path, name: str) -> None:
    committer = Committer(str(tmp_path / name / "episodes"), "run")
    kept, _ = file(committer, (0, 0)), file(committer, (0, 1))
    committer.commit([kept])
    again = Committer(committer.folder, "run")
    assert (again.take_over(), len(again.done(2))) == (1, 1)


def test_a_folder_that_can_hold_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run.dir: .*a%20b") as caught:
        Committer(str(tmp_path / "a%20b" / "episodes"), "run")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no run here"):
        open_table(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_files_are_zstd_and_have_the_whole_schema(committer: Committer, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "episodes" / file(committer, (0, 0)).path
    assert pq.read_schema(path).equals(SCHEMA)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert isinstance(pq.read_table(path), pa.Table)
