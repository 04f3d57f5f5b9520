"""Tasks without end."""

from __future__ import annotations

from itertools import islice

import pytest

from resources.counter import Counter
from rollout import epochs as module
from rollout.config import TasksConfig
from rollout.epochs import epochs


def first(count: int | None, seed: int, wanted: int, limit: int | None = None) -> list[tuple[int, str]]:
    given = epochs(TasksConfig(count=limit), Counter(count), seed)
    return [(task.index, task.id) for task in islice(given, wanted)]


def test_every_epoch_has_every_task_once_in_an_order_of_its_own() -> None:
    drawn = first(20, 0, 60)
    assert [index for index, _ in drawn] == list(range(60))
    parts = [[name for _, name in drawn[start : start + 20]] for start in (0, 20, 40)]
    assert all(sorted(part) == sorted(parts[0]) for part in parts)
    assert len({tuple(part) for part in parts}) == 3
    assert first(20, 0, 60) == drawn, "a resumed run numbers them alike"
    assert first(20, 1, 60) != drawn


def test_only_so_many_are_taken_as_the_job_says() -> None:
    assert {name for _, name in first(20, 0, 30, limit=3)} == {"counter-0", "counter-1", "counter-2"}


def test_a_source_without_end_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHUFFLED", 8)
    names = [name for _, name in first(None, 0, 16)]
    assert sorted(names[:8]) == sorted(f"counter-{number}" for number in range(8))
    assert sorted(names[8:]) == sorted(f"counter-{number}" for number in range(8, 16))


def test_a_source_that_gives_nothing_ends() -> None:
    assert first(0, 0, 5) == []
