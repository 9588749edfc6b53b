"""Metrics as a client got them, and what two samples of them say about the time between."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """The metrics of a server at one moment."""

    at_s: float
    values: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str, at_s: float | None = None) -> Sample:
        """Of Prometheus's text format. ValueError for what is none."""
        # Here, because the command line must be quick.
        from prometheus_client.parser import text_string_to_metric_families

        values: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                labels = tuple(sorted(one.labels.items()))
                values.setdefault(one.name, {})[labels] = float(one.value)
        return cls(time.monotonic() if at_s is None else at_s, values)

    def of(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """All values of a metric that have these labels."""
        wanted = set(labels.items())
        for found, value in self.values.get(name, {}).items():
            if wanted <= set(found):
                yield dict(found), value

    def one(self, name: str, **labels: str) -> float:
        """The sum of them; 0 where there is none."""
        return sum(value for _, value in self.of(name, **labels))

    def labels(self, name: str, label: str) -> list[str]:
        """The values that a label of a metric has, sorted."""
        return sorted({found[label] for found, _ in self.of(name) if label in found})


@dataclass(frozen=True, slots=True)
class Between:
    """Two samples, the later one second; the same one twice says what was since the start of the server."""

    before: Sample
    now: Sample

    @property
    def seconds(self) -> float:
        return max(1e-9, self.now.at_s - self.before.at_s)

    def grown(self, name: str, **labels: str) -> float:
        """What a counter has grown by. A server that was started again counts from 0."""
        return max(0.0, self.now.one(name, **labels) - self.before.one(name, **labels))

    def rate(self, name: str, **labels: str) -> float:
        """The same for a second."""
        return self.grown(name, **labels) / self.seconds

    def quantile(self, name: str, share: float, **labels: str) -> float:
        """The value of a histogram that a share of the observations since stay below, between two bounds by
        the share of the bucket; NaN where there were none."""
        buckets: dict[float, float] = {}
        for found, value in self.now.of(f"{name}_bucket", **labels):
            bound = float(found["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
        for found, value in self.before.of(f"{name}_bucket", **labels):
            bound = float(found["le"])
            buckets[bound] = max(0.0, buckets.get(bound, 0.0) - value)
        bounds = sorted(buckets)
        total = buckets[bounds[-1]] if bounds else 0.0
        if not total:
            return float("nan")
        low, below = 0.0, 0.0
        for bound in bounds:
            if buckets[bound] >= share * total:
                if bound == float("inf"):
                    return low
                within = buckets[bound] - below
                return low + (bound - low) * ((share * total - below) / within if within else 1.0)
            low, below = bound, buckets[bound]
        return low
