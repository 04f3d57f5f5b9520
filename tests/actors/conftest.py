"""Clusters and jobs for the tests beside it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

pytest.register_assert_rewrite("ray_jobs")
from ray_jobs import Head, Jobs, environment, ray_head, short_folder  # noqa: E402 - rewritten before it is imported


@pytest.fixture(scope="session")
def bucket() -> Iterator[dict[str, str]]:
    """An S3-compatible server on this machine with the bucket `runs`: the settings that lead to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/runs", method="PUT"), timeout=30).close()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture(scope="session")
def head(bucket: dict[str, str]) -> Iterator[Head]:
    """The cluster that tests share which do not kill it."""
    with short_folder() as folder, ray_head(folder, dashboard=False, ENDPOINT_KEY="sk-7f3a9c51e0", **bucket) as running:
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
