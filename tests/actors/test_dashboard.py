"""The Grafana dashboard against a real Prometheus that scrapes Ray's endpoint while a job runs.

Skipped where there is no `prometheus` (Debian's package, or its path in PROMETHEUS).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from ray_jobs import Head, Jobs, diary, end, free_ports, rows, scripted, until

pytestmark = pytest.mark.ray

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "rollout.json"
CONFIG = """
global: {{scrape_interval: 2s}}
scrape_configs: [{{job_name: ray, static_configs: [{{targets: ["{target}"]}}]}}]
"""
NEVER_HERE = ("ray_rollout_engine_preemptions_total", "ray_rollout_cached_prompt_tokens_total")
"""A scripted model has no KV cache: what is asked of these is right when Prometheus takes it."""


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """What it answers; a wrong expression is an HTTPError."""
        asked = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str, start: float) -> list[float]:
        """All that an expression gives from then until now, of all its series."""
        told = self.get("query_range", query=expression, start=f"{start}", end=f"{time.time()}", step="2")
        values = [float(value) for series in told["result"] for _, value in series["values"]]
        return [value for value in values if not isnan(value)]


@pytest.fixture
def prometheus(head: Head, tmp_path: Path) -> Iterator[Prometheus]:
    """One that scrapes the cluster's endpoint every two seconds."""
    binary = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus here")
    (port,) = free_ports(1)
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(target=urllib.parse.urlsplit(head.metrics).netloc))
    command = [binary, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        until(lambda: b"ready to receive" in (tmp_path / "prometheus.log").read_bytes(), "it listens")
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        end(process)


def test_every_panel_shows_something_of_a_run(jobs: Jobs, prometheus: Prometheus) -> None:
    start = time.time()
    _, lines = diary(jobs)
    trouble = ["resource.options.down=[2]", "scheduler.max_attempts=2", "scheduler.in_flight=2"]
    run = jobs.finish("run", *lines, *scripted(60), *trouble)  # half a minute: Ray tells every ten seconds
    run_id = rows(run.folder)[0]["run_id"]
    dashboard = json.loads(DASHBOARD.read_text())
    assert run_id in prometheus.get("label/run/values", **{"match[]": "ray_rollout_runners"})
    targets = [
        (f"{panel['title']}: {target['legendFormat']}", target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    assert len(targets) > 40

    def empty() -> list[str]:
        found = {title: _asked(prometheus, expression, run_id, start) for title, expression in targets}
        return [title for title, values in found.items() if not values]

    here = {title for title, expression in targets if not any(name in expression for name in NEVER_HERE)}
    until(lambda: not here & {*empty()}, "all panels have data", seconds=30)


def _asked(prometheus: Prometheus, expression: str, run_id: str, start: float) -> list[float]:
    """As Grafana would ask: its variables replaced."""
    for variable, value in {"$__rate_interval": "30s", "$run": run_id}.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, f"a variable nobody knows: {expression}"
    return prometheus.values(expression, start)
