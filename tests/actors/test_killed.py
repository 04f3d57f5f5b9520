"""Jobs whose processes are killed, stopped and frozen in the middle: nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess

import pytest
from ray_jobs import PATIENCE, Head, Jobs, alive, assert_closed, assert_one_each, diary, rows, scripted, sessions, until

from rollout.dataset import open_table

pytestmark = pytest.mark.ray

STOPPED = 75


def test_ctrl_c_keeps_what_is_done_and_names_the_command_that_goes_on(local_jobs: Jobs, jobs: Jobs) -> None:
    path, lines = diary(local_jobs)
    run = local_jobs.start("run", *lines, *scripted(30))
    run.until_rows(5)
    run.remember()
    os.killpg(run.process.pid, signal.SIGINT)  # a terminal tells everything in the foreground
    assert run.wait() == STOPPED, run.said()
    done = rows(run.folder)
    assert 5 <= len(done) < 30
    assert_closed(path)
    until(lambda: not alive(run.remember()), "nothing of the cluster is left")
    assert "Traceback" not in run.said()
    [line] = [line for line in run.said().splitlines() if "--resume" in line]
    command = shlex.split(line.partition("go on with: ")[2])
    again = subprocess.run(command, env=jobs.env, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0, again.stderr
    assert_one_each(run.folder, 30)
    kept = {row["episode_id"]: row for row in rows(run.folder)}
    assert [kept[row["episode_id"]] for row in done] == done
    assert_closed(path)


def test_ctrl_c_while_the_cluster_starts(local_jobs: Jobs) -> None:
    run = local_jobs.start("run", *scripted(5))
    until(lambda: any("raylet" in process.name() for process in run.remember()), "Ray is starting")
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == STOPPED, run.said()
    assert "--resume" in run.said()
    assert "Traceback" not in run.said()
    until(lambda: not alive(run.remember()), "nothing of the cluster is left")


def test_a_killed_driver_takes_its_cluster_along_and_resumes(local_jobs: Jobs, jobs: Jobs) -> None:
    path, lines = diary(local_jobs)
    job = [*lines, *scripted(30), "resource.options.offloads=true"]
    run = local_jobs.start("run", *job)
    run.until_rows(5)
    run.remember()
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    until(lambda: not alive(run.remember()), "nothing of the cluster is left")
    done = rows(run.folder)
    part = next((run.folder / "episodes").glob("part-*.parquet"))
    shutil.copy(part, part.with_name("part-written-but-never-committed.parquet"))
    jobs.finish("run", *job, "--resume")
    assert_one_each(run.folder, 30)
    kept = {row["episode_id"]: row for row in rows(run.folder)}
    assert [kept[row["episode_id"]] for row in done] == done
    files = {path.name for path in (run.folder / "episodes").glob("*.parquet")}
    assert files == {uri.rpartition("/")[2] for uri in open_table(run.folder).file_uris()}
    opened, closed = sessions(path)
    assert sum((opened - closed).values()) <= 10, "only those open when the driver died"


@pytest.mark.parametrize("title", ["ray::EpisodeRunner", "ray::ResourceHost", "ray::ServeReplica"])
def test_a_killed_actor_costs_a_retry_at_most(jobs: Jobs, head: Head, title: str) -> None:
    path, lines = diary(jobs)
    run = jobs.start("run", *lines, *scripted(40), "scheduler.runners=2", "resource.hosts=2", "model.replicas=2")
    run.until_rows(5)
    head.workers(title)[0].kill()
    assert run.wait() == 0, run.said()
    assert_one_each(run.folder, 40)
    ended = rows(run.folder)
    assert {(row["status"], row["reward"]) for row in ended} == {("completed", 1.0)}
    retried = sum(row["attempt"] > 1 for row in ended)
    opened, closed = sessions(path)
    if title == "ray::ServeReplica":
        assert retried == 0, "a turn is asked again"
    else:
        assert 1 <= retried <= 20, "at most 10 in play, and two files of 5 rows not committed"
    if title == "ray::ResourceHost":
        assert 1 <= sum((opened - closed).values()) <= 10, "those that died with the host"
    else:
        assert_closed(path, at_once=20)  # those of a killed runner are closed a moment after others have begun


def test_a_runner_that_wakes_after_it_was_given_up_adds_no_row(jobs: Jobs, head: Head) -> None:
    path, lines = diary(jobs)
    run = jobs.start("run", *lines, *scripted(60), "scheduler.runners=2", "scheduler.silent_seconds=2")
    run.until_rows(5)
    frozen = head.workers("ray::EpisodeRunner")[0]
    frozen.suspend()
    others = {process.pid for process in head.workers("ray::EpisodeRunner")}
    until(lambda: {process.pid for process in head.workers("ray::EpisodeRunner")} - others, "another has its place")
    frozen.resume()
    assert run.wait() == 0, run.said()
    assert_one_each(run.folder, 60)
    ended = rows(run.folder)
    assert {(row["status"], row["reward"]) for row in ended} == {("completed", 1.0)}
    again = sum(row["attempt"] > 1 for row in ended)
    assert 1 <= again <= 20, "at most 10 in play, and two files of 5 rows not committed"
    assert_closed(path, at_once=20)
