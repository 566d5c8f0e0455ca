"""Pictures of numbers of heads: one color for one value in every layer, read back from the file."""

import io

import numpy as np
import pytest
from PIL import Image

from model_core.attention.pictures.head_plots import HistoryPlot, auto_scale, head_history
from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.pictures.sheet import COLORS, FAINT, color_of

STEPS = (0, 200, 400, 1200)
HEADS = (8, 4, 2, 1)


def plot(values: list[np.ndarray], steps: tuple[int, ...] = STEPS, **changes) -> HistoryPlot:
    fields = {"layers": range(len(values)), "heads": [range(len(layer)) for layer in values], "scale": (0.0, 1.0)}
    return HistoryPlot("previous", "run a", steps, values, **fields | changes)


def pixels(png: bytes) -> np.ndarray:
    """Places in the palette, (height, width)."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "P"
        return np.asarray(image)


def bands(column: np.ndarray) -> list[tuple[int, int]]:
    """Color and height of the runs of colored pixels from the top of a column."""
    edges = np.flatnonzero(np.diff(column.astype(int))) + 1
    runs = np.split(column, edges)
    return [(int(run[0]), len(run)) for run in runs if run[0] < COLORS]


def test_one_value_has_one_color_in_every_layer_and_step() -> None:
    """Each layer's heads hold the same numbers; on a scale of its own, a layer of other numbers would change them."""
    rng = np.random.default_rng(0)
    shared = [0.1, 0.25, 0.4]
    values = [np.full((heads, 3), np.array(shared)) for heads in HEADS]
    values[0][1:] = rng.uniform(0.4, 0.9, (7, 3))  # one layer reaches far higher
    drawn = pixels(head_history(plot(values, steps=(0, 1, 2), scale=auto_scale(values)), PictureStyle()))
    expected = color_of(np.array(shared), auto_scale(values)).tolist()
    rows = [row for row in drawn.tolist() if row.count(expected[0]) > 100]  # a quarter of 855 pixels
    found = {tuple(dict.fromkeys(place for place in row[165:1020] if place < COLORS)) for row in rows}
    assert found == {tuple(expected)}
    assert len(rows) == 30 * (1 + 4 + 2 + 1)  # rows of 30 pixels at 150 dpi


def test_rows_are_grouped_by_layer_and_every_head_has_the_same_height() -> None:
    values = [np.full((heads, 4), (layer + 1) / 8) for layer, heads in enumerate(HEADS)]
    drawn = pixels(head_history(plot(values), PictureStyle()))
    column = drawn[:, 600]
    expected = [(int(color_of(np.array((layer + 1) / 8), (0, 1))), 30 * heads) for layer, heads in enumerate(HEADS)]
    assert bands(column) == expected


def test_steps_have_the_width_of_their_distance() -> None:
    values = [np.array([[0.1, 0.2, 0.3, 0.4]])]
    drawn = pixels(head_history(plot(values), PictureStyle()))
    row = next(row for row in drawn if (row == color_of(np.array(0.4), (0, 1))).sum() > 100)
    widths = [(row == color_of(np.array(value), (0, 1))).sum() for value in values[0][0]]
    assert np.array(widths) / sum(widths) == pytest.approx([100 / 1200, 200 / 1200, 500 / 1200, 400 / 1200], abs=0.003)


def test_a_value_that_is_missing_is_grey_and_one_step_fills_the_row() -> None:
    drawn = pixels(head_history(plot([np.array([[np.nan], [0.5]])], steps=(7,)), PictureStyle()))
    rows = [set(row) for row in drawn[:, 165:1020].tolist()]  # left of them are names, right the bar
    assert (rows.count({FAINT}), rows.count({int(color_of(np.array(0.5), (0, 1)))})) == (30, 30)


@pytest.mark.parametrize("even", [None, 0.5, 7.0], ids=["unknown", "inside", "outside"])
def test_even_attention_is_marked_on_the_bar_where_the_scale_has_it(even: float | None) -> None:
    values = [np.zeros((2, 4))]
    bar = pixels(head_history(plot(values, even=even), PictureStyle()))[:, 1075]
    ramp = [color for color, _ in bands(bar)]
    assert ramp == sorted(ramp, reverse=True)
    marked = np.diff(np.flatnonzero(bar < COLORS)).max()
    assert marked == (4 if even == 0.5 else 1)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([[0.01, 0.02]], (0.0, 0.2)),
        ([[0.5, np.nan], [0.7, np.inf]], (0.0, 0.7)),
        ([[-1.0, 0.1]], (-1.0, 0.2)),
        ([[np.nan]], (0.0, 0.2)),
    ],
)
def test_an_automatic_scale_has_all_values_and_is_never_narrow(values: list, scale: tuple[float, float]) -> None:
    assert auto_scale([np.array(layer) for layer in values]) == scale


@pytest.mark.parametrize(
    ("heads", "steps"), [((1,), 1), ((2,) * 600, 40), ((256,) * 8, 3)], ids=["one", "deep", "wide"]
)
def test_any_shape_of_a_model_fits(heads: tuple[int, ...], steps: int) -> None:
    values = [np.full((count, steps), 0.9) for count in heads]
    png = head_history(plot(values, steps=tuple(range(steps))), PictureStyle(dpi=50))
    assert png == head_history(plot(values, steps=tuple(range(steps))), PictureStyle(dpi=50))
    painted = color_of(np.array(0.9), (0, 1))
    assert [(row == painted).sum() > 200 for row in pixels(png)].count(True) >= 2 * sum(heads)
