"""Ray Data over a run while it is written and merged, and TransferQueue fed from it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from feed_runs import being_written, write

from actors.adapters.transfer_queue import feed, put_samples
from actors.feeds import ray_rows, ray_samples, torch_samples
from rollout.dataset import Committer, open_table
from rollout.errors import UserError
from rollout.samples import SAMPLES

pytestmark = pytest.mark.ray
READS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """In this process: Ray Data has no client of its own. TransferQueue sets a CPU aside for each of its parts."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def data(cluster: None) -> Any:
    data = pytest.importorskip("ray.data", reason="Ray Data needs pandas")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    return data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that is being written and merged."""
    folder = tmp_path_factory.mktemp("ray") / "run"
    with being_written(folder) as writer:
        yield folder
        assert writer.poll() is None, "it was written to all the time"


def with_our_reader(data: Any, run: Path) -> Any:
    return ray_rows(run, ["task_index"])


def with_their_reader(data: Any, run: Path) -> Any:
    return data.read_parquet(open_table(run).file_uris(), columns=["task_index"])


@pytest.mark.parametrize("reader", [with_our_reader, with_their_reader])
def test_each_read_is_a_whole_moment_of_the_run(data: Any, run: Path, reader: Callable[[Any, Path], Any]) -> None:
    before, versions = 0, set[int]()
    for _ in range(READS):
        versions.add(open_table(run).version())
        seen = [row["task_index"] for row in reader(data, run).take_all()]
        counts = Counter(seen)
        whole = len(seen) // 2  # groups are committed one after the other, a row at a time
        assert counts == Counter({number: 2 for number in range(whole)} | ({whole: 1} if len(seen) % 2 else {}))
        assert len(seen) >= before
        before = len(seen)
    assert len(versions) > 1
    log = "".join(path.read_text() for path in (run / "episodes" / "_delta_log").glob("*.json"))
    assert '"remove"' in log, "files were merged meanwhile"


def test_ray_makes_samples_where_it_reads(data: Any, run: Path) -> None:
    samples = ray_samples(run).take_all()
    assert list(samples[0]) == SAMPLES.names
    assert {(len(one["token_ids"]) == len(one["logprobs"]), one["reward"]) for one in samples} == {(True, 1.0)}


def test_a_run_without_a_row_is_an_empty_dataset(data: Any, tmp_path: Path) -> None:
    Committer(str(tmp_path / "episodes"), "run")
    assert ray_rows(tmp_path, ["task_index"]).take_all() == []
    assert ray_samples(tmp_path).take_all() == []


def test_transfer_queue_gives_back_what_a_run_put_in(cluster: None, tmp_path: Path) -> None:
    tq = pytest.importorskip("transfer_queue")
    write(tmp_path / "run", 3)
    tq.init()
    try:
        assert asyncio.run(feed(tmp_path / "run", "train")) == 6
        tags = tq.kv_list(partition_id="train")["train"]
        assert sorted(tags) == [f"run-{task}_{sample}_0" for task in range(3) for sample in range(2)]
        for sample in torch_samples(tmp_path / "run"):
            key, split = f"{sample['group_id']}_{sample['sample_index']}_0", sample["prompt_length"]
            got = {name: value[0] for name, value in tq.kv_batch_get(keys=[key], partition_id="train").items()}
            assert torch.equal(got["input_ids"], sample["token_ids"].long())
            assert torch.equal(torch.cat([got["prompts"], got["responses"]]), got["input_ids"])
            assert torch.equal(got["response_mask"], sample["loss_mask"][split:].long())
            assert torch.equal(got["rollout_log_probs"], sample["logprobs"][split:])
            assert (got["rm_scores"].sum(), got["rm_scores"][-1]) == (1.0, 1.0)
            assert tags[key]["uid"] == sample["group_id"]
            assert tags[key]["seq_len"] == len(sample["token_ids"])
        assert asyncio.run(put_samples(SAMPLES.empty_table())) == []
    finally:
        tq.close()


async def test_without_transfer_queue_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transfer_queue", None)
    with pytest.raises(UserError, match="pip install TransferQueue"):
        await put_samples(SAMPLES.empty_table())
