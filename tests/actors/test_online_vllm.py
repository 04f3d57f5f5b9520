"""New weights for vLLM itself while it is sampling: tokens say whose they are, and are."""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path

import pytest
from ray_jobs import Head, keys, rows
from test_online import trainer

from rollout.template import BUNDLED

JOB = ["model.max_in_flight=32", "scheduler.in_flight=32", "model.kv_cache_gib=0.25", "run.limits.max_tokens=512"]


def copied(folder: Path, zeros: bool = False) -> str:
    """The bundled weights, or as many zeros: every token is equally likely then."""
    folder.mkdir()
    shutil.copy(BUNDLED / "config.json", folder)
    content = (BUNDLED / "model.safetensors").read_bytes()
    if zeros:
        head = 8 + struct.unpack("<Q", content[:8])[0]
        content = content[:head] + bytes(len(content) - head)
    (folder / "model.safetensors").write_bytes(content)
    return str(folder)


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.timeout(420)
def test_weights_change_under_episodes_in_flight_and_a_replica_that_dies_comes_back_with_them(
    tmp_path: Path, head: Head
) -> None:
    folders = [copied(tmp_path / "same"), copied(tmp_path / "zeros", zeros=True)]
    handed: list[str] = []
    asked = {"folders": folders, "groups": 4, "keeps_equal": True}
    with trainer(tmp_path, head, JOB, conf="demo", seconds=200, **asked) as one:
        for version in (1, 2):
            handed += one.ask("pull")["groups"]
            assert one.ask("publish") == {"published": version}
        (tmp_path / "broken").mkdir()
        assert "no *.safetensors in it" in one.ask(f"publish {tmp_path / 'broken'}")["error"]
        shutil.copytree(tmp_path / "same", tmp_path / "cut")
        content = (tmp_path / "cut" / "model.safetensors").read_bytes()
        (tmp_path / "cut" / "model.safetensors").write_bytes(content[:-100])
        assert "cut off" in one.ask(f"publish {tmp_path / 'cut'}")["error"]
        [replica] = head.workers("ray::ServeReplica")
        replica.kill()
        for _ in range(3):  # the first of them were played before it died
            batch = one.ask("pull", seconds=200)
            assert (batch["version"], max(batch["behind"]) <= 1) == (2, True)
            handed += batch["groups"]
        assert one.ask("publish") == {"published": 3}
        one.close()
    assert len(handed) == len(set(handed)) == 20
    committed = rows(tmp_path / "run")
    assert len(keys(tmp_path / "run")) == len(set(keys(tmp_path / "run")))
    assert all(sum(row["group_id"] == group for row in committed) == 4 for group in handed), "no row is lost"
    uniform = -math.log(json.loads((BUNDLED / "config.json").read_text())["vocab_size"])
    turns = [turn for row in committed for turn in row["turns"]]
    for turn in turns:
        spans = turn["versions"]
        assert [span["start"] for span in spans] == [0, *(span["end"] for span in spans[:-1])]
        assert spans[-1]["end"] == len(turn["completion_ids"])
        for span in spans:
            logprobs = turn["logprobs"][span["start"] : span["end"]]
            even = all(abs(logprob - uniform) < 0.01 for logprob in logprobs)
            assert even == (span["version"] == "2"), "the tokens are of the weights that they say"
    assert any(len(turn["versions"]) > 1 for turn in turns), "completions went on under other weights"
    of_zeros = {turn["replica"] for turn in turns for span in turn["versions"] if span["version"] == "2"}
    assert len(of_zeros) == 2, "also those of the replica that took the dead one's place"
    assert len({turn["replica"] for turn in turns}) == 2
