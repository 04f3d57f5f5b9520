"""An agent that is told more than instructions and tools, in a job on a real Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray_jobs import Jobs, assert_one_each, keys, rows, until
from refused import Refused

from rollout.agents.approval_queue import REQUESTS, pending
from rollout.config import CHECKOUT

pytestmark = pytest.mark.ray

OWN = '''
from rollout.agents.guardrails import Modify
from rollout.turn import ToolCall

def shout(text: str) -> str:
    """Says it louder.

    Args:
        text: What to say.
    """
    return text.upper()

def polite(text):
    return Modify(text + ", please")

def note(agent, *told):
    assert agent.name == "clerk"
'''


FAILS_FIRST = f"""
import pathlib, runpy, sys
there = pathlib.Path(sys.argv[1])
if not there.exists():
    there.touch()
    sys.exit("not yet")
runpy.run_path({str(CHECKOUT / "agents" / "counting_server.py")!r}, run_name="__main__")
"""


def call(name: str, /, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def conf(folder: Path, *lines: str, **agent: object) -> Path:
    """A job of 20 tasks; its own functions are in a file beside it."""
    (folder / "own.py").write_text(OWN)
    job = {
        "run": {"dir": "?"},
        "resource": {"name": "counter", "options": {"count": 20, "target": 2}},
        "agent": {"name": "clerk", **agent},
        "pricing": {"models": {"scripted": {"input": 1, "output": 1}}},
        "model": {"engine": "scripted", "turns": list(lines)},
        "scheduler": {"in_flight": 4},
        "dataset": {"commit_rows": 5, "commit_seconds": 0.5},
    }
    (file := folder / "job.yaml").write_text(yaml.safe_dump(job))
    return file


def test_functions_of_a_file_hooks_and_guardrails_play_in_the_runners(jobs: Jobs) -> None:
    own = f"{jobs.folder}/own.py"
    told = {
        "tools": ["add", "submit", {"ref": f"{own}:shout"}],
        "instructions": {"template": "You are {{ agent }} at {{ task.id }}."},
        "hooks": {"after_llm_call": f"{own}:note", "on_stop": f"{own}:note"},
        "guardrails": [{"name": "polite", "at": "output", "check": f"{own}:polite"}],
        "memory": {},
        "retry": {},
    }
    lines = (call("shout", text="one"), call("add", amount=1), call("add", amount=1), "Two")
    run = jobs.finish("run", "rate_limits.default.rps=500", conf=conf(jobs.folder, *lines, **told))
    assert_one_each(run.folder, 20)
    for row in rows(run.folder):
        assert (row["status"], row["stop_reason"], row["answer"]) == ("completed", "done", '"Two, please"')
        assert row["messages"][0]["content"] == f"You are clerk at {row['task_id']}."
        assert [use["result"] for turn in row["turns"] for use in turn["tool_calls"]] == ["ONE", "1", "2"]
        assert [(event["turn"], event["kind"], event["name"]) for event in row["events"]] == [
            (3, "guardrail", "polite")
        ]
        assert row["cost"] > 0
    assert "cost " in run.said()
    command = [sys.executable, "-m", "rollout", "replay", str(run.folder)]
    again = subprocess.run(command, env=jobs.env, capture_output=True, text=True, check=False, timeout=60)
    assert (again.returncode, "are not played again" in again.stderr) == (2, True)


def test_a_job_stops_when_its_budget_is_spent_and_goes_on_with_more(jobs: Jobs) -> None:
    file = conf(jobs.folder, call("add", amount=1), call("add", amount=1), call("submit"))
    poor = jobs.start("run", "cost.job_usd=0.002", conf=file)
    assert poor.wait() == 2, poor.said()
    assert "raise it to go on with --resume" in poor.said()
    assert 0 < len(rows(poor.folder)) < 20
    rich = jobs.finish("run", "cost.job_usd=1", "--resume", conf=file)
    assert_one_each(rich.folder, 20)


def test_a_function_that_is_not_there_is_told_before_anything_is_started(refused: Refused) -> None:
    here = Path.cwd()
    conf(here, "Two", hooks={"on_stop": f"{here}/own.py:nothing"})
    assert "agent.hooks.on_stop" in refused.job()


def test_vector_15_a_malformed_skill_is_told_before_anything_is_started(refused: Refused) -> None:
    here = Path.cwd()
    (skill := here / "skills" / "adding").mkdir(parents=True)
    (skill / "SKILL.md").write_text("---\nname: adding\n---\nAdd.\n")
    conf(here, "Two", skill_dirs=[str(skill.parent)])
    assert f"{skill / 'SKILL.md'}: description: expected text, found nothing" in refused.job()


def test_vector_15_an_episode_whose_server_was_down_is_played_again(jobs: Jobs) -> None:
    """The server ends at once as long as a file is not there, which it then makes: each episode's first one fails."""
    (server := jobs.folder / "server.py").write_text(FAILS_FIRST)
    there = jobs.folder / "there"
    told = {"name": "counting", "command": sys.executable, "args": [str(server), str(there)], "max_restarts": 0}
    lines = (call("counting__count", by=2), call("submit"))
    file = conf(jobs.folder, *lines, mcp_servers=[told])
    run = jobs.finish("run", "resource.options.count=1", conf=file)
    (row,) = rows(run.folder)
    assert (row["status"], row["attempt"], row["failure"]) == ("completed", 2, None)
    assert row["turns"][0]["tool_calls"][0]["result"] == "2"


@pytest.mark.parametrize("name", ["mcp", "sessions"])
def test_an_example_runs_by_its_name(name: str, jobs: Jobs) -> None:
    """Those that have something beside their conf. test_example_confs.py plays all; scripts/examples.sh runs all."""
    run = jobs.finish(name, "resource.options.count=3", "scheduler.in_flight=2", conf=f"agents/{name}")
    assert_one_each(run.folder, 3)
    assert {row["status"] for row in rows(run.folder)} == {"completed"}


def test_a_person_approves_calls_of_a_job_that_waits(jobs: Jobs) -> None:
    told = {"approval": {"policies": [{"tools": ["submit"], "approver": "human"}]}}
    file = conf(jobs.folder, call("add", amount=1), call("add", amount=1), call("submit"), **told)
    run = jobs.start("run", "resource.options.count=3", conf=file)
    place = str(run.folder / REQUESTS)
    until(lambda: len(pending(place)) == 3, "three calls to wait")
    listed = approve(jobs, run.folder)
    assert listed.count("submit") == 3
    first, second, third = (one.id for one in pending(place))
    approve(jobs, run.folder, first, "approve", "--by=ada")
    approve(jobs, run.folder, second, "approve")
    approve(jobs, run.folder, third, '{"decision": "terminate", "reason": "enough"}')
    assert run.wait() == 0, run.said()
    played = {row["episode_id"]: row for row in rows(run.folder)}
    assert sorted(row["stop_reason"] for row in played.values()) == ["approval_denied", "environment", "environment"]
    assert all([event["kind"] for event in row["events"]] == ["approval"] for row in played.values())
    assert not (run.folder / REQUESTS).exists(), "all rows are there"


def test_who_waits_for_a_person_holds_no_place_and_outlives_the_run(jobs: Jobs) -> None:
    told = {"approval": {"timeout": 3600, "policies": [{"tools": ["submit"], "approver": "human"}]}}
    file = conf(jobs.folder, call("add", amount=1), call("add", amount=1), call("submit"), **told)
    few = ["resource.options.count=6", "scheduler.in_flight=2"]
    run = jobs.start("run", *few, conf=file)
    place = str(run.folder / REQUESTS)
    until(lambda: len(pending(place)) == 6, "more calls to wait than there are places")
    until(lambda: "6 wait for approval" in run.said(), "the view to say so")
    first, *others = (one.id for one in pending(place))
    approve(jobs, run.folder, first, "approve")
    run.until_rows(1)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 75, run.said()
    assert [one.id for one in pending(place)] == others
    for one in others[:4]:
        approve(jobs, run.folder, one, "approve")  # while nothing runs
    again = jobs.start("run", *few, "--resume", conf=file)
    until(lambda: len(rows(run.folder)) >= 5, "those that were answered to end")
    assert [one.id for one in pending(place)] == others[4:]
    approve(jobs, run.folder, others[4], '{"decision": "terminate"}')
    assert again.wait() == 0, again.said()
    assert_one_each(run.folder, 6)
    played = {row["episode_id"]: row for row in rows(run.folder)}
    assert sorted(row["restored_turns"] or 0 for row in played.values()) == [0, 3, 3, 3, 3, 3]
    assert all(row["events"][0]["kind"] == "approval" for row in played.values())


def test_a_model_of_the_job_approves(jobs: Jobs) -> None:
    told = {"approval": {"policies": [{"tools": ["submit"], "approver": "model"}]}}
    lines = ('{"decision": "deny", "reason": "never"} ' + call("add", amount=1), call("add", amount=1), call("submit"))
    run = jobs.finish(
        "run", "resource.options.count=3", "run.limits.max_turns=4", conf=conf(jobs.folder, *lines, **told)
    )
    for row in rows(run.folder):
        event = row["events"][0]
        assert (event["kind"], event["turn"], json.loads(event["detail"])["decision"]) == ("approval", 2, "deny")
        assert json.loads(event["detail"])["told"]["sampled_tokens"] > 0
        assert row["turns"][2]["tool_calls"][0]["skipped"]


def test_a_person_talks_with_an_agent_and_every_conversation_is_a_row(jobs: Jobs) -> None:
    file = conf(jobs.folder, "What can I do?", call("add", amount=1), "Done.", memory={})
    typed = "Hello\n/trace\nAdd one.\n/reset\nHello again\n/what\n"  # and the end of the input leaves
    command = [sys.executable, "-m", "rollout", "chat", str(file), f"run.dir={jobs.folder / 'talk'}"]
    done = subprocess.run(command, input=typed, env=jobs.env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'add({"amount": 1})' in done.stdout
    assert "add -> 1" in done.stdout
    assert "1 model calls" in done.stdout
    first, second = rows(jobs.folder / "talk")
    assert (first["num_turns"], first["stop_reason"], second["num_turns"]) == (3, "done", 1)
    said = [message["content"] for message in first["messages"] if message["role"] == "user"]
    assert said == ["Hello", "Add one."]
    assert {turn["segment"] for turn in first["turns"]} == {0}, "a conversation goes on in its segment"


def test_a_person_comes_back_to_a_session_and_a_job_begins_with_it(jobs: Jobs) -> None:
    place = {"store": "sqlite", "path": str(jobs.folder / "kept.db")}
    file = conf(jobs.folder, "Hello Ann.", sessions=place)
    command = [sys.executable, "-m", "rollout", "chat", str(file), "--session=ann", f"run.dir={jobs.folder / 'talk'}"]
    for typed, expected in (("I am Ann.\n", "session ann begins"), ("Who am I?\n/sessions\n", "assistant: Hello Ann.")):
        done = subprocess.run(
            command, input=typed, env=jobs.env, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    first, second = sorted(rows(jobs.folder / "talk"), key=lambda row: row["sample_index"])
    assert (len(first["messages"]), len(second["messages"])) == (2, 4)
    tasks = jobs.folder / "tasks.jsonl"
    tasks.write_text(json.dumps({"id": "a", "prompt": "And now?", "data": {"target": 2, "session": "ann"}}) + "\n")
    run = jobs.finish("run", f"tasks.path={tasks}", "run.samples_per_task=3", conf=file)
    for row in rows(run.folder):
        assert [message["content"] for message in row["messages"]] == [
            *("I am Ann.", "Hello Ann.", "Who am I?", "Hello Ann."),
            *("And now?", "Hello Ann."),
        ]
        assert [event["kind"] for event in row["events"]] == ["session"]


def approve(jobs: Jobs, *arguments: object) -> str:
    command = [sys.executable, "-m", "rollout", "approve", *map(str, arguments)]
    return subprocess.run(command, env=jobs.env, capture_output=True, text=True, check=True, timeout=60).stdout


def test_agents_begin_runs_of_others_and_all_of_a_family_is_committed_once(jobs: Jobs) -> None:
    jobs_of = [{"agent": "a", "input": "one"}, {"agent": "b", "input": "two"}]
    told = {
        "sub_agents": {"a": {"use": "tool"}, "b": {"use": "tool", "trainable": False}},
        "children": {"spawn": True},
    }
    # The scripted engine knows lines by turn alone: a child says the first one, too, whose tool it has not.
    file = conf(jobs.folder, call("spawn_subagents", jobs=jobs_of), "Done.", **told)
    sizes = ("scheduler.runners=2", "model.latency_seconds=0.2")
    run = jobs.start("run", *sizes, conf=file)
    run.until_rows(5)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 75, run.said()
    assert len(rows(run.folder)) == 3 * len(keys(run.folder)) < 60
    run = jobs.finish("run", *sizes, "--resume", conf=file)
    assert_one_each(run.folder, 20)
    everything = {row["episode_id"]: row for row in rows(run.folder)}
    assert len(everything) == 60
    for name, row in everything.items():
        if row["parent_episode_id"] is None:
            assert [event["kind"] for event in row["events"]] == ["child", "child"]
            assert {f"{name}.1", f"{name}.2"} <= everything.keys()
            (spawned,) = row["turns"][0]["tool_calls"]
            assert [one["result"] for one in json.loads(spawned["result"])] == ["Done.", "Done."]
    command = [sys.executable, "-m", "rollout", "verify", str(run.folder)]
    checked = subprocess.run(command, env=jobs.env, capture_output=True, text=True, check=False, timeout=60)
    assert (checked.returncode, "every rule holds" in checked.stdout) == (0, True), checked.stdout
