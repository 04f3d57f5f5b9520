"""Who reads a run counts its samples, and children as training samples of their own agents alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import ADD, SUBMIT, TEMPLATE, counter, lease, setting

from rollout import feeding, shelf
from rollout.advantages import with_advantages
from rollout.agents.loading import Around, load_agent
from rollout.agents.section import AgentConfig
from rollout.config import find_conf, load
from rollout.database import opened
from rollout.dataset import Committer, write_file
from rollout.episode import run_episode
from rollout.eval_view import read
from rollout.expectation import read_history
from rollout.export.exporting import Asked, export
from rollout.feeding import whole_groups
from rollout.findings import Known
from rollout.invariants import check_rows
from rollout.latency import Latencies
from rollout.reading import show
from rollout.recorded import judged_batches
from rollout.rows import to_table, weight
from rollout.run_folder import create_or_resume
from rollout.sample_reading import read_samples
from rollout.scripted import ScriptedPolicy
from rollout.summary import numbers, summary
from rollout.tally import Tally
from rollout.trajectory import Prompt, Sampling, Trajectory
from rollout.verification import check_run

JOBS = json.dumps({"jobs": [{"agent": "a", "input": "one"}, {"agent": "a", "input": "two"}]})
SPAWN = f'<tool_call>\n{{"name": "spawn_subagents", "arguments": {JOBS}}}\n</tool_call>'
AGENT = {"sub_agents": {"a": {"use": "tool"}}, "children": {"spawn": True}}


def lines(prompt: Prompt) -> Sequence[str]:
    """The second sample of a task solves it. Children only say something."""
    sample, dot, _ = prompt.session_id.partition(".")
    return ("A.",) if dot else (SPAWN, ADD, ADD, SUBMIT) if sample.endswith("-1") else (SPAWN, "Done.")


async def family(task: int, sample: int) -> Trajectory:
    loaded = await load_agent(AgentConfig.model_validate(AGENT), Around(Sampling(), None))
    job = setting(ScriptedPolicy(TEMPLATE, lines), conduct=loaded.conduct, agent=loaded.parts.agent)
    chosen = next(islice(counter().tasks(0), task, None))
    return replace(await run_episode(lease(chosen, sample_index=sample), job), cost=1.0)


@pytest.fixture(scope="module")
def families() -> list[Trajectory]:
    """Two tasks, two samples of each, two children of each."""
    return [asyncio.run(family(task, sample)) for task in range(2) for sample in range(2)]


@pytest.fixture
def run(tmp_path: Path, families: list[Trajectory]) -> Path:
    folder = tmp_path / "run"
    chosen = load(find_conf("scripted"), [f"run.dir={folder}", "run.samples_per_task=2"])
    create_or_resume(chosen, {}, False, False)
    commit(folder, to_table(families[:3]), to_table(families[3:]))
    return folder


def commit(run: Path, *tables: pa.Table) -> Committer:
    committer = Committer(str(run / "episodes"), "run")
    committer.commit([write_file(committer.folder, table) for table in tables])
    return committer


def test_children_have_rows_behind_their_parents_in_its_file(run: Path) -> None:
    files = [file.path for file in Committer(str(run / "episodes"), "run").files()]
    ids = [pq.read_table(run / "episodes" / path)["episode_id"].to_pylist() for path in files]
    assert [len(one) for one in ids] == [9, 3]
    assert ids[1] == ["run-1-1", "run-1-1.1", "run-1-1.2"]


def test_numbers_and_evaluation_are_of_samples_but_tokens_and_cost_are_all_that_was_taken(
    run: Path, families: list[Trajectory]
) -> None:
    told = numbers(run)
    assert (told["episodes"], told["children"], told["status"]) == (4, 8, {"completed": 4})
    assert told["completion_tokens"] == sum(one.num_sampled for each in families for one in each.family)
    assert told["cost"] == 4.0
    assert "8 runs that agents began" in summary(run)
    found = read(run, 1.0)
    assert (found.scored, len(found.tasks)) == (4, 2)
    assert len(read_history(run)) == 2
    with opened(run) as database:
        assert sum(table.num_rows for table in judged_batches(database.files())) == 4
        (counts,) = database.rows("SELECT (SELECT count(*) FROM children) AS children, count(*) AS n FROM all_rows")
    assert counts == {"children": 8, "n": 12}
    show(run, "run-0-0.1")


def test_resume_counts_samples(run: Path) -> None:
    committer = Committer(str(run / "episodes"), "run")
    assert (len(committer.done(2)), committer.cost()) == (4, 4.0)


def test_what_runners_tell_counts_samples_and_what_they_took(families: list[Trajectory]) -> None:
    one = families[0]
    tally = Tally.of(one)
    assert (tally.episodes, tally.turns) == (1, 2)
    assert tally.completion_tokens == sum(each.num_sampled for each in one.family)
    latencies = Latencies()
    latencies.take(one)
    assert {cause: n for cause, bound, n in latencies.at_most() if bound == "+Inf"}["model"] == 4
    assert weight(one) > weight(replace(one, children=()))


def test_verify_finds_children_without_parents_and_parents_without_children(
    run: Path, families: list[Trajectory], tmp_path: Path
) -> None:
    findings, checked, still_open = check_run(str(run), Known(), 2, lambda batch, wrong: None)
    assert (findings, still_open, checked.episodes) == ([], 0, 12)
    table = to_table(families)
    broken = tmp_path / "broken"
    broken.mkdir()
    commit(broken, pa.concat_tables([table[1:4], table[5:]]))  # without run-0-0 and run-0-1.1
    findings, _, _ = check_run(str(broken), Known(), 2, lambda batch, wrong: None)
    assert {(one.episode_id, one.detail) for one in findings} == {
        ("run-0-0.1", "its parent run-0-0 has no row before it"),
        ("run-0-0.2", "its parent run-0-0 has no row before it"),
        ("run-0-1", "its child run-0-1.1 has no row"),
    }


def test_children_are_samples_of_their_agent_in_groups_of_their_own(run: Path) -> None:
    (table,) = list(read_samples(run, group_rows=2))
    made = with_advantages(table, incomplete="error", group_size=2).to_pylist()
    told = [(one["group_id"], one["agent"], one["sample_index"], one["reward"]) for one in made]
    assert sorted(told)[:6] == [
        ("run-0", "agent", 0, 0.0),
        ("run-0", "agent", 1, 1.0),
        ("run-0.a", "a", 0, 0.0),
        ("run-0.a", "a", 0, 0.0),
        ("run-0.a", "a", 1, 1.0),
        ("run-0.a", "a", 1, 1.0),
    ]
    assert all(one["weight"] == 1.0 for one in made)
    theirs = [one["advantage"] for one in made if one["parent_episode_id"] is not None]
    assert sum(theirs) == pytest.approx(0.0)
    assert 0.0 not in theirs
    assert list(read_samples(run, group_rows=3)) == []


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_a_stream_gives_a_group_with_all_its_children(run: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(feeding, "BATCH_ROWS", rows)
    for columns in (None, ("group_id", "parent_episode_id", "episode_id")):
        tables = list(whole_groups(str(run), columns=columns))
        assert [table.num_rows for table in tables] == [6, 6]
        assert all(len({name.split("-")[1] for name in table["episode_id"].to_pylist()}) == 1 for table in tables)


def test_a_trainer_that_pulls_gets_groups_of_samples_with_their_children(run: Path) -> None:
    place = str(run / "episodes")
    ready = shelf.Shelf(2, 2, "start")
    for file in Committer(place, "run").files():
        assert ready.add(file.path, shelf.read_heads(place, file.path)) == []
    groups = ready.first(2)
    assert [(group.group_id, group.rows, group.rewards) for group in groups] == [
        ("run-0", 2, [0.0, 1.0]),
        ("run-1", 2, [0.0, 1.0]),
    ]
    assert shelf.read_groups(place, groups).num_rows == 12


def test_trainers_of_equal_groups_get_samples_alone_and_others_can_tell_children_apart(run: Path) -> None:
    said = export(str(run), Asked(to="trl"))
    assert "4 of 4 episodes in 2 groups" in said
    assert "children 8 episodes" in said
    export(str(run), Asked(to="skyrl"))
    entries = pq.read_table(run / "export" / "skyrl.parquet")["trajectory_ids"].to_pylist()
    assert len({tuple(one.values()) for one in entries if one is not None}) == len(entries) == 12
    assert "episodes    4" in export(str(run), Asked(to="atif"))


def test_a_row_that_is_no_child_by_its_name_is_found(families: list[Trajectory]) -> None:
    table = to_table([families[0]])
    wrong = table.set_column(
        table.schema.get_field_index("parent_episode_id"), "parent_episode_id", pa.array([None, "run-1-0", "run-0-0"])
    )
    (batch,) = wrong.combine_chunks().to_batches()
    findings, _ = check_rows(batch, Known())
    assert [finding.episode_id for finding in findings] == ["run-0-0.1"] * 2
