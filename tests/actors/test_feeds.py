"""Runs as torch and Hugging Face datasets read them: finished, being written, and by several workers."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from feed_runs import being_written, write
from torch.utils.data import DataLoader

from actors.feeds import hf_samples, torch_samples
from rollout.errors import UserError
from rollout.feeding import committed
from rollout.samples import SAMPLES, to_samples

TASKS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feeds") / "run"
    write(folder, TASKS)
    return folder


@pytest.fixture(scope="module")
def expected(run: Path) -> dict[str, dict[str, Any]]:
    """The samples of the run by their episode."""
    rows = [sample for batch in committed(run) for sample in to_samples(_table(batch)).to_pylist()]
    return {row["episode_id"]: row for row in rows}


def _table(batch: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_batches([batch])


def plain(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}


def test_torch_reads_whole_groups_as_tensors(run: Path, expected: dict[str, Any]) -> None:
    samples = list(torch_samples(run))
    assert {sample["episode_id"]: plain(sample) for sample in samples} == expected
    assert len(samples) == 2 * TASKS
    kinds = [samples[0][name].dtype for name in ("token_ids", "loss_mask", "logprobs")]
    assert kinds == [torch.int32, torch.int8, torch.float32]
    assert [len(list(group)) for _, group in groupby(samples, key=lambda sample: sample["group_id"])] == [2] * TASKS


def test_each_group_comes_from_one_spawned_worker_of_one_rank(run: Path, expected: dict[str, Any]) -> None:
    first, second = (torch_samples(run, rank=rank, ranks=2) for rank in range(2))
    by_workers = DataLoader(first, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    seen = [plain(sample) for loader in (by_workers, second) for sample in loader]
    assert Counter(sample["episode_id"] for sample in seen) == Counter(expected.keys())
    shares = [{plain(sample)["group_id"] for sample in loader} for loader in (first, second)]
    assert all(0 < len(share) < TASKS for share in shares)


def test_a_forked_worker_says_how_workers_have_to_start(run: Path) -> None:
    loader = DataLoader(torch_samples(run), batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(UserError, match="start workers with 'spawn'"):
        list(loader)


def test_a_rank_that_there_is_not_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="reader 2 of 2"):
        torch_samples(run, rank=2, ranks=2)


def test_how_rows_become_samples_can_be_chosen(run: Path) -> None:
    assert len(list(torch_samples(run, samples=partial(to_samples, breaks="per_turn")))) == 6 * TASKS


def test_torch_reads_a_run_to_its_end_while_it_is_written(tmp_path: Path) -> None:
    with being_written(tmp_path / "run", tasks=40) as writer:
        samples = torch_samples(tmp_path / "run", follow_seconds=5)
        seen = Counter(sample["group_id"] for sample in samples)
        assert writer.wait(timeout=20) == 0
    assert seen == Counter({f"run-{number}": 2 for number in range(40)})


def test_datasets_reads_the_same_and_divides_it_by_nodes(run: Path, expected: dict[str, Any]) -> None:
    distributed = pytest.importorskip("datasets.distributed")
    whole = hf_samples(run)
    assert list(whole.features) == SAMPLES.names
    assert {sample["episode_id"]: sample for sample in whole} == expected
    seen = Counter[str]()
    for rank in range(2):
        split = distributed.split_dataset_by_node(hf_samples(run), rank=rank, world_size=2)
        groups = Counter(sample["group_id"] for sample in split)
        assert set(groups.values()) == {2}
        seen += groups
    assert len(seen) == TASKS


def test_without_datasets_one_line_says_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        hf_samples(run)
