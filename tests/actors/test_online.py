"""The online API as a trainer in a process of its own sees it: a real cluster, the scripted engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from ray_jobs import PATIENCE, Head, end, keys, rows, until

DICE = f"{Path(__file__).parent / 'dice.py'}:Dice"
JOB = [f"resource.name={DICE}", "resource.options.count=10", "run.samples_per_task=4", "run.over_sample=1"]
JOB += ["model.latency_seconds=0.05", "scheduler.in_flight=40"]


class Trainer:
    """`trainer.py` at work."""

    def __init__(self, process: subprocess.Popen[str], out: Path) -> None:
        self.process = process
        self.out = out
        self._heard = 0

    def ask(self, verb: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Has it do something; what it tells of that."""
        self.tell(verb)
        return self.hear(seconds)

    def tell(self, verb: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(verb + "\n")
        self.process.stdin.flush()

    def hear(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """Its next line."""

        def line() -> str | None:
            lines = [line for line in self.out.read_text().splitlines(keepends=True) if line.startswith("{")]
            if len(lines) > self._heard and lines[self._heard].endswith("\n"):
                return lines[self._heard]
            assert self.process.poll() is None, self.out.read_text()
            return None

        said = json.loads(until(line, "it says something", seconds))
        self._heard += 1
        return said

    def close(self) -> None:
        """Ends it as it likes to end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE) == 0, self.out.read_text()


@contextmanager
def trainer(
    folder: Path, head: Head, overrides: list[str], conf: str = "scripted", seconds: float = PATIENCE, **asked: Any
) -> Iterator[Trainer]:
    """A trainer on a cluster, open for its first step."""
    out = folder / f"trainer-{len(list(folder.glob('trainer-*')))}.log"
    asked = {"folders": [str(folder)], "groups": 3, "address": head.address, **asked}
    program = [sys.executable, str(Path(__file__).with_name("trainer.py")), conf, json.dumps(asked)]
    with out.open("wb") as log:
        process = subprocess.Popen(
            [*program, f"run.dir={folder / 'run'}", *overrides],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=head.env,
            text=True,
            start_new_session=True,
        )
    try:
        started = Trainer(process, out)
        assert "open" in started.hear(seconds)
        yield started
    finally:
        end(process)


def reads(folder: Path) -> list[dict[str, Any]]:
    return DeltaTable(str(folder / "run" / "reads" / "trainer")).to_pyarrow_table().sort_by("number").to_pylist()


@pytest.mark.ray
def test_groups_are_whole_not_too_old_and_each_is_accounted_for(tmp_path: Path, head: Head) -> None:
    given: list[dict[str, Any]] = []
    with trainer(tmp_path, head, JOB, max_behind=1) as one:
        for version in range(1, 5):
            given.append(batch := one.ask("pull"))
            assert batch["version"] == version - 1
            assert len(set(batch["groups"])) == 3
            assert Counter(row["group_id"] for row in batch["rows"]) == dict.fromkeys(batch["groups"], 5)
            rewards = {row["group_id"]: set[float]() for row in batch["rows"]}
            for row in batch["rows"]:
                if row["reward"] is not None:
                    rewards[row["group_id"]].add(row["reward"])
            assert all(some == {0.0, 1.0} for some in rewards.values()), "equal rewards teach nothing"
            assert max(batch["behind"]) <= 1
            assert batch["samples"] == sum(row["reward"] is not None for row in batch["rows"])
            assert one.ask("publish") == {"published": version}
        assert one.ask("publish /nowhere") == {"error": "UserError: /nowhere: no such folder"}
        told = one.ask("report")
        one.close()
    assert told["version"] == 4
    handed = [group for batch in given for group in batch["groups"]]
    assert len(set(handed)) == 12
    entries = reads(tmp_path)
    verdicts = {row["group_id"]: row["verdict"] for row in entries}
    assert {group for group, verdict in verdicts.items() if verdict == "trained"} == set(handed)
    assert told["trained"] == 12
    assert told["filtered"] == Counter(verdicts.values())["filtered"] > 0
    committed = rows(tmp_path / "run")
    assert len(keys(tmp_path / "run")) == len(set(keys(tmp_path / "run")))
    assert {row["step"] for row in committed} > {0, 1}
    for row in committed:
        spans = [int(span["version"]) for turn in row["turns"] for span in turn["versions"]]
        assert spans == sorted(spans)
        assert not spans or spans[0] >= row["step"], "an attempt knows no weights of before it began"
    assert "straggler" in {row["drop_reason"] for row in committed}, "what was played for nothing is there as well"


@pytest.mark.ray
def test_a_trainer_that_is_killed_and_comes_back_reads_each_group_once(tmp_path: Path, head: Head) -> None:
    with trainer(tmp_path, head, JOB) as one:
        first = one.ask("pull")
        assert one.ask("publish") == {"published": 1}
        second = one.ask("pull")
        third = one.ask("pull")  # which acknowledges the second
        one.process.kill()
        one.process.wait()
    known = {group for batch in (first, second, third) for group in batch["groups"]}
    with trainer(tmp_path, head, JOB, resume=True, max_behind=9, blocking=True) as two:
        again = two.ask("pull")
        assert set(again["groups"]) == set(third["groups"]), "it was not acknowledged, and is the oldest"
        assert again["version"] == 1, "the weights that were published are served"
        assert not known & set(two.ask("pull")["groups"])
        two.close()
    final = {row["group_id"]: row["verdict"] for row in reads(tmp_path)}
    assert {final[group] for group in known} == {"trained"}
    assert "returned" in {row["verdict"] for row in reads(tmp_path)}
    assert len(keys(tmp_path / "run")) == len(set(keys(tmp_path / "run")))
