"""Jobs handed to a cluster: they outlive who handed them over, and their end is told as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_jobs import DIARY, Head, Jobs, assert_one_each, environment, free_ports, keys, ray_head, scripted, short_folder
from ray_jobs import until as wait_until

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def open_head() -> Iterator[Head]:
    """A cluster that takes jobs from anybody."""
    with short_folder() as folder, ray_head(folder, dashboard=True) as running:
        yield running


@pytest.fixture(scope="module")
def guarded_head() -> Iterator[Head]:
    """A cluster that wants a token."""
    with short_folder() as folder, ray_head(folder, dashboard=True, **_token("a")) as running:
        yield running


def _token(letter: str) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": letter * 64}


def _to(head: Head, folder: Path, env: dict[str, str] | None = None) -> Jobs:
    return Jobs(folder, head.env if env is None else env, head.dashboard)


def test_a_submitted_job_leaves_its_rows_and_a_failing_one_its_status(open_head: Head, tmp_path: Path) -> None:
    jobs = _to(open_head, tmp_path)
    diary = [f"resource.name={DIARY}", f"resource.options.path={tmp_path}/diary.txt"]
    run = jobs.finish("run", *diary, *scripted(10))
    assert_one_each(run.folder, 10)
    assert "reward      1.000" in run.said(), "the job's own output is shown"
    again = jobs.start("run", *diary, *scripted(10))
    assert again.wait() == 2
    assert f"run.dir: {run.folder}: holds run" in again.said()
    assert "Traceback" not in again.said()


def test_a_job_goes_on_without_the_one_who_submitted_it(open_head: Head, tmp_path: Path) -> None:
    run = _to(open_head, tmp_path).start("run", *scripted(20))
    assert run.until_rows(1) < 20
    run.process.kill()
    run.wait()
    wait_until(lambda: len(keys(run.folder)) == 20, "the job has ended")
    assert_one_each(run.folder, 20)


@pytest.mark.parametrize("token", [None, "b"], ids=["no token", "another token"])
def test_a_client_without_the_token_is_told_so(guarded_head: Head, tmp_path: Path, token: str | None) -> None:
    env = environment(tmp_path, **_token(token) if token else {})
    run = _to(guarded_head, tmp_path, env).start("run", *scripted(5))
    assert run.wait() == 2
    [line] = run.said().splitlines()
    assert line.startswith(f"rollout: --address: {guarded_head.dashboard}: the cluster wants a token")


def test_a_client_with_the_token_is_let_in(guarded_head: Head, tmp_path: Path) -> None:
    run = _to(guarded_head, tmp_path).finish("run", *scripted(5))
    assert_one_each(run.folder, 5)


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    run = Jobs(tmp_path, environment(tmp_path), address).start("run", *scripted(5))
    assert run.wait() == 2
    [line] = run.said().splitlines()
    assert line.startswith(f"rollout: --address: {address}: no Ray cluster answers there")
