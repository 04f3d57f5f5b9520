"""A program that is the agent, in a job on a real Ray cluster: every runner has the gateway of its programs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray_jobs import Jobs, assert_one_each, rows

from rollout.config import CHECKOUT

pytestmark = pytest.mark.ray

SMALL = CHECKOUT / "external" / "small.yaml"
COMMAND = f"agent.external.command=[{sys.executable}, {SMALL.parent / 'adder.py'}, '{{instruction}}']"


def rollout(jobs: Jobs, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rollout", *arguments]
    return subprocess.run(command, env=jobs.env, capture_output=True, text=True, check=False, timeout=100)


def test_a_program_of_ones_own_plays_episodes_whose_rows_keep_every_rule(jobs: Jobs) -> None:
    run = jobs.finish("run", COMMAND, "scheduler.runners=2", "resource.options.count=3", conf=SMALL)
    assert_one_each(run.folder, 3, 2)
    for row in rows(run.folder):
        assert (row["status"], row["stop_reason"], row["reward"]) == ("completed", "done", 1.0)
        assert [(turn["segment"], turn["segment_break"]) for turn in row["turns"]] == [(0, None)] * 2
        assert [use["result"] for turn in row["turns"] for use in turn["tool_calls"]] == ["42"]
        assert [event["kind"] for event in row["events"]] == ["program"]
        assert row["messages"][-1]["content"] == "The sum is 42."
        assert row["tool_calls"] == 1 and row["turns"][1]["prompt_ids"]
    verified = rollout(jobs, "verify", str(run.folder))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    again = rollout(jobs, "replay", str(run.folder))
    assert (again.returncode, "are not played again" in again.stderr) == (2, True)


def test_a_program_that_never_asks_is_tried_again_and_then_a_failed_row(jobs: Jobs) -> None:
    command = f"agent.external.command=[{sys.executable}, '-c', 'raise SystemExit(3)']"
    attempts = "scheduler.max_attempts=2"
    run = jobs.finish("run", command, attempts, "resource.options.count=1", "run.samples_per_task=1", conf=SMALL)
    (row,) = rows(run.folder)
    assert (row["status"], row["reward"], row["attempt"], row["failure"]["kind"]) == ("failed", None, 2, "agent")
    assert row["failure"]["message"] == "exited with 3 without an answer of the model"
    assert rollout(jobs, "verify", str(run.folder)).returncode == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("agent.external.command=[no-such-program-here]", "there is no program 'no-such-program-here' on the PATH"),
        ("agent.external.pass_env=[NO_SUCH_VARIABLE]", "environment variable NO_SUCH_VARIABLE is not set"),
    ],
)
def test_what_no_runner_could_start_ends_the_job_with_a_line(jobs: Jobs, override: str, said: str) -> None:
    wrong = jobs.start("run", override, conf=SMALL)
    assert wrong.wait() == 2, wrong.said()
    assert said in wrong.said()
