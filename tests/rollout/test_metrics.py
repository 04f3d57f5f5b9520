"""The metrics' definitions, what a driver tells by them, and the papers that name them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from rollout.latency import BOUNDS, CAUSES
from rollout.load import HostLoad, Load
from rollout.metrics import COMMON_TAGS, METRICS, Meters, Now, Risen, Sample
from rollout.tally import Tally

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana" / "rollout.json").read_text())
NAMED = re.compile(r"\bray_(rollout_\w+)")
TALLY = Tally(
    statuses={"completed": 3, "failed": 1}, stops={"done": 3}, failures={"model": 1}, scored=3, rewards=-1.5, turns=9
)


def meters() -> Meters:
    made = Meters(committed=4)
    for cause in CAUSES:
        made.latencies.observe(cause, 0.2)
    made.retries["tool"] += 2
    made.routes["sticks"] += 5
    made.loads.hear({"replica-1": Load(running=5, waiting=2, kv_usage=0.5, preemptions=1)}, now=100.0)
    made.hosts.hear({"host 0": HostLoad(open=7, expired=1, offloaded=3)}, now=100.0)
    return made


def told(now: float = 101.0, left: int | None = 6) -> list[Sample]:
    return list(meters().samples(TALLY, Now(runners=1, in_flight=5, unwritten=2, left=left), now))


def test_names_follow_prometheus_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"rollout_[a-z_]+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert not {"episode", "task", *COMMON_TAGS} & set(metric.tags), "as many series as there are episodes"
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_every_metric_is_told_with_its_tags() -> None:
    tags = {metric.name: len(metric.tags) for metric in METRICS}
    assert {sample.name: len(sample.tags) for sample in told()} == tags
    assert len({(sample.name, sample.tags) for sample in told()}) == len(told())


def test_what_is_told_is_what_was_counted() -> None:
    values = {(sample.name, sample.tags): sample.value for sample in told()}
    assert values["rollout_episodes_total", ("failed",)] == 1
    assert values["rollout_reward_sum", ()] == -1.5
    assert values["rollout_retries_total", ("tool",)] == 2
    assert values["rollout_model_seconds_bucket_total", ("0.25",)] == 1
    assert values["rollout_model_seconds_bucket_total", ("0.1",)] == 0
    assert values["rollout_episodes_left", ()] == 6
    assert values["rollout_routes_total", ("sticks",)] == 5
    assert values["rollout_engine_waiting", ("replica-1",)] == 2
    assert values["rollout_sessions_open", ("host 0",)] == 7


def test_what_nobody_knows_is_not_told() -> None:
    names = {sample.name for sample in told(now=200.0, left=None)}
    assert "rollout_episodes_left" not in names
    assert "rollout_engine_running" not in names, "a replica that is silent for long has nothing of ours"
    assert "rollout_sessions_open" in names, "a host is asked when there is something to do"


def test_counters_tell_what_is_new() -> None:
    risen = Risen()
    assert [risen(Sample("a", ("x",), value)) for value in (0, 3, 3, 5, 4, 6)] == [0, 3, 0, 2, 0, 1]
    assert risen(Sample("a", ("y",), 7)) == 7
    assert risen(Sample("b", ("x",), 1)) == 1


def test_there_are_few_series_however_many_episodes() -> None:
    replicas, hosts = 16, 4
    assert len(METRICS) * 8 + 4 * replicas + 3 * hosts + len(CAUSES) * (len(BOUNDS) + 2) < 500


def test_a_run_adds_few_series_to_a_metric() -> None:
    """Ray's agent holds 2,000 of each, for all runs of a cluster's life."""
    series = Counter(sample.name for sample in told())
    assert max(series.values()) == len(BOUNDS) + 1 <= 18


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = {name for expression in _expressions() for name in NAMED.findall(expression)}
    assert shown == {metric.name for metric in METRICS}


def test_the_dashboard_groups_by_tags_that_are_there() -> None:
    tags = {metric.name: {*metric.tags, *COMMON_TAGS} for metric in METRICS}
    for expression in _expressions():
        used = {tag for group in re.findall(r"by \(([^)]*)\)", expression) for tag in group.split(", ")}
        used |= set(re.findall(r"(\w+)=", expression))
        assert used <= set.union(*(tags[name] for name in NAMED.findall(expression))), expression


def test_the_dashboard_can_be_imported() -> None:
    variables = {entry["name"]: entry for entry in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["run"]["definition"] == "label_values(ray_rollout_runners, run)"
    assert DASHBOARD["schemaVersion"] >= 36
    assert not DASHBOARD.get("id"), "Grafana gives it one"
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    boxes = [panel["gridPos"] for panel in panels]
    places = {
        (x, y)
        for box in boxes
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    }
    assert len(places) == sum(box["w"] * box["h"] for box in boxes), "panels lie over each other"
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for target in _targets():
        assert target["datasource"]["uid"] == "${datasource}"
        assert target["expr"].count("ray_rollout_") == target["expr"].count('run=~"$run"')


def test_the_page_lists_every_metric_as_it_is_defined() -> None:
    listed = [line for line in (DOCS / "metrics.md").read_text().splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in listed]
    assert rows == [
        [f"`ray_{metric.name}`", metric.kind, ", ".join(f"`{tag}`" for tag in metric.tags), metric.help]
        for metric in METRICS
    ]


def _targets() -> list[dict[str, Any]]:
    return [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def _expressions() -> list[str]:
    return [target["expr"] for target in _targets()]
