"""Metrics through Ray: whoever scrapes the cluster's nodes finds `ray_rollout_...` there.

A record costs about 2 us and one more in Ray's agent, so what is recorded are sums, every few seconds, by one process.
Counters and gauges only: Ray's histograms are replayed observation by observation in its agent, and their sums are
guesses from the middle of the buckets (docs/decisions/0012).
"""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Counter, Gauge

from rollout.metrics import COMMON_TAGS, METRICS, Risen, Sample

EXPORT_SECONDS = 5.0
"""How often a driver tells: Ray itself passes it on every ten seconds."""


class RayExport:
    """Hands samples on to Ray. Counters are told what is new since the last time."""

    def __init__(self, run: str, resource: str) -> None:
        self._kinds = {metric.name: metric for metric in METRICS}
        self._instruments: dict[str, Counter | Gauge] = {}
        self._common = dict(zip(COMMON_TAGS, (run, resource), strict=True))
        self._risen = Risen()

    def __call__(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            instrument = self._instruments.get(sample.name) or self._new(sample.name)
            tags = {**self._common, **dict(zip(self._kinds[sample.name].tags, sample.tags, strict=True))}
            if isinstance(instrument, Gauge):
                instrument.set(sample.value, tags)
            elif more := self._risen(sample):
                instrument.inc(more, tags)

    def _new(self, name: str) -> Counter | Gauge:
        metric = self._kinds[name]
        make = Counter if metric.kind == "counter" else Gauge
        instrument = self._instruments[name] = make(name, metric.help, (*COMMON_TAGS, *metric.tags))
        return instrument
