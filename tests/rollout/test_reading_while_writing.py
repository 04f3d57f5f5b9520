"""Trainers and people read a run while it is written and its files are merged: each read is a whole moment of it."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import polars
import pytest
from test_compaction import writer

from rollout.database import opened
from rollout.dataset import open_table

READS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that a process is writing to, two rows a task, and compacting."""
    folder = tmp_path_factory.mktemp("run")
    process = writer(folder)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) > 5:
            break
    yield folder
    assert process.poll() is None, "it was written to all the time"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def with_pyarrow(run: Path) -> list[int]:
    return open_table(run).to_pyarrow_dataset().to_table(columns=["task_index"])["task_index"].to_pylist()


def with_polars(run: Path) -> list[int]:
    return polars.scan_delta(str(run / "episodes")).select("task_index").collect()["task_index"].to_list()


def with_duckdb(run: Path) -> list[int]:
    relation = duckdb.connect().read_parquet(open_table(run).file_uris())
    return [row[0] for row in relation.project("task_index").fetchall()]


def with_our_sql(run: Path) -> list[int]:
    with opened(run) as database:
        return [row["task_index"] for row in database.rows("SELECT task_index FROM episodes")]


@pytest.mark.parametrize("read", [with_pyarrow, with_polars, with_duckdb, with_our_sql])
def test_each_read_is_a_whole_moment_of_the_run(run: Path, read: Callable[[Path], list[int]]) -> None:
    before, versions = 0, set[int]()
    for _ in range(READS):
        versions.add(open_table(run).version())
        seen = Counter(read(run))
        assert set(seen.values()) == {2}, "all rows of a commit, none twice"
        assert sorted(seen) == list(range(len(seen))), "no commit before it is missing"
        assert len(seen) >= before
        before = len(seen)
    assert len(versions) > 1
    log = "".join(path.read_text() for path in (run / "episodes" / "_delta_log").glob("*.json"))
    assert '"remove"' in log, "files were merged meanwhile"
