"""Prometheus families that all carry the model's name.

Owns how a value becomes a family. Knows no name of a metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from frontend.observability.histogram import Histogram

_LABEL = "model_name"


@dataclasses.dataclass(frozen=True, slots=True)
class Families:
    """Makes families of one model; ``meaning`` is the line of help."""

    model: str

    def gauge(self, name: str, meaning: str, value: float) -> Metric:
        """What goes up and down."""
        family = GaugeMetricFamily(name, meaning, labels=(_LABEL,))
        family.add_metric((self.model,), value)
        return family

    def counter(self, name: str, meaning: str, value: float) -> Metric:
        """What only grows; ``name`` is without the _total that is shown."""
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
