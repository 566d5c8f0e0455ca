"""Distributions of heads as PNG: how far each looks, as bars, and one statistic of each over many texts, as boxes.

Heads stand in rows of their layer, which differ in length. One scale holds for all heads, and even attention is marked
in each, so that two heads compare at a glance.

Shapes: S heads of all layers, P bins of distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.pictures.sheet import COLORS, FAINT, MUTED, TEXT, Sheet

Array = NDArray[np.float64]
Place = tuple[int, int]  # layer and head

LEAST_TOP = 0.2  # of a scale of shares: below it noise would look like a pattern

_BAR_COLOR, _BOX_COLOR, _MEDIAN_COLOR = COLORS * 2 // 5, COLORS * 3 // 5, COLORS // 5  # places in the palette
_LEFT_IN, _TOP_IN, _BOTTOM_IN, _RIGHT_IN = 0.95, 0.62, 0.62, 0.3
_ROW_WIDTH_IN, _PANEL_IN, _LEAST_PANEL_IN, _ASPECT, _GAP_IN = 11.0, 2.2, 0.32, 0.62, 0.1  # of panels with bars
_NUMBERED_IN = 0.75  # width from which a panel has its number and its bins have names
_BOX_WIDTH_IN, _BOX_ROW_IN, _BOXES_IN, _LAYER_GAP = 7.0, 0.2, 11.0, 0.5  # of rows with boxes


@dataclass(frozen=True)
class DistancePlot:
    """How far heads look.

    Attributes:
        title: What was measured, for the second line.
        places: Layer and head of each head, layer after layer, S.
        bins: First and last distance of each bin, P.
        shares: Share of the weight in each bin, (S, P).
        even: Share of even attention in each bin, (P,).
    """

    title: str
    places: Sequence[Place]
    bins: Sequence[tuple[int, int]]
    shares: Array
    even: Array


@dataclass(frozen=True)
class BoxPlot:
    """One statistic of every head over many texts.

    Attributes:
        metric: Name of the statistic, with its unit.
        title: What was measured, for the second line.
        places: Layer and head of each head, layer after layer, S.
        deciles: Smallest value, nine deciles, largest value of each head, (S, 11); NaN where there is none.
        even: Mean value of even attention; None if there is none.
    """

    metric: str
    title: str
    places: Sequence[Place]
    deciles: Array
    even: float | None = None


def distance_bars(plot: DistancePlot, style: PictureStyle) -> bytes:
    """Draw how far heads look: a panel a head, a row a layer, a bar a bin; a dark line is even attention.

    Args:
        plot: What to draw; at least one head.
        style: Color map and resolution; the format is PNG.

    Returns:
        The picture's file; the same plot gives the same bytes.
    """
    layers = sorted({layer for layer, _ in plot.places})
    most = max(sum(layer == row for layer, _ in plot.places) for row in layers)
    width_in = min(_PANEL_IN, max(_LEAST_PANEL_IN, _ROW_WIDTH_IN / most - _GAP_IN))
    width, height = round(width_in * style.dpi), round(width_in * _ASPECT * style.dpi)
    gap, is_named = round(_GAP_IN * style.dpi), width_in >= _NUMBERED_IN
    pitch = height + gap + (round(0.34 * style.dpi) if is_named else 0)
    left, top, bottom = (round(inches * style.dpi) for inches in (_LEFT_IN, _TOP_IN, _BOTTOM_IN))
    total = max(left + most * (width + gap) + round(_RIGHT_IN * style.dpi), round(6.5 * style.dpi))
    sheet = Sheet(total, top + len(layers) * pitch + bottom, style)
    high = max(LEAST_TOP, float(plot.shares.max()), float(plot.even.max()))
    _head(sheet, style, left, "Share of attention by distance from query back to key", plot.title)
    for row, layer in enumerate(layers):
        y = top + row * pitch + (round(0.17 * style.dpi) if is_named else 0)
        sheet.text(left - round(0.36 * style.dpi), y + height // 2, f"layer {layer}", across="right", middle=True)
        sheet.text(left - round(0.05 * style.dpi), y, f"{high:.2g}", points=6, grey="0.42", across="right", middle=True)
        heads = [index for index, place in enumerate(plot.places) if place[0] == layer]
        for column, index in enumerate(heads):
            x = left + column * (width + gap)
            _panel(sheet, plot, index, (x, y, width, height), high)
            if is_named:
                sheet.text(x, y - round(0.05 * style.dpi), f"head {plot.places[index][1]}", points=7, grey="0.25")
                _name_bins(sheet, plot.bins, (x, y, width, height), style)
    below = top + len(layers) * pitch + round(0.2 * style.dpi)
    names = ", ".join(_bin_name(pair) for pair in plot.bins)
    sheet.text(left, below, f"bins of distances: {names}", points=7, grey="0.42")
    sheet.text(left, below + round(0.18 * style.dpi), "dark line: even attention", points=7, grey="0.42")
    return sheet.png(Title="Share of attention by distance", Description=plot.title)


def decile_boxes(plot: BoxPlot, style: PictureStyle) -> bytes:
    """Draw one statistic of every head: smallest to largest value, box from first to ninth decile, line at the median.

    Args:
        plot: What to draw; at least one head.
        style: Color map and resolution; the format is PNG.

    Returns:
        The picture's file; the same plot gives the same bytes.
    """
    layers = [layer for layer, _ in plot.places]
    firsts = [number == 0 or layers[number - 1] != layer for number, layer in enumerate(layers)]
    places = np.arange(len(layers)) + _LAYER_GAP * (np.cumsum(firsts) - 1)  # (S,) in rows
    row = max(3, round(min(_BOX_ROW_IN, _BOXES_IN / (places[-1] + 1)) * style.dpi))
    rows = np.rint(places * row).astype(int).tolist()
    left, top, bottom = (round(inches * style.dpi) for inches in (_LEFT_IN, _TOP_IN, _BOTTOM_IN))
    width, height = round(_BOX_WIDTH_IN * style.dpi), rows[-1] + row
    sheet = Sheet(left + width + round(_RIGHT_IN * style.dpi), top + height + bottom, style)
    known = plot.deciles[np.isfinite(plot.deciles)]
    ends: list[float] = [0.0, *known.tolist(), *([] if plot.even is None else [plot.even])]
    low, high = min(ends), max(ends) if max(ends) > min(ends) else min(ends) + LEAST_TOP

    def at(value: float) -> int:
        return left + round(float(value - low) / (high - low) * (width - 1))

    _head(sheet, style, left, plot.metric, plot.title)
    for (layer, head), is_first, y, deciles in zip(plot.places, firsts, rows, plot.deciles, strict=True):
        middle = top + y + row // 2
        if is_first:
            sheet.text(left - round(0.36 * style.dpi), middle, f"layer {layer}", across="right", middle=True)
        if row >= 0.085 * style.dpi:
            size, x = min(7.0, row / style.dpi * 58), left - round(0.08 * style.dpi)
            sheet.text(x, middle, str(head), points=size, grey="0.42", across="right", middle=True)
        if np.isfinite(deciles).all():
            _box(sheet, [at(value) for value in deciles], top + y, row)
    if plot.even is not None:
        sheet.fill(at(plot.even), top, 1, height, TEXT)
        sheet.text(at(plot.even), top - round(0.04 * style.dpi), f"even {plot.even:.3g}", points=7, across="center")
    for tick in _ticks(low, high):
        sheet.fill(at(tick), top + height, 1, round(0.04 * style.dpi), MUTED)
        sheet.text(at(tick), top + height + round(0.17 * style.dpi), f"{tick:g}", across="center")
    note = "line: least to most; box: first to ninth decile; dark: median"
    sheet.text(left, top + height + round(0.42 * style.dpi), note, points=7, grey="0.42")
    return sheet.png(Title=plot.metric, Description=plot.title)


def _head(sheet: Sheet, style: PictureStyle, left: int, title: str, detail: str) -> None:
    sheet.text(left, round(0.22 * style.dpi), title, points=11, bold=True, grey="0.10")
    sheet.text(left, round(0.4 * style.dpi), detail, grey="0.42")


def _panel(sheet: Sheet, plot: DistancePlot, index: int, box: tuple[int, int, int, int], high: float) -> None:
    x, y, width, height = box
    edges = x + np.rint(np.linspace(0, width, len(plot.bins) + 1)).astype(int)  # (P + 1,)
    sheet.fill(x, y, width, height, FAINT)
    for left, right, share, even in zip(edges, edges[1:], plot.shares[index], plot.even, strict=False):
        bar = min(height, round(float(share) / high * height))
        inner = max(1, int(right - left) - (1 if right - left > 3 else 0))
        if bar:
            sheet.fill(int(left), y + height - bar, inner, bar, _BAR_COLOR)
        sheet.fill(int(left), y + height - 1 - round(float(even) / high * (height - 1)), inner, 1, TEXT)
    sheet.fill(x, y + height, width, 1, MUTED)


def _name_bins(
    sheet: Sheet, bins: Sequence[tuple[int, int]], box: tuple[int, int, int, int], style: PictureStyle
) -> None:
    """Write the first distance of some bins below a panel."""
    x, y, width, height = box
    step = max(1, round(len(bins) * 0.22 * style.dpi / width))
    for number in range(0, len(bins), step):
        center = x + round((number + 0.5) / len(bins) * width)
        sheet.text(center, y + height + round(0.11 * style.dpi), str(bins[number][0]), points=5.5, across="center")


def _box(sheet: Sheet, places: Sequence[int], y: int, row: int) -> None:
    middle = y + row // 2
    sheet.fill(places[0], middle, max(1, places[-1] - places[0]), 1, MUTED)
    inset = max(1, row // 5) if row > 4 else 0
    sheet.fill(places[1], y + inset, max(1, places[9] - places[1]), max(1, row - 2 * inset), _BOX_COLOR)
    sheet.fill(places[5], y + inset, max(1, row // 10), max(1, row - 2 * inset), _MEDIAN_COLOR)


def _bin_name(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}-{pair[1]}"


def _ticks(low: float, high: float) -> list[float]:
    ticks = MaxNLocator(nbins=7).tick_values(low, high)
    return [round(float(tick), 10) for tick in ticks if low <= tick <= high]
