"""Clusters and jobs for the tests beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("ray_jobs")
from ray_jobs import Head, Jobs, environment, ray_head, short_folder  # noqa: E402 - rewritten before it is imported


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """The cluster that tests share which do not kill it."""
    with short_folder() as folder, ray_head(folder, dashboard=False, ENDPOINT_KEY="sk-7f3a9c51e0") as running:
        yield running


@pytest.fixture
def jobs(tmp_path: Path, head: Head) -> Iterator[Jobs]:
    """Jobs on the shared cluster."""
    running = Jobs(tmp_path, {**head.env, "RAY_ADDRESS": head.address})
    try:
        yield running
    finally:
        running.end()


@pytest.fixture
def local_jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Jobs that start a cluster of their own."""
    with short_folder() as folder:
        running = Jobs(tmp_path, environment(folder))
        try:
            yield running
        finally:
            running.end()
