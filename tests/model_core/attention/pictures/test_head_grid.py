"""The ragged grid of one number per head, read back from its pixels."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_core.attention.pictures.head_grid import GridPlot, head_grid
from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.pictures.sheet import COLORS, MARK

PLOT = GridPlot(
    title="Change",
    notes=("a run", "a sample"),
    values=[[0.0, 1.0, 0.5], [1.0], [0.5, 0.0]],
    whole=[2.0, 1.0, -0.5],
    is_marked=[[True, False, False], [False], [False, True]],
    mark="not above the null",
)


def places(plot: GridPlot, dpi: int = 100) -> Any:
    """Places in the palette, (height, width)."""
    with Image.open(io.BytesIO(head_grid(plot, PictureStyle(dpi=dpi)))) as image:
        return np.asarray(image)


def cells(pixels: Any) -> list[list[int]]:
    """Colors of the cells of each row of heads, from left to right."""
    rows = []
    colored = (pixels < COLORS).any(axis=1)
    starts = np.flatnonzero(np.diff(colored.astype(int), prepend=0) == 1)
    for start in starts:
        row = pixels[start + 10]  # below the marks
        changes = np.flatnonzero(np.diff(row.astype(int), prepend=-1))
        rows.append([int(row[x]) for x in changes if row[x] < COLORS])
    return rows


def test_rows_are_ragged_and_a_value_has_one_color_in_every_layer() -> None:
    low, half, high = 0, round((COLORS - 1) / 2), COLORS - 1
    assert cells(places(PLOT)) == [[low, high, half], [high], [half, low]]


def test_only_marked_heads_have_the_mark_beside_that_of_the_legend() -> None:
    unmarked = replace(PLOT, is_marked=[[False] * len(row) for row in PLOT.values])
    legend, all_marks = ((places(plot) == MARK).sum() for plot in (unmarked, PLOT))
    assert all_marks == 3 * legend > 0


def test_equal_plots_have_equal_bytes() -> None:
    assert head_grid(PLOT, PictureStyle()) == head_grid(PLOT, PictureStyle())


@pytest.mark.parametrize("heads", [(1,), (5000, 1), (1,) * 300], ids=["one", "wide", "deep"])
def test_any_shape_fits_in_a_bounded_picture(heads: tuple[int, ...]) -> None:
    plot = GridPlot("", (), [[0.0] * n for n in heads], [0.0] * len(heads), [[True] * n for n in heads], "")
    height, width = places(plot).shape
    assert height <= 100 * 82
    assert width <= 100 * 13
