"""Rows of real episodes keep every rule; rows that are broken by hand are found, each by its rule and its name."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from test_reading import ENDLESS, GOOD, POOR, play

from rollout.findings import Checked, Finding, Known
from rollout.invariants import check_rows
from rollout.rows import SCHEMA, to_table
from rollout.template import BUNDLED, vocabulary_size
from rollout.trajectory import Limits, Trajectory

KNOWN = Known("run", vocabulary_size(BUNDLED), Limits(max_turns=4))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Completed with and without errors, cut by a limit, failed, and dropped."""

    async def played() -> list[Trajectory]:
        unwanted = replace(await play(2, 0, GOOD), score=None, drop_reason="nobody wants it")
        ended = [await play(0, 0, GOOD), await play(0, 1, POOR), await play(1, 0, ENDLESS), await play(1, 1, None)]
        return [*ended, unwanted]

    return to_table(asyncio.run(played())).to_pylist()


def check(rows: list[dict[str, Any]], known: Known = KNOWN) -> tuple[list[Finding], Checked]:
    (batch,) = pa.Table.from_pylist(rows, schema=SCHEMA).combine_chunks().to_batches()
    return check_rows(batch, known)


def test_real_episodes_keep_every_rule(rows: list[dict[str, Any]]) -> None:
    findings, checked = check(rows)
    assert findings == []
    assert checked.episodes == 5
    assert checked.segments == checked.continued == 4
    scored = sum(row["completion_tokens"] for row in rows if row["reward"] is not None)
    assert checked.ones == checked.sampled == scored > 0


def first(row: dict[str, Any]) -> dict[str, Any]:
    return row["turns"][0]


def ragged(row: dict[str, Any]) -> None:
    first(row)["logprobs"] = first(row)["logprobs"][1:]


BREAKS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "renamed": ("one row a sample", lambda row: row.update(sample_index=7)),
    "foreign": ("one row a sample", lambda row: row.update(run_id="other")),
    "unrewarded": ("a failure is no reward", lambda row: row.update(reward=None)),
    "failed": ("a failure is no reward", lambda row: row.update(status="failed")),
    "not a number": ("a failure is no reward", lambda row: row.update(reward=float("nan"))),
    "no result": ("one result a call", lambda row: first(row)["tool_calls"].pop()),
    "twice": ("one result a call", lambda row: first(row)["tool_calls"].append(first(row)["tool_calls"][0])),
    "untold": ("one result a call", lambda row: row["messages"].pop(3)),
    "calls": ("counts", lambda row: row.update(tool_calls=9)),
    "turns": ("counts", lambda row: row.update(num_turns=9)),
    "segment": ("segments", lambda row: first(row).update(segment=1)),
    "gap": ("versions cover what was sampled", lambda row: first(row)["versions"][0].update(start=1)),
    "unnamed": ("versions cover what was sampled", lambda row: first(row)["versions"][0].update(version="")),
    "uncounted": ("one id a sampled token", lambda row: row.update(completion_tokens=row["completion_tokens"] + 1)),
    "prompt": ("prompts continue what was sampled", lambda row: first(row)["prompt_ids"].pop()),
    "ragged": ("what an engine can have sampled", ragged),
    "foreign id": ("what an engine can have sampled", lambda row: first(row)["completion_ids"].__setitem__(0, 9999)),
    "negative id": ("what an engine can have sampled", lambda row: first(row)["prompt_ids"].__setitem__(0, -1)),
    "infinite": ("what an engine can have sampled", lambda row: first(row)["logprobs"].__setitem__(0, float("-inf"))),
    "above one": ("what an engine can have sampled", lambda row: first(row)["logprobs"].__setitem__(0, 0.5)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found_by_its_rule_and_its_name(rows: list[dict[str, Any]], name: str) -> None:
    rule, damage = BREAKS[name]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    damaged = table.to_pylist()
    damage(damaged[1])
    findings, _ = check(damaged)
    assert rule in {finding.rule for finding in findings}
    assert {finding.episode_id for finding in findings} == {damaged[1]["episode_id"]}


def test_a_failure_with_a_reward_is_found(rows: list[dict[str, Any]]) -> None:
    failed = {**rows[3], "reward": 0.0}
    findings, _ = check([rows[0], failed])
    assert [(finding.rule, finding.episode_id) for finding in findings] == [
        ("a failure is no reward", failed["episode_id"])
    ]


def test_limits_hold_where_they_are_known(rows: list[dict[str, Any]]) -> None:
    findings, _ = check(rows[:1], Known(limits=Limits(max_turns=2, max_tokens=5, turn_tokens=4)))
    assert {finding.rule for finding in findings} == {"counts"}
    assert len(findings) == 3


def test_turns_without_ids_are_held_to_what_they_have(rows: list[dict[str, Any]]) -> None:
    silent = pa.Table.from_pylist(rows[:1], schema=SCHEMA).to_pylist()
    for turn in silent[0]["turns"]:
        turn.update(prompt_ids=None, completion_ids=None, logprobs=None, versions=[])
    silent[0].update(version_min=None, version_max=None)
    findings, checked = check(silent)
    assert findings == []
    assert (checked.episodes, checked.segments, checked.ones) == (1, 0, 0)
