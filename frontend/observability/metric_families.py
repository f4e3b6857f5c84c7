"""Prometheus families that all carry the model's name.

Owns how a value becomes a family, and the histograms' bounds. Knows no name of a metric.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

_LABEL = "model_name"


@dataclasses.dataclass(frozen=True, slots=True)
class Families:
    """Makes families of one model; ``meaning`` is the line of help, a whole sentence."""

    model: str

    def gauge(self, name: str, meaning: str, value: float) -> Metric:
        """A value that goes up and down."""
        family = GaugeMetricFamily(name, meaning, labels=(_LABEL,))
        family.add_metric((self.model,), value)
        return family

    def counter(self, name: str, meaning: str, value: float) -> Metric:
        """A value that only grows; ``name`` is without the _total that a page adds."""
        return self.counters(name, meaning, (), {(): value})

    def counters(
        self,
        name: str,
        meaning: str,
        labels: tuple[str, ...],
        values: Mapping[tuple[str, ...], float],
    ) -> Metric:
        """A counter for each combination of labels' values."""
        family = CounterMetricFamily(name, meaning, labels=(_LABEL, *labels))
        for own, value in values.items():
            family.add_metric((self.model, *own), value)
        return family

    def histogram(self, name: str, meaning: str, seen: Histogram) -> Metric:
        """Counts by size."""
        family = HistogramMetricFamily(name, meaning, labels=(_LABEL,))
        family.add_metric((self.model,), seen.cumulative(), seen.total)
        return family


# Latencies of tokens: steps of a few milliseconds must be distinguishable.
STEP_SECONDS = (
    0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04,
    0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
# Latencies of requests and their parts.
REQUEST_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5,
    5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
)  # fmt: skip
# Lengths of prompts and answers.
TOKENS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000,
    200_000,
)  # fmt: skip
# Tokens of one step.
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384)


class Histogram:
    """Values seen since the start.

    Args:
        bounds: ascending; each is the largest value of its bucket, one more bucket holds the rest.
    """

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, ``times`` over."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def cumulative(self) -> list[tuple[str, float]]:
        """For each bound, +Inf the last, how many values were no larger."""
        found, count = [], 0
        for bound, number in zip((*self._bounds, float("inf")), self._counts, strict=True):
            count += number
            found.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(count)))
        return found
