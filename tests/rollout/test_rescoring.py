"""Runs judged again and played against their environment again: real episodes of every shipped resource, real files."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import yaml
from fakes import ADD, SUBMIT, FaultyPolicy, lease, raising, says, setting
from rich.console import Console

from resources.catalog import code_digest, load_resource
from resources.counter import Counter
from rollout import scores
from rollout.config import validate
from rollout.database import opened
from rollout.dataset import Committer, open_table, write_file
from rollout.episode import run_episode
from rollout.errors import ResourceDown, UserError
from rollout.mixture import LANE_TASKS
from rollout.protocols import Policy
from rollout.recorded_world import recorded
from rollout.replay_command import Asked as ReplayAsked
from rollout.replay_command import replay_run
from rollout.replaying import compare
from rollout.rescore_command import Asked, list_versions, parse_weights, rescore_run
from rollout.rescoring import Judged, rescore, weighed
from rollout.resource import Resource, tool
from rollout.rows import to_table
from rollout.run_folder import Run
from rollout.scheduling import sample_seed
from rollout.score_diff import difference
from rollout.scores import Version, find, overlaid, versions
from rollout.summary import numbers
from rollout.trajectory import Score, Task, ToolResult, Trajectory, Transcript

SEED = 5


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SCRIPTS: Mapping[str, tuple[dict[str, Any], Sequence[str]]] = {
    "calculator": ({}, [call("calculate", expression="1+1"), call("calculate", expression="one"), "The answer is 2."]),
    "counter": ({"target": 2}, [ADD + ADD, call("take"), SUBMIT]),
    "ledger": ({}, [call("deposit", owner="Ada", cents=5) + call("list_accounts"), "Done."]),
    "python_exec": ({}, [call("run_python", code="print(1)"), "```python\ndef double(n):\n    return 2 * n\n```"]),
    "gymnasium": ({}, ["right", "down", "sideways", "right", "down"]),
}
"""Options and what the policy says."""


class Lenient(Counter):
    """Half the reward is for the sum, half for having submitted."""

    name = "lenient"

    async def verify(self, session: Any, transcript: Transcript) -> Score:
        right = float(session.total == session.target)
        return Score((right + session.submitted) / 2, {"sum": right, "submitted": float(session.submitted)})


class Doubling(Counter):
    """Another environment: it adds twice, and a sum that is submitted does not end the episode."""

    name = "doubling"

    @tool
    async def add(self, session: Any, amount: int) -> int:
        """Add to the total and return it.

        Args:
            amount: What to add.
        """
        session.total += 2 * amount
        return session.total

    @tool
    async def submit(self, session: Any) -> ToolResult:
        """Hand the total in."""
        session.submitted = True
        return ToolResult(str(session.total))


class Moody(Lenient):
    """A judge that is away for every other task; it counts how often it is asked."""

    name = "moody"
    asked: ClassVar[list[int]] = []

    async def verify(self, session: Any, transcript: Transcript) -> Score:
        self.asked.append(len(transcript.messages))
        if transcript.answer or len(self.asked) % 2:
            raise ResourceDown("the judge is away")
        return await super().verify(session, transcript)


class Silent(Counter):
    name = "silent"
    rescores = None


SHIPPED: Mapping[str, type[Resource]] = {kind.name: kind for kind in (Lenient, Doubling, Moody, Silent)}


def load(reference: str, options: Mapping[str, Any]) -> Resource:
    return SHIPPED[reference](**options) if reference in SHIPPED else load_resource(reference, options)


async def play(reference: str, script: Sequence[str] | None, index: int = 0, sample: int = 0) -> Trajectory:
    options, _ = SCRIPTS[reference]
    resource = load_resource(reference, options)
    task = next(islice(resource.tasks(SEED), index, None))
    policy: Policy = says(*script) if script else FaultyPolicy(says("."), raising(ResourceDown("gone")))
    seed = sample_seed(SEED, index, sample)
    return await run_episode(lease(task, seed=seed, sample_index=sample), setting(policy, resource, resource=reference))


def write(run: Path, reference: str, *trajectories: Trajectory) -> Path:
    resource = {"name": reference, "options": SCRIPTS[reference][0]}
    raw = {
        "run": {"dir": str(run), "seed": SEED},
        "resource": resource,
        "model": {"engine": "scripted", "turns": ["."]},
    }
    config = validate(raw, "test").model_dump(mode="json")
    digests = {"resource": code_digest(load_resource(reference, SCRIPTS[reference][0]))}
    run.mkdir(exist_ok=True)
    told = Run("run", "now", config, digests)
    (run / "run.yaml").write_text(
        yaml.safe_dump({k: getattr(told, k) for k in ("run_id", "created", "config", "digests")})
    )
    add(run, *trajectories)
    return run


def add(run: Path, *trajectories: Trajectory) -> None:
    committer = Committer(str(run / "episodes"), "run")
    committer.commit([write_file(committer.folder, to_table(trajectories))])


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    """Six judged episodes, right and wrong, submitted or not, and one whose model failed."""

    async def episodes() -> list[Trajectory]:
        scripts = [(ADD, ADD, SUBMIT), (ADD, SUBMIT), (ADD, ADD, "That is all.")]
        played = [await play("counter", script, index) for index, script in enumerate([*scripts, *scripts])]
        return [*played, await play("counter", None, 6)]

    return write(tmp_path / "run", "counter", *asyncio.run(episodes()))


def asked(resource: str | None = None, **changes: Any) -> Asked:
    return replace(Asked(resource, {}, None, None, "recorded", None, 4), **changes)


def again(run: Path, what: Asked) -> tuple[Version, str]:
    out = StringIO()
    version = rescore_run(run, what, load, lambda _: "code", Console(file=out, width=100))
    return version, out.getvalue()


def replayed(run: Path, **changes: Any) -> tuple[bool, list[str]]:
    out = StringIO()
    same = replay_run(run, ReplayAsked(**changes), load, code_digest, Console(file=out, width=200))
    return same, out.getvalue().splitlines()


@pytest.mark.parametrize("reference", SCRIPTS)
def test_every_shipped_resource_replays_as_recorded_and_judges_its_episodes_as_it_did(
    reference: str, tmp_path: Path
) -> None:
    run = write(tmp_path / "run", reference, asyncio.run(play(reference, SCRIPTS[reference][1])))
    same, lines = replayed(run)
    assert same, lines
    version, _ = again(run, asked(reference))
    rows = open_table(run).to_pyarrow_dataset().to_table()
    assert overlaid(run, rows, version).equals(rows)
    assert find(run, "latest") == version


def test_another_verifier_is_a_version_beside_the_rows_which_stay_as_they_are(counts: Path) -> None:
    before = open_table(counts).to_pyarrow_dataset().to_table()
    version, said = again(counts, asked("lenient", name="half"))
    assert "half: 6 judged, 0 failed" in said
    assert "recorded -> half: 4 rewards changed, 2 did not" in said
    assert open_table(counts).to_pyarrow_dataset().to_table().equals(before)
    with opened(counts, "half") as database:
        found = database.rows("SELECT reward, reward_components FROM episodes ORDER BY task_index")
        assert [row["reward"] for row in found] == [1.0, 0.5, 0.5, 1.0, 0.5, 0.5, None]
        assert found[1]["reward_components"] == {"sum": 0.0, "submitted": 1.0}
        assert database.rows("SELECT count(*) AS n FROM tool_calls")[0]["n"] > 0
        assert [row["reward"] for row in database.rows("SELECT reward FROM recorded ORDER BY task_index")][1] == 0.0
    assert numbers(counts)["reward"]["mean"] == pytest.approx(1 / 3)
    assert numbers(counts, "half")["reward"]["mean"] == pytest.approx(2 / 3)
    assert version.code == "code" and version.resource == "lenient"


def test_one_call_overlays_any_table_of_rows(counts: Path) -> None:
    version, _ = again(counts, asked("lenient", name="half"))
    rows = open_table(counts).to_pyarrow_dataset().to_table().sort_by([("task_index", "descending")])
    new = overlaid(counts, rows, "half")
    assert new.schema == rows.schema
    assert new.drop_columns(list(scores.COLUMNS)).equals(rows.drop_columns(list(scores.COLUMNS)))
    assert new["reward"].to_pylist() == [None, 0.5, 0.5, 1.0, 0.5, 0.5, 1.0]
    assert overlaid(counts, rows.select(["episode_id", "task_index"]).slice(1, 2), "half").num_columns == 2
    assert overlaid(counts, rows.slice(1, 1), "half")["reward_components"].to_pylist() == [
        [("sum", 1.0), ("submitted", 0.0)]
    ]
    assert overlaid(counts, rows, "recorded") is rows
    # Tasks of another environment keep their recorded scores.
    part = replace(version, first_task=1, end_task=LANE_TASKS)
    assert overlaid(counts, rows, part)["reward"].to_pylist()[-2:] == [0.5, 1.0]
    with pytest.raises(UserError, match="no scores 'hlaf'; did you mean 'half'"):
        overlaid(counts, rows, "hlaf")


def test_a_difference_is_counted_by_reward_and_component(counts: Path) -> None:
    again(counts, asked("lenient", name="half"))
    found = difference(counts, "recorded", "half")
    assert (found["up"], found["down"], found["same"], found["gained"], found["lost"]) == (4, 0, 2, 0, 0)
    assert [(row["component"], row["gained"], row["lost"]) for row in found["components"]] == [
        ("correct", 0, 6),
        ("submitted", 6, 0),
        ("sum", 6, 0),
    ]
    assert found["largest"][0] == {"episode_id": "run-1-0", "task_id": "counter-1", "before": 0.0, "after": 0.5}
    assert difference(counts, "half", "half")["same"] == 6


def test_weights_need_no_verifier_and_a_component_that_is_not_there_is_refused(counts: Path) -> None:
    again(counts, asked("lenient", name="half"))
    version, said = again(counts, asked(weights="sum=1,submitted=-0.5", base="half"))
    assert (version.name, version.resource, version.code) == ("score-1", None, None)
    assert "half -> score-1" in said
    rows = open_table(counts).to_pyarrow_dataset().to_table()
    assert overlaid(counts, rows, version)["reward"].to_pylist() == [0.5, -0.5, 1.0, 0.5, -0.5, 1.0, None]
    with pytest.raises(UserError, match="the half scores have no component 'some'; there are: submitted, sum"):
        again(counts, asked(weights="some=1", base="half"))
    with pytest.raises(UserError, match="expected NAME=NUMBER"):
        parse_weights("sum")
    with pytest.raises(ResourceDown, match="no component 'b'"):
        weighed(Score(1.0, {"a": 1.0}), {"b": 1.0})


def test_a_verifier_that_fails_leaves_no_reward_but_its_failure(counts: Path) -> None:
    config = counts / "run.yaml"
    config.write_text(config.read_text().replace("max_attempts: 3", "max_attempts: 1"))
    version, said = again(counts, asked("moody", name="moody", concurrency=1))
    assert re.search(r"moody: \d judged, \d failed", said)
    assert "verify at moody: ResourceDown: the judge is away" in said
    with opened(counts, version.name) as database:
        found = database.rows("SELECT reward, failure FROM scores")
        assert len(found) == 6
        assert all((row["reward"] is None) == (row["failure"] is not None) for row in found)
        assert 0 < sum(row["failure"] is not None for row in found) < 6
        assert database.rows("SELECT count(*) AS n FROM episodes WHERE reward = 0")[0]["n"] == 0


def test_an_episode_whose_calls_are_answered_otherwise_now_is_not_judged(counts: Path) -> None:
    version, said = again(counts, asked("doubling"))
    assert "0 judged, 6 failed" in said
    assert "tool at replay: turn 0 call 0 content: was '1', is '2'" in said
    assert numbers(counts, version.name)["reward"]["scored"] == 0


def test_what_has_a_score_is_not_judged_again(counts: Path) -> None:
    Moody.asked.clear()
    first, _ = again(counts, asked("lenient"))
    same, said = again(counts, asked("lenient"))
    assert same == first
    assert "0 judged, 0 failed, 6 were there" in said
    add(counts, asyncio.run(play("counter", (ADD, SUBMIT), 7)))
    fresh = open_table(counts).to_pyarrow_dataset().to_table().sort_by("task_index").slice(7)
    assert fresh["reward"].to_pylist() == [0.0]
    assert overlaid(counts, fresh, first)["reward"].to_pylist() == [None]  # not the recorded one in its place
    with opened(counts, first.name) as database:
        assert database.rows("SELECT reward FROM episodes WHERE task_index = 7") == [{"reward": None}]
    assert "1 judged, 0 failed, 6 were there" in again(counts, asked("lenient"))[1]
    with opened(counts, first.name) as database:
        assert database.rows("SELECT count(*) AS n, count(DISTINCT episode_id) AS d FROM scores") == [{"n": 7, "d": 7}]
    with pytest.raises(UserError, match="made otherwise: resource was 'lenient', is 'counter'"):
        again(counts, asked("counter", name=first.name))


async def test_a_scoring_that_is_broken_off_goes_on_where_it_stopped(
    counts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.rescoring.COMMIT_ROWS", 2)
    version, judged = Version("v", "now", "lenient"), list[str]()
    scores.create(counts, version)

    async def judge(episode: Any) -> Score:
        judged.append(episode.lease.episode_id)
        if len(judged) == 5:
            raise KeyError("a bug: it ends the work")
        return Score(1.0)

    with pytest.raises(KeyError):
        await rescore(counts, version, judge, SEED, 1)
    assert open_table(counts, version.table).to_pyarrow_dataset().count_rows() == 4
    told: list[Judged] = []
    ended = await rescore(counts, version, judge, SEED, 1, told=told.append)
    assert (ended.before, ended.scored) == (4, 2)
    assert judged[5:] == ["run-4-0", "run-5-0"]
    ids = open_table(counts, version.table).to_pyarrow_dataset().to_table()["episode_id"].to_pylist()
    assert sorted(ids) == [f"run-{index}-0" for index in range(6)]


def test_replay_reports_every_difference_with_its_place(counts: Path) -> None:
    same, lines = replayed(counts, resource="doubling", episodes=1)
    assert not same
    assert lines[:-1] == [
        "run-0-0 turn 0 call 0 content: was '1', is '2'",
        "run-0-0 turn 1 call 0 content: was '2', is '4'",
        "run-0-0 turn 2 call 0 content: was '2', is '4'",
        "run-0-0 turn 2 done: was True, is False",
        "run-0-0 reward: was 1.0, is 0.0",
        "run-0-0 component correct: was 1.0, is 0.0",
    ]
    assert lines[-1].startswith("1 episodes with 3 tool calls played again: 1 are not as recorded: content 3")
    same, lines = replayed(counts, resource="doubling", episodes=1, as_json=True)
    assert json.loads(lines[0])["call"] == 0


async def test_the_seed_is_found_again_and_another_one_is_noticed(tmp_path: Path) -> None:
    """A slippery lake goes as chance goes, which follows from the sample's seed."""
    SCRIPTS_OF = SCRIPTS["gymnasium"][1]
    options = {"env_options": {"is_slippery": True}}
    resource = load_resource("gymnasium", options)
    task: Task = next(iter(resource.tasks(SEED)))
    seeds = [sample_seed(SEED, 0, sample) for sample in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCRIPTS, "gymnasium", (options, SCRIPTS_OF))  # pyright: ignore[reportArgumentType]
        plays = [
            await run_episode(
                lease(task, seed=seed, sample_index=sample), setting(says(*SCRIPTS_OF), resource, resource="gymnasium")
            )
            for sample, seed in enumerate(seeds)
        ]
        run = write(tmp_path / "run", "gymnasium", *plays)
    same, lines = await asyncio.to_thread(replayed, run)
    assert same, lines
    config = run / "run.yaml"
    config.write_text(config.read_text().replace(f"seed: {SEED}", "seed: 6"))
    assert not (await asyncio.to_thread(replayed, run))[0]


async def test_an_environment_that_breaks_is_a_departure(counts: Path) -> None:
    from rollout.recorded import judged_batches, played

    with opened(counts) as database:
        row = next(judged_batches(database.files())).to_pylist()[0]
    told = recorded(counts, None)
    with told.world("moody", {}, load, code_digest) as (world, _):
        Moody.asked.clear()
        found = await compare(world, played(row, SEED))
    assert [one.what for one in found] == ["failure"]
    assert "the judge is away" in str(found[0])


def test_what_does_not_fit_is_told_in_a_line(counts: Path) -> None:
    with pytest.raises(UserError, match="silent cannot judge an episode again"):
        again(counts, asked("silent"))
    with pytest.raises(UserError, match="--env: other: the run has one environment"):
        again(counts, asked("lenient", environment="other"))
    for name in ("recorded", "a/b", ".x", ""):
        with pytest.raises(UserError, match="--name: "):
            again(counts, asked("lenient", name=name))
    assert versions(counts) == []
    out = StringIO()
    list_versions(counts, Console(file=out))
    assert "recorded" in out.getvalue()
    assert pa.schema(scores.SCORES).names[0] == "episode_id"
