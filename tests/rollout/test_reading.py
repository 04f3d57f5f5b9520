"""Reading runs: real episodes, real files, real SQL."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from resources.counter import Counter
from rollout.config import validate
from rollout.database import opened
from rollout.dataset import Committer, write_file
from rollout.episode import Setting, run_episode
from rollout.errors import ResourceDown, UserError
from rollout.mixture import LANE_TASKS
from rollout.protocols import Policy
from rollout.reading import query, show, stats
from rollout.rows import to_table
from rollout.run_folder import Run
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.sessions import LocalSessions, SessionTable
from rollout.summary import numbers, summary
from rollout.template import BUNDLED, load_template
from rollout.tokens import TokenLedger
from rollout.trajectory import Agent, Completion, Lease, Limits, Prompt, Trajectory

TEMPLATE = load_template(BUNDLED)
ADD = '<think>one more</think>\n<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
WRONG = '<tool_call>\n{"name": "add", "arguments": {"amount": "many"}}\n</tool_call>'
GARBLED = "<tool_call>\nadd 1\n</tool_call>"
SUBMIT = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
GOOD = (ADD, ADD, SUBMIT)
POOR = (ADD, WRONG, GARBLED, SUBMIT)
ENDLESS = ("\x1b[2JNothing to do [bold]here[/bold].", ADD)


class Gone:
    """A model that is not there."""

    async def complete(self, prompt: Prompt) -> Completion:
        raise ResourceDown("no replica answers")


async def play(index: int, sample: int, script: Sequence[str] | None, run_id: str = "run") -> Trajectory:
    resource = Counter(count=100, target=2)
    task = next(islice(resource.tasks(0), index, None))
    policy: Policy = ScriptedPolicy(TEMPLATE, script) if script is not None else Gone()
    setting = Setting(
        agent=Agent(),
        policy=policy,
        sessions=LocalSessions(SessionTable(resource)),
        limits=Limits(max_turns=4),
        new_ledger=lambda: TokenLedger(TEMPLATE, partial(hermes, in_reasoning=TEMPLATE.opens_with_reasoning)),
        resource="counter",
        model="scripted",
    )
    return await run_episode(Lease(run_id, task, sample, 1 if script is not None else 3, True, 0), setting)


def commit(run: Path, *trajectories: Trajectory) -> None:
    committer = Committer(str(run / "episodes"), "run")
    if trajectories:
        committer.commit([write_file(committer.folder, to_table(trajectories))])


@pytest.fixture
async def run(tmp_path: Path) -> Path:
    """Two commits and a file that nobody committed, in a folder whose name needs care."""
    folder = tmp_path / "run 1 [x]*'"
    folder.mkdir()
    commit(folder, await play(0, 0, GOOD), await play(0, 1, POOR))
    commit(folder, await play(1, 0, ENDLESS), await play(1, 1, None))
    write_file(str(folder / "episodes"), to_table([await play(2, 0, GOOD)]))
    return folder


def screen() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=160, highlight=False, color_system=None), out


def asked(run: Path, sql: str, form: str = "json") -> Any:
    console, out = screen()
    query(run, sql, form, console)
    return [json.loads(line) for line in out.getvalue().splitlines()] if form == "json" else out.getvalue()


async def test_only_committed_rows_are_read(run: Path) -> None:
    assert asked(run, "SELECT count(*) AS n FROM episodes") == [{"n": 4}]
    assert len(list((run / "episodes").glob("*.parquet"))) == 3


async def test_a_reader_sees_what_was_there_when_it_came(run: Path) -> None:
    with opened(run) as before:
        commit(run, await play(3, 0, GOOD))
        assert before.rows("SELECT count(*) AS n FROM episodes") == [{"n": 4}]
    assert asked(run, "SELECT count(*) AS n FROM episodes") == [{"n": 5}]


async def test_views_of_turns_and_tool_calls(run: Path) -> None:
    turns = asked(run, "SELECT episode_id, turn, len(completion_ids) AS n FROM turns WHERE episode_id = 'run-0-0'")
    assert [(row["turn"], row["n"]) for row in turns] == [
        (place, len(TEMPLATE.encode(line)) + 1) for place, line in enumerate(GOOD)
    ]
    calls = asked(run, "SELECT turn, call, name, error FROM tool_calls WHERE episode_id = 'run-0-1' ORDER BY turn")
    assert [(row["turn"], row["call"], row["name"], row["error"] is None) for row in calls] == [
        (0, 0, "add", True),
        (1, 0, "add", False),
        (2, 0, "", False),
        (3, 0, "submit", True),
    ]
    joined = "SELECT count(*) AS n FROM turns JOIN episodes USING (episode_id) WHERE episodes.status = 'completed'"
    assert asked(run, joined) == [{"n": 8}]


async def test_what_was_not_lost_is_told_and_what_was(tmp_path: Path) -> None:
    episodes = [await play(0, sample, GOOD) for sample in range(4)]
    turns = (None, 2, 3, 0)
    commit(tmp_path, *(replace(one, restored_turns=count) for one, count in zip(episodes, turns, strict=True)))
    values = numbers(tmp_path)
    sampled = [turn.completion.num_sampled for turn in episodes[0].turns]
    tokens = 2 * sum(sampled) - sampled[2]
    assert (values["restored"], values["restored_turns"], values["started_again"]) == (2, 5, 1)
    assert values["restored_tokens"] == tokens
    line = f"2 episodes, 5 turns and {tokens} sampled tokens not played again; 1 started again"
    assert line in summary(tmp_path)


async def test_the_numbers(run: Path) -> None:
    values = numbers(run)
    assert values["episodes"] == 4
    assert values["status"] == {"completed": 3, "failed": 1}
    assert values["failures"] == {"model": 1}
    assert values["stop_reason"] == {"environment": 2, "done": 1, "failed": 1}
    assert values["retries"] == 2
    reward = values["reward"]
    assert (reward["scored"], reward["lowest"], reward["highest"]) == (3, 0.0, 1.0)
    assert reward["mean"] == pytest.approx(1 / 3)
    # Deviations are 2/3 and -1/3 in one group, -1/3 in the other: ((1/3)**2 + (1/3)**2) * 2/1, its root over 3.
    assert reward["error"] == pytest.approx((2 * (1 / 9 + 1 / 9)) ** 0.5 / 3)
    assert values["turns"] == 8
    assert (values["tool_calls"], values["tool_errors"]) == (7, 2)
    assert values["parse_rate"] == pytest.approx(6 / 7)
    sampled = sum(len(TEMPLATE.encode(line)) + 1 for line in (*GOOD, *POOR, ENDLESS[0]))
    assert values["completion_tokens"] == sampled
    assert values["cached_share"] == 0.0
    assert set(values["seconds"]) == {"queue", "model", "tool", "verify", "idle"}


async def test_the_summary_says_them(run: Path) -> None:
    lines = dict(line.split(maxsplit=1) for line in summary(run).splitlines() if not line.startswith("tool calls"))
    assert lines["episodes"] == "4   completed 3, failed 1"
    assert lines["reward"].startswith("0.333 ± 0.222")
    assert lines["failed"] == "model 1"
    assert "tool calls  7, 85.7% parsed, 2 errors (28.6%)" in summary(run)
    assert "resource" not in lines, "one resource needs no line of its own"


async def test_several_resources_get_a_line_each(run: Path) -> None:
    commit(run, replace(await play(5, 0, GOOD), resource="other"))
    lines = [line.split() for line in summary(run).splitlines()]
    assert ["counter", "4", "0.333", "±", "0.222", "2.00", "1"] in lines
    assert ["other", "1", "1.000", "3.00", "0"] in lines


async def test_environments_of_one_kind_are_told_apart_by_their_names(run: Path) -> None:
    raw = {"run": {"dir": str(run)}, "model": {"engine": "scripted", "turns": ["a"]}}
    config = validate({**raw, "resources": {"easy": {"name": "counter"}, "hard": {"name": "counter"}}}, "test")
    _write_run(Run("run", "now", config.model_dump(mode="json"), {}), run)
    first, second = await play(0, 0, POOR), await play(1, 0, POOR)
    commit(run, *(_in_second_environment(one) for one in (first, second)))
    lines = [line.split() for line in summary(run).splitlines()]
    assert ["easy", "4", "0.333", "±", "0.222", "2.00", "1"] in lines
    assert ["hard", "2", "0.000", "±", "0.000", "4.00", "0"] in lines
    assert numbers(run)["tasks"] == 4, "two of them are called alike"


def _in_second_environment(trajectory: Trajectory) -> Trajectory:
    task = trajectory.lease.task
    task = replace(task, index=task.index + LANE_TASKS, resource="hard")
    return replace(trajectory, lease=replace(trajectory.lease, task=task))


def _write_run(run: Run, folder: Path) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(asdict(run)))


async def test_stats_for_people_and_programs(run: Path) -> None:
    console, out = screen()
    stats(run, as_json=True, console=console)
    assert json.loads(out.getvalue()) == numbers(run)
    console, out = screen()
    stats(run, console=console)
    lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
    overview = summary(run).splitlines()
    assert lines[: len(overview)] == overview
    assert lines[len(overview) + 1].startswith("missing from"), "one of them failed"


async def test_formats(run: Path) -> None:
    sql = "SELECT episode_id, reward, seconds, reward_components, started_at FROM episodes ORDER BY 1 LIMIT 2"
    first = asked(run, sql)[0]
    assert first["reward_components"] == {"correct": 1.0}
    assert set(first["seconds"]) == {"queue", "model", "tool", "verify", "idle"}
    assert first["started_at"].endswith("Z")
    read = list(csv.DictReader(io.StringIO(asked(run, sql, "csv"))))
    assert [row["episode_id"] for row in read] == ["run-0-0", "run-0-1"]
    assert json.loads(read[0]["reward_components"]) == {"correct": 1.0}
    assert "run-0-1" in asked(run, sql, "table")
    assert asked(run, "SELECT sum(num_turns) AS n, NULL AS nothing FROM episodes") == [{"n": 8, "nothing": None}]
    shown = asked(run, "SELECT unnest(range(1000)) AS n", "table")
    assert "... and 950 more rows" in shown
    assert len(asked(run, "SELECT unnest(range(1000)) AS n")) == 1000


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT rewrd FROM episodes", 'query: Binder Error: Referenced column "rewrd" not found .* "reward"'),
        ("SELEC 1", "query: Parser Error: syntax error"),
        ("SELECT * FROM turn", "query: Catalog Error: Table with name turn does not exist"),
        ("SELECT * FROM pa", "query: Catalog Error: Table with name pa does not exist"),
        ("SELECT status::INT FROM episodes", "query: Conversion Error"),
    ],
)
async def test_sql_that_is_wrong_is_one_line(run: Path, sql: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        asked(run, sql)
    assert "\n" not in str(error.value)


async def test_show_lists_the_episodes(run: Path) -> None:
    console, out = screen()
    show(run, console=console)
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert rows[1] == ["0", "run-0-0", "counter-0", "0", "completed", "1", "3", "environment"]
    assert rows[4] == ["3", "run-1-1", "counter-1", "1", "failed", "-", "0", "failed"]


@pytest.mark.parametrize("name", ["run-0-1", "1", "0-1", "run-0-1"])
async def test_show_tells_a_whole_episode(run: Path, name: str) -> None:
    console, out = screen()
    show(run, name, console)
    text = out.getvalue()
    told = [
        "run-0-1  completed  environment",
        "Add 1 twice, then submit.",
        "turn 0 · +",
        "one more",
        '→ add({"amount": 1})',
        "← 1  (",
        "turn 1 · +",
        '→ add({"amount": "many"})',
        "← error: add: amount:",
        "→ not a tool call: add 1",
        "← error: a tool call must be a JSON object with name and arguments  (did not run)",
        "→ submit({})",
        "reward 0  correct 0  submitted 1",
        "4 turns · ",
        "seconds queue",
    ]
    at = -1
    for part in told:
        at = text.find(part, at + 1)
        assert at >= 0, f"{part!r} is missing or out of order in\n{text}"
    heads = [line.split()[0] for line in text.splitlines() if line[:1].isalpha()]
    assert heads[2:7] == ["user", *["assistant"] * 4], "a result is told once: with its call, not as a message again"


async def test_show_tells_a_failure_and_no_escape_codes(run: Path) -> None:
    console, out = screen()
    show(run, "1-1", console)
    assert "failed: model at scripted: ResourceDown: no replica answers" in out.getvalue()
    assert "no reward" in out.getvalue()
    console, out = screen()
    show(run, "1-0", console)
    assert "\x1b" not in out.getvalue()
    assert "␛[2JNothing to do [bold]here[/bold]." in out.getvalue()


async def test_show_tells_turns_from_messages_that_were_there_before(run: Path) -> None:
    played = await play(7, 0, GOOD)
    before = ({"role": "user", "content": "For example?"}, {"role": "assistant", "content": "Like this."})
    commit(run, replace(played, messages=(*before, *played.messages)))
    console, out = screen()
    show(run, "7-0", console)
    heads = [line.rstrip() for line in out.getvalue().splitlines() if line.startswith(("user", "assistant", "tool"))]
    assert [head.partition(" · ")[0] for head in heads] == [
        "user",
        "assistant",
        "user",
        "assistant  turn 0",
        "assistant  turn 1",
        "assistant  turn 2",
    ]


async def test_an_episode_that_is_not_there(run: Path) -> None:
    with pytest.raises(UserError, match=r"^run-0-2: no such episode; nearest: run-0-0, run-0-1"):
        show(run, "run-0-2")
    with pytest.raises(UserError, match=r"^run-1: more than one episode: run-1-0, run-1-1$"):
        show(run, "run-1")


def test_a_run_without_rows(tmp_path: Path) -> None:
    commit(tmp_path)
    assert asked(tmp_path, "SELECT count(*) AS n FROM tool_calls") == [{"n": 0}]
    assert asked(tmp_path, "SELECT avg(reward) AS r FROM episodes") == [{"r": None}]
    assert summary(tmp_path) == "episodes  0   none yet"
    assert numbers(tmp_path)["reward"]["mean"] is None
    console, out = screen()
    show(tmp_path, console=console)
    assert out.getvalue() == "no episodes yet\n"
    with pytest.raises(UserError, match="the run has none yet"):
        show(tmp_path, "0")


def test_no_run(tmp_path: Path) -> None:
    for read in (summary, show, partial(query, sql="SELECT 1"), stats):
        with pytest.raises(UserError, match="no run here"):
            read(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
