"""Curves of several runs over one axis. Each run keeps its own points: nothing is interpolated.

Shapes: P points of a series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_core.storage.events import finite
from model_core.storage.series import Metric, Series
from service.comparison.compared_runs import ComparedRun
from service.metrics import SeriesCache, elapsed_at
from service.schemas import View
from worker.jobs.schemas import Number

Axis = Literal["step", "tokens", "seconds"]

LOSSES: Sequence[Metric] = ("loss", "val_loss", "bits_per_byte")
BETWEEN_TOKENIZERS: Sequence[Metric] = ("bits_per_byte",)  # a loss a token depends on what a token is
VALIDATED: Sequence[Metric] = ("val_loss", "bits_per_byte")

_SPEED: Metric = "tokens_per_s"


class PointsView(View):
    """A curve of one run: its own points, thinned as a job's metrics are."""

    x: list[float]
    y: list[Number]


class CommonView(View):
    """The latest validation of every run at the largest x that all have reached."""

    x: float
    at: list[float]
    values: dict[str, list[Number | None]]
    deltas: dict[str, list[Number | None]]


class CurvesView(View):
    """Curves of all runs."""

    x: Axis
    series: dict[str, list[PointsView]]
    common: CommonView | None


def read_curves(cache: SeriesCache, runs: Sequence[ComparedRun], axis: Axis, max_points: int) -> CurvesView:
    """Read the curves of runs.

    Args:
        cache: Reads the metrics.
        runs: The runs.
        axis: What x is. Seconds are those of training steps, without validation and pauses.
        max_points: Most finite points of a curve.

    Returns:
        The curves: of other tokenizers only bits per byte.
    """
    same_tokenizer = len({compared.tokenizer for compared in runs}) == 1
    names = LOSSES if same_tokenizer else BETWEEN_TOKENIZERS
    found = [cache.read_run(compared.run, (*names, _SPEED)) for compared in runs]
    placed = [
        {name: _on_axis(series[name], series[_SPEED], axis, compared.tokens_per_step) for name in names}
        for compared, series in zip(runs, found, strict=True)
    ]
    shown: dict[str, list[PointsView]] = {
        name: [_points(curves[name], max_points) for curves in placed] for name in names
    }
    return CurvesView(x=axis, series=shown, common=_common(placed, [name for name in VALIDATED if name in names]))


class _Curve:
    """A series whose places are on the chosen axis, (P,) each."""

    def __init__(self, series: Series, x: NDArray[np.float64]) -> None:
        self.series, self.x = series, x


def _on_axis(series: Series, speed: Series, axis: Axis, tokens_per_step: int) -> _Curve:
    if axis == "step":
        return _Curve(series, series.steps.astype(float))
    if axis == "tokens":
        return _Curve(series, series.steps.astype(float) * tokens_per_step)
    seconds = elapsed_at(series.steps, speed, tokens_per_step)  # (P,)
    if seconds is None:  # no step was timed
        return _Curve(Series(series.steps[:0], series.values[:0]), np.zeros(0))
    return _Curve(series, seconds)


def _points(curve: _Curve, max_points: int) -> PointsView:
    kept = curve.series.downsample(max_points)
    x = curve.x[np.searchsorted(curve.series.steps, kept.steps)]
    return PointsView(x=x.tolist(), y=finite(kept.values.tolist()))


def _common(placed: Sequence[Mapping[Metric, _Curve]], names: Sequence[Metric]) -> CommonView | None:
    reached = [
        max((float(curves[name].x[-1]) for name in names if len(curves[name].x)), default=None) for curves in placed
    ]
    known = [x for x in reached if x is not None]
    if len(known) < len(placed):
        return None
    x = min(known)
    latest = [{name: _latest(curves[name], x) for name in names} for curves in placed]
    values = {name: [_value(run[name]) for run in latest] for name in names}
    return CommonView(
        x=x,
        at=[max(point[0] for point in run.values() if point is not None) for run in latest],
        values={name: finite(row) for name, row in values.items()},
        deltas={name: [_delta(value, row[0]) for value in row] for name, row in values.items()},
    )


def _latest(curve: _Curve, x: float) -> tuple[float, float] | None:
    """The last point at or before a place."""
    count = int(np.searchsorted(curve.x, x, side="right"))
    return (float(curve.x[count - 1]), float(curve.series.values[count - 1])) if count else None


def _value(point: tuple[float, float] | None) -> float | None:
    return None if point is None else point[1]


def _delta(value: float | None, first: float | None) -> Any:
    if value is None or first is None or not math.isfinite(value - first):
        return None
    return value - first
