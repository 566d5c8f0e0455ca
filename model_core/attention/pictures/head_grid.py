"""One number per head as PNG: a row a layer, a cell a head, and a column of its own for the whole layer.

Layers have different numbers of heads, so rows have different lengths. One color scale holds for all heads. A whole
layer is on a scale of its own, and is therefore a bar and not a color.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.pictures.sheet import FAINT, MARK, MUTED, Sheet, color_of

_LEFT_IN, _TOP_IN, _BOTTOM_IN = 0.85, 0.98, 0.2
_ROW_IN, _COLOR_IN, _GAP_IN = 0.4, 0.2, 0.03  # of a layer, of its cells, and between cells
_COLUMNS_IN, _CELL_IN = 9.0, 0.58  # width of all cells, most of one
_NUMBERED_IN = 0.4  # width from which a cell has its number
_BAR_IN, _WHOLE_IN, _LEAST_IN = 1.2, 2.1, 6.5  # longest bar, column of the layer, least width of the picture
_MARK_IN = 0.06
_MOST_IN = 80.0  # height of all rows
_MOST_NAMES = 40  # of layers, and their numbers: a text is slow when it is drawn for the first time


@dataclass(frozen=True)
class GridPlot:
    """One number of every head and of every layer.

    Attributes:
        title: What the number is, with its unit.
        notes: Lines below the title.
        values: Layer by layer, a number a head; NaN where there is none.
        whole: A number a layer.
        is_marked: Layer by layer, whether a head has the mark.
        mark: What the mark means.
    """

    title: str
    notes: Sequence[str]
    values: Sequence[Sequence[float]]
    whole: Sequence[float]
    is_marked: Sequence[Sequence[bool]]
    mark: str


def head_grid(plot: GridPlot, style: PictureStyle) -> bytes:
    """Draw a number of every head, ragged, with a column for the whole layer.

    Args:
        plot: What to draw; at least one layer.
        style: Color map and resolution; the format is PNG.

    Returns:
        The picture's file; the same plot gives the same bytes.
    """
    dpi = style.dpi
    columns, rows = max(map(len, plot.values)), len(plot.values)
    cell = min(_CELL_IN, _COLUMNS_IN / columns)  # thin ones share a pixel
    row_in = min(_ROW_IN, _MOST_IN / rows)
    whole_x = _LEFT_IN + columns * cell + 0.25
    sheet = Sheet(_px(max(_LEAST_IN, whole_x + _WHOLE_IN), dpi), _px(_TOP_IN + rows * row_in + _BOTTOM_IN, dpi), style)
    scale = _scale_of(plot.values)
    every = math.ceil(rows / _MOST_NAMES)
    _write_header(sheet, plot, scale, whole_x, dpi)
    for layer, (values, marks) in enumerate(zip(plot.values, plot.is_marked, strict=True)):
        y = _TOP_IN + layer * row_in
        height = min(_COLOR_IN, 0.8 * row_in)
        if layer % every == 0:
            sheet.text(_px(0.2, dpi), _px(y + height / 2, dpi), f"layer {layer}", middle=True)
        for head, (value, color) in enumerate(zip(values, color_of(np.array(values), scale), strict=True)):
            x = _LEFT_IN + head * cell
            width = max(1, _px(cell, dpi) - _px(min(_GAP_IN, cell / 4), dpi))
            sheet.fill(_px(x, dpi), _px(y, dpi), width, _px(height, dpi), int(color))
            if marks[head]:
                side = _px(min(_MARK_IN, cell / 2, height / 2), dpi)
                sheet.fill(_px(x, dpi), _px(y, dpi), side, side, MARK)
            if cell >= _NUMBERED_IN and row_in == _ROW_IN and rows <= _MOST_NAMES:
                sheet.text(_px(x, dpi), _px(y + height + 0.12, dpi), f"{head}: {value:.2g}", points=6, grey="0.35")
        _draw_bar(sheet, plot.whole, layer, whole_x, y, height, dpi, is_numbered=layer % every == 0)
    return sheet.png(Title=plot.title, Description="; ".join(plot.notes))


def _write_header(sheet: Sheet, plot: GridPlot, scale: tuple[float, float], whole_x: float, dpi: int) -> None:
    sheet.text(_px(0.2, dpi), _px(0.28, dpi), plot.title, points=11, bold=True, grey="0.10")
    for number, line in enumerate(plot.notes):
        sheet.text(_px(0.2, dpi), _px(0.47 + 0.16 * number, dpi), line, points=7, grey="0.42")
    y = _TOP_IN - 0.16
    sheet.text(_px(_LEFT_IN, dpi), _px(y, dpi), f"heads: colors {scale[0]:.3g} to {scale[1]:.3g}", points=7)
    side = _px(_MARK_IN, dpi)
    sheet.fill(_px(_LEFT_IN + 1.85, dpi), _px(y, dpi) - side, side, side, MARK)
    sheet.text(_px(_LEFT_IN + 1.95, dpi), _px(y, dpi), plot.mark, points=7)
    at = max(whole_x, _LEFT_IN + 1.95 + 0.055 * len(plot.mark))
    sheet.text(_px(at, dpi), _px(y, dpi), "whole layer", points=7)


def _draw_bar(
    sheet: Sheet, whole: Sequence[float], layer: int, x: float, y: float, height: float, dpi: int, *, is_numbered: bool
) -> None:  # fmt: skip
    largest = max(map(abs, whole)) or 1.0
    length = _px(_BAR_IN * abs(whole[layer]) / largest, dpi)
    sheet.fill(_px(x, dpi), _px(y, dpi), length, _px(height, dpi), MUTED if whole[layer] >= 0 else FAINT)
    if is_numbered:
        place = (_px(x, dpi) + length + _px(0.06, dpi), _px(y + height / 2, dpi))
        sheet.text(*place, f"{whole[layer]:.3g}", points=7, middle=True)


def _scale_of(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """From 0, or the least value if it is below, to the largest."""
    every = np.array([value for row in values for value in row])
    every = every[np.isfinite(every)]
    low, high = min(0.0, every.min(initial=0.0)), max(0.0, every.max(initial=0.0))
    return float(low), float(high if high > low else low + 1.0)


def _px(inches: float, dpi: int) -> int:
    return max(1, round(inches * dpi))
