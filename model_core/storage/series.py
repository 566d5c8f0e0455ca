"""Curves out of events: a number by step, and fewer points that keep the curve's shape.

Points are chosen by Largest-Triangle-Three-Buckets (S. Steinarsson, "Downsampling Time Series for Visual
Representation", University of Iceland, 2013): one of each bucket, the one that spans the largest triangle with the
point chosen before and the mean of the bucket after. No value is averaged: each that is kept is one that was told.

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

Metric = Literal["loss", "lr", "grad_norm", "tokens_per_s", "val_loss", "bits_per_byte"]
METRICS: Mapping[Metric, str] = {  # the type of the events that tell it
    "loss": "step",
    "lr": "step",
    "grad_norm": "step",
    "tokens_per_s": "step",
    "val_loss": "validation",
    "bits_per_byte": "validation",
}
_FIELDS = {kind: [name for name, told_by in METRICS.items() if told_by == kind] for kind in METRICS.values()}
_NOT_FINITE = ("nan", "inf", "-inf")
_MOST_STEPS = 2**62


@dataclass(frozen=True)
class Series:
    """A metric over the steps of a run.

    Attributes:
        steps: Growing, (P,).
        values: As they were told, bit for bit, (P,).
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    def downsample(self, max_points: int) -> Series:
        """Reduce the curve to fewer points that keep its shape.

        Args:
            max_points: At most so many finite ones, the first and the last of them included; at least 2. Those that
                are not finite, which no picture can leave out, come on top.

        Returns:
            The reduced series; this one if it is short enough.
        """
        if len(self) <= max_points:
            return self
        is_finite = np.isfinite(self.values)
        finite = np.flatnonzero(is_finite)
        chosen = finite[_largest_triangles(self.steps[finite].astype(float), self.values[finite], max_points)]
        kept = np.sort(np.concatenate([chosen, np.flatnonzero(~is_finite)]))
        return Series(self.steps[kept], self.values[kept])


class SeriesReader:
    """Reads the metrics of a growing event file; each call parses only new lines. Threads may share one.

    Args:
        path: The event file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._seq = path, 0
        self._told: Mapping[Metric, tuple[array[int], array[float]]] = {
            name: (array("q"), array("d")) for name in METRICS
        }
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many values it holds."""
        return sum(len(steps) for steps, _ in self._told.values())

    def read(self, names: Collection[Metric]) -> dict[Metric, Series]:
        """Read the file's current metrics.

        Args:
            names: Metrics to return.

        Returns:
            A series by name; each step has the value of the latest attempt.
        """
        with self._lock:
            for event in read_events(self._path, self._seq, types=_FIELDS):
                self._take(event)
            return {name: _latest(*map(np.array, self._told[name])) for name in names}

    def _take(self, event: Event) -> None:
        self._seq, step = event["seq"], event.get("step")
        if not isinstance(step, int) or not 0 <= step < _MOST_STEPS:
            return
        for name in _FIELDS[event["type"]]:
            value = _number(event.get(name))
            if value is not None:
                steps, values = self._told[name]
                steps.append(step)
                values.append(value)


def _number(value: Any) -> float | None:
    if type(value) is float:
        return value
    if value in _NOT_FINITE or (type(value) is int and abs(value) < 10**300):
        return float(value)
    return None


def _latest(steps: NDArray[np.int64], values: NDArray[np.float64]) -> Series:
    """The last value of each step: attempts follow each other in the file."""
    if (np.diff(steps) > 0).all():
        return Series(steps, values)
    unique, from_end = np.unique(steps[::-1], return_index=True)
    return Series(unique, values[::-1][from_end])


def _largest_triangles(x: NDArray[np.float64], y: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Indices of the points that keep the shape, growing; the first and the last among them."""
    count = len(x)
    if count <= most:
        return np.arange(count)
    y = y / (np.abs(y).max() or 1.0)  # areas keep their order, and none overflows
    edges = np.linspace(1, count - 1, most - 1).astype(np.intp)  # of most - 2 buckets, all points but the ends in them
    next_x, next_y = _means_after(x, edges), _means_after(y, edges)
    chosen = np.zeros(most, dtype=np.intp)
    chosen[-1] = count - 1
    for bucket in range(most - 2):
        before, begin, end = chosen[bucket], edges[bucket], edges[bucket + 1]
        run, rise = next_x[bucket] - x[before], next_y[bucket] - y[before]
        areas = np.abs(run * (y[begin:end] - y[before]) - rise * (x[begin:end] - x[before]))
        chosen[bucket + 1] = begin + areas.argmax()
    return chosen


def _means_after(values: NDArray[np.float64], edges: NDArray[np.intp]) -> NDArray[np.float64]:
    """Of each bucket the mean of the one behind it; behind the last one is the last point."""
    means = np.add.reduceat(values[:-1], edges[:-1]) / np.diff(edges) if len(edges) > 1 else values[:0]
    return np.append(means[1:], values[-1])
