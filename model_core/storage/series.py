"""Metrics of a run as time series, read from its events, and downsampling that preserves the shape of the curve.

Downsampling uses Largest-Triangle-Three-Buckets (S. Steinarsson, "Downsampling Time Series for Visual
Representation", University of Iceland, 2013): from each bucket it selects the point that spans the largest triangle
with the point selected before and the mean of the next bucket. Values are selected, never averaged.

Shapes: P points of a series.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_core.storage.events import Event, read_events

Metric = Literal["loss", "lr", "grad_norm", "tokens_per_s", "memory_bytes", "mfu", "val_loss", "bits_per_byte"]
METRICS: Mapping[Metric, str] = {  # type of the events that contain the metric
    "loss": "step",
    "lr": "step",
    "grad_norm": "step",
    "tokens_per_s": "step",
    "memory_bytes": "step",
    "mfu": "step",
    "val_loss": "validation",
    "bits_per_byte": "validation",
}
_METRICS_BY_EVENT = {kind: [name for name, event in METRICS.items() if event == kind] for kind in METRICS.values()}
_NOT_FINITE = ("nan", "inf", "-inf")
_MAX_STEPS = 2**62


@dataclass(frozen=True)
class Series:
    """A metric over the steps of a run.

    Attributes:
        steps: Steps in ascending order, (P,).
        values: Values exactly as in the events, (P,).
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    def between(self, first: int | None, last: int | None) -> Series:
        """Take a range of steps.

        Args:
            first: First step; None for no lower limit.
            last: Last step; None for no upper limit.

        Returns:
            The series of these steps.
        """
        begin = 0 if first is None else int(np.searchsorted(self.steps, first, side="left"))
        end = len(self) if last is None else int(np.searchsorted(self.steps, last, side="right"))
        return Series(self.steps[begin:end], self.values[begin:end])

    def downsample(self, max_points: int) -> Series:
        """Reduce the curve to fewer points that keep its shape.

        Args:
            max_points: Upper limit of finite points, at least 2. The first and the last finite point are always
                kept. Points that are not finite are all kept in addition, because they mark a failure.

        Returns:
            The reduced series; this one if it is short enough.
        """
        if len(self) <= max_points:
            return self
        is_finite = np.isfinite(self.values)
        finite = np.flatnonzero(is_finite)
        selected = finite[_largest_triangles(self.steps[finite].astype(float), self.values[finite], max_points)]
        kept = np.sort(np.concatenate([selected, np.flatnonzero(~is_finite)]))
        return Series(self.steps[kept], self.values[kept])


class SeriesReader:
    """Reads the metrics of a growing event file; each call parses only new lines. Thread-safe.

    Args:
        path: The event file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._seq = path, 0
        self._points: Mapping[Metric, tuple[array[int], array[float]]] = {  # steps and values
            name: (array("q"), array("d")) for name in METRICS
        }
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of values in memory."""
        return sum(len(steps) for steps, _ in self._points.values())

    def read(self, names: Collection[Metric]) -> dict[Metric, Series]:
        """Read the new events, and return metrics of all events.

        Args:
            names: Metrics to return.

        Returns:
            A series by name; each step has the value of the latest attempt.
        """
        with self._lock:
            for event in read_events(self._path, self._seq, types=_METRICS_BY_EVENT):
                self._add(event)
            return {name: _latest_by_step(*map(np.array, self._points[name])) for name in names}

    def _add(self, event: Event) -> None:
        self._seq, step = event["seq"], event.get("step")
        if not isinstance(step, int) or not 0 <= step < _MAX_STEPS:
            return
        for name in _METRICS_BY_EVENT[event["type"]]:
            value = _parse_number(event.get(name))
            if value is not None:
                steps, values = self._points[name]
                steps.append(step)
                values.append(value)


def _parse_number(value: Any) -> float | None:
    if type(value) is float:
        return value
    if value in _NOT_FINITE or (type(value) is int and abs(value) < 10**300):
        return float(value)
    return None


def _latest_by_step(steps: NDArray[np.int64], values: NDArray[np.float64]) -> Series:
    """The last value of each step, which is of the latest attempt: attempts are consecutive in the file."""
    if (np.diff(steps) > 0).all():
        return Series(steps, values)
    unique, from_end = np.unique(steps[::-1], return_index=True)
    return Series(unique, values[::-1][from_end])


def _largest_triangles(x: NDArray[np.float64], y: NDArray[np.float64], max_points: int) -> NDArray[np.intp]:
    """Indices of the selected points in ascending order; the first and the last point are among them."""
    count = len(x)
    if count <= max_points:
        return np.arange(count)
    y = y / (np.abs(y).max() or 1.0)  # keeps the order of the areas, and prevents overflow
    edges = np.linspace(1, count - 1, max_points - 1).astype(np.intp)  # max_points - 2 buckets without both end points
    next_x, next_y = _next_bucket_means(x, edges), _next_bucket_means(y, edges)
    selected = np.zeros(max_points, dtype=np.intp)
    selected[-1] = count - 1
    for bucket in range(max_points - 2):
        previous, start, end = selected[bucket], edges[bucket], edges[bucket + 1]
        run, rise = next_x[bucket] - x[previous], next_y[bucket] - y[previous]
        areas = np.abs(run * (y[start:end] - y[previous]) - rise * (x[start:end] - x[previous]))
        selected[bucket + 1] = start + areas.argmax()
    return selected


def _next_bucket_means(values: NDArray[np.float64], edges: NDArray[np.intp]) -> NDArray[np.float64]:
    """For each bucket the mean of the next one; for the last bucket the last point."""
    means = np.add.reduceat(values[:-1], edges[:-1]) / np.diff(edges) if len(edges) > 1 else values[:0]
    return np.append(means[1:], values[-1])
