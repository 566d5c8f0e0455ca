"""Numbers of heads as PNG: how a metric of every head changed with the steps of a training.

Layers have different numbers of heads, so rows are grouped by layer. One color scale holds for all layers: the same
value has the same color everywhere.

Shapes: H heads of one layer, S steps, X pixel columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.pictures.sheet import MUTED, TEXT, WHITE, Sheet, color_of

Array = NDArray[np.float64]

LEAST_TOP = 0.2  # of an automatic scale: below it noise would look like a pattern

_WIDTH_IN, _LEFT_IN, _RIGHT_IN, _TOP_IN, _BOTTOM_IN = 8.0, 1.1, 1.2, 0.62, 0.5
_ROWS_IN, _ROW_IN, _LEAST_ROW_PX = 9.0, 0.2, 2  # height of all rows, most and least height of one
_GAP_ROWS = 0.5  # between layers
_NUMBERED_IN, _NAMED_IN = 0.085, 0.14  # height from which a head has its number, and distance of names of layers
_MOST_NAMES = 40  # of layers: a text is slow when it is drawn for the first time
_TICK_IN, _BAR_IN, _BAR_HEIGHT_IN = 0.03, 0.16, 1.9


@dataclass(frozen=True)
class HistoryPlot:
    """One metric of all heads over the steps.

    Attributes:
        metric: Name of the metric, with its unit.
        title: What was measured, for the second line.
        steps: Steps, ascending, S.
        values: Layer by layer, (H, S) with its own H; NaN where there is no value.
        layers: Number of each layer.
        heads: Numbers of each layer's heads, H.
        scale: Values of both ends of the color scale.
        even: Value of even attention, marked at the color bar; None if there is none.
    """

    metric: str
    title: str
    steps: Sequence[int]
    values: Sequence[Array]
    layers: Sequence[int]
    heads: Sequence[Sequence[int]]
    scale: tuple[float, float]
    even: float | None = None


def auto_scale(values: Iterable[Array]) -> tuple[float, float]:
    """Choose the ends of a color scale for all layers together.

    Args:
        values: Layer by layer, of any shape; NaN where there is no value.

    Returns:
        0, or the least value if it is below; and the largest value, at least `LEAST_TOP`.
    """
    every = np.concatenate([np.array([0.0, LEAST_TOP]), *(layer[np.isfinite(layer)] for layer in values)])
    return float(every.min()), float(every.max())


def head_history(plot: HistoryPlot, style: PictureStyle) -> bytes:
    """Draw how a metric of every head changed: rows are heads grouped by layer, x is the step.

    Args:
        plot: What to draw; at least one step and one head.
        style: Color map and resolution; the format is PNG.

    Returns:
        The picture's file; the same plot gives the same bytes.
    """
    pixels = _Inches(style.dpi)
    rows = _Rows.of([len(layer) for layer in plot.values], style.dpi)
    left, top, right = pixels(_LEFT_IN), pixels(_TOP_IN), pixels(_WIDTH_IN - _RIGHT_IN)
    sheet = Sheet(pixels(_WIDTH_IN), top + max(rows.height, pixels(_BAR_HEIGHT_IN)) + pixels(_BOTTOM_IN), style)
    sheet.text(left, pixels(0.25), plot.metric, points=11, bold=True, grey="0.10")
    sheet.text(left, pixels(0.46), plot.title, grey="0.42")
    edges = _column_edges(plot.steps)
    columns = _columns(edges, right - left)  # (X,)
    for values, tops in zip(plot.values, rows.tops, strict=True):
        cells = color_of(values, plot.scale)[:, columns]  # (H, X)
        sheet.cells(left, top + tops[0], np.repeat(cells, rows.row_px, axis=0))
    _name_rows(sheet, plot, rows, left, top, pixels)
    _number_steps(sheet, edges, left, right, top + rows.height, pixels)
    _draw_bar(sheet, plot, right + pixels(0.28), top, pixels)
    return sheet.png(Title=plot.metric, Description=plot.title)


@dataclass(frozen=True)
class _Inches:
    """Converts inches to pixels."""

    dpi: int

    def __call__(self, inches: float) -> int:
        return max(1, round(inches * self.dpi))


@dataclass(frozen=True)
class _Rows:
    """The upper edge of each head's row, layer by layer."""

    height: int
    row_px: int
    tops: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, counts: Sequence[int], dpi: int) -> _Rows:
        all_rows = sum(counts) + _GAP_ROWS * (len(counts) - 1)
        row_px = max(_LEAST_ROW_PX, round(min(_ROW_IN, _ROWS_IN / all_rows) * dpi))
        gap_px = max(1, round(_GAP_ROWS * row_px))
        tops, below = [], 0
        for count in counts:
            tops.append(tuple(below + head * row_px for head in range(count)))
            below += count * row_px + gap_px
        return cls(below - gap_px, row_px, tuple(tops))


def _column_edges(steps: Sequence[int]) -> Array:
    """Edges of the columns, (S + 1,): in the middle between two steps."""
    places = np.array(steps, dtype=float)  # (S,)
    if len(places) == 1:
        return np.array([places[0] - 0.5, places[0] + 0.5])
    middles = (places[1:] + places[:-1]) / 2  # (S-1,)
    return np.concatenate([places[:1], middles, places[-1:]])  # (S+1,)


def _columns(edges: Array, width: int) -> NDArray[np.intp]:
    """Index of the step that each pixel column shows, (X,)."""
    places = edges[0] + (np.arange(width) + 0.5) / width * (edges[-1] - edges[0])  # (X,)
    index: NDArray[np.intp] = np.clip(np.searchsorted(edges, places, side="right") - 1, 0, len(edges) - 2)  # (X,)
    return index


def _name_rows(sheet: Sheet, plot: HistoryPlot, rows: _Rows, left: int, top: int, pixels: _Inches) -> None:
    last, middle, inch = -math.inf, rows.row_px // 2, pixels.dpi
    size, apart = min(7.0, rows.row_px / inch * 72 * 0.8), max(_NAMED_IN * inch, rows.height / _MOST_NAMES)
    for layer, heads, tops in zip(plot.layers, plot.heads, rows.tops, strict=True):
        center = top + (tops[0] + tops[-1]) // 2 + middle
        if center - last >= apart:  # names of thin layers would cover each other
            sheet.text(left - pixels(0.36), center, f"layer {layer}", across="right", middle=True)
            last = center
        if rows.row_px >= _NUMBERED_IN * inch:
            for head, row in zip(heads, tops, strict=True):
                place = (left - pixels(0.08), top + row + middle)
                sheet.text(*place, str(head), points=size, grey="0.42", across="right", middle=True)


def _number_steps(sheet: Sheet, edges: Array, left: int, right: int, below: int, pixels: _Inches) -> None:
    for step in _ticks(edges[0], edges[-1], 8, whole=True):
        x = left + round((step - edges[0]) / (edges[-1] - edges[0]) * (right - left - 1))
        sheet.fill(x, below, 1, pixels(_TICK_IN), MUTED)
        sheet.text(x, below + pixels(0.15), f"{step:.0f}", across="center")
    sheet.text((left + right) // 2, below + pixels(0.34), "Step", grey="0.42", across="center")


def _draw_bar(sheet: Sheet, plot: HistoryPlot, x: int, y: int, pixels: _Inches) -> None:
    width, height, (low, high) = pixels(_BAR_IN), pixels(_BAR_HEIGHT_IN - 0.25), plot.scale
    ramp = color_of(np.linspace(high, low, height), plot.scale)[:, None]  # (height, 1)
    sheet.cells(x, y, np.repeat(ramp, width, axis=1))
    for value in _ticks(low, high, 5):
        row = y + round((high - value) / (high - low) * (height - 1))
        sheet.fill(x + width, row, pixels(_TICK_IN), 1, MUTED)
        sheet.text(x + width + pixels(0.05), row, f"{value:g}", middle=True)
    if plot.even is not None:
        sheet.text(x, y + height + pixels(0.2), f"\N{BLACK RIGHT-POINTING SMALL TRIANGLE} even {plot.even:.3g}")
        if low <= plot.even <= high:
            row = y + round((high - plot.even) / (high - low) * (height - 1))
            sheet.fill(x, row - 1, width, 3, WHITE)
            sheet.fill(x, row, width, 1, TEXT)
            place = (x - pixels(0.02), row)
            sheet.text(*place, "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}", grey="0", across="right", middle=True)


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`."""
    ticks = MaxNLocator(nbins=most, integer=whole).tick_values(low, high)
    shown = (round(float(tick), 10) + 0.0 for tick in ticks if low <= tick <= high)  # + 0.0: no "-0"
    return [tick for tick in shown if not whole or tick.is_integer()]
