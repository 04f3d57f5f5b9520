"""The driver's hands on the table: commits and merges at once, and what happens when a merge fails."""

import asyncio
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from actors.keeper import LATER_SECONDS, SWEEP_SECONDS, Keeper
from rollout.dataset import Committer, Fenced, RowFile, open_table, write_file
from rollout.rows import to_table
from rollout.sections import DatasetConfig
from rollout.trajectory import Lease, StopReason, Task, Trajectory

CONFIG = DatasetConfig(compact_files=4, keep_hours=0)


def file(committer: Committer, task: int) -> RowFile:
    lease = Lease("run", Task(f"t{task}", (), {}, task), 0, 1, False, 0)
    row = Trajectory(lease, "counter", "agent", "m", (), (), StopReason.DONE)
    return write_file(committer.folder, to_table([row, replace(row, lease=replace(lease, sample_index=1))]))


def rows(folder: Path) -> list[int]:
    table: pa.Table = open_table(folder).to_pyarrow_table(columns=["task_index"])
    return [int(str(task)) for task in table["task_index"].to_pylist()]


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(Committer(str(tmp_path / "episodes"), "run"), CONFIG)


async def tidied(keeper: Keeper) -> None:
    for _ in range(10):
        await keeper.tidy(lambda: True)


async def test_files_are_merged_while_others_are_committed(keeper: Keeper, tmp_path: Path) -> None:
    async def commits() -> None:
        for task in range(40):
            await keeper.commit([file(keeper.committer, task)])

    going = asyncio.create_task(commits())
    while not going.done():
        await keeper.tidy(lambda: True)
        assert set(Counter(rows(tmp_path)).values()) <= {2}
        await asyncio.sleep(0)
    await tidied(keeper)
    assert Counter(rows(tmp_path)) == Counter(list(range(40)) * 2)
    assert len(keeper.committer.files()) < 6
    keeper.clock = lambda: 2 * SWEEP_SECONDS + time.monotonic()
    await tidied(keeper)
    assert len(list((tmp_path / "episodes").glob("part-*"))) == len(keeper.committer.files()), "replaced ones are gone"


async def test_a_merge_that_fails_costs_nothing_and_is_tried_later(
    keeper: Keeper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    keeper.clock = lambda: now
    made = [file(keeper.committer, task) for task in range(4)]
    await keeper.commit(made)
    moved = tmp_path / made[2].path
    (tmp_path / "episodes" / made[2].path).rename(moved)
    await tidied(keeper)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["small files stay for now"]
    assert len(keeper.committer.files()) == 4
    moved.rename(tmp_path / "episodes" / made[2].path)
    now = 2 * LATER_SECONDS
    await tidied(keeper)
    assert len(keeper.committer.files()) == 1


async def test_a_driver_that_was_taken_over_learns_it_from_a_merge_too(keeper: Keeper) -> None:
    await keeper.commit([file(keeper.committer, task) for task in range(4)])
    Committer(keeper.committer.folder, "run").take_over()
    with pytest.raises(Fenced):
        await tidied(keeper)


async def test_0_leaves_small_files(tmp_path: Path) -> None:
    keeper = Keeper(Committer(str(tmp_path / "episodes"), "run"), CONFIG.model_copy(update={"compact_files": 0}))
    await keeper.commit([file(keeper.committer, task) for task in range(50)])
    await tidied(keeper)
    assert len(keeper.committer.files()) == 50
