"""Runs beside each other as PNG: their curves over one axis, and which heads of one were found again in another.

Lines are drawn only between heads that were found again. An assignment pairs any two models, also untrained ones, and
a line for each of its pairs would show order where there is none.

Shapes: P points of a curve.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model_core.attention.pictures.labels import DRAWING

HeadName = tuple[int, int]  # layer and head

_DPI = 150
_COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#7f7f7f",
)  # Okabe and Ito, 2008
_DASHES = ("-", "--", "-.", ":")  # with the colors, so that no run is told by its color alone
_INK, _MUTED, _FAINT = "0.15", "0.45", "0.82"
_ROW_IN, _LEAST_IN, _MOST_IN, _NAMED_IN = 0.13, 2.2, 12.0, 0.075  # height of heads; from which a head is named
_GAP_ROWS = 0.8  # between layers
_COLUMN_IN, _MARGIN_IN, _HEAD_IN = 3.0, 0.35, 0.75
_LEAST_WIDTH_IN = 3.9  # has room for the title


@dataclass(frozen=True)
class CurvePlot:
    """One metric of several runs.

    Attributes:
        metric: Name of the metric, with its unit.
        curves: Name of each run, x and y of its points, (P,) each; points that are not finite break the line.
    """

    metric: str
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class MatchPlot:
    """Heads of two models.

    Attributes:
        names: What to call the models.
        heads: Head count of every layer of each.
        found: Pairs of heads that were found again, with their overlap.
        flat: Heads of each that look at everything alike.
        note: What the lines say, below the names.
    """

    names: tuple[str, str]
    heads: tuple[Sequence[int], Sequence[int]]
    found: Sequence[tuple[HeadName, HeadName, float]]
    flat: tuple[frozenset[HeadName], frozenset[HeadName]]
    note: str


def draw_curves(plots: Sequence[CurvePlot], axis: str, title: str, facts: Mapping[str, str]) -> bytes:
    """Draw curves of several runs, one panel a metric.

    Args:
        plots: The metrics.
        axis: Name of x, with its unit.
        title: Title of the picture.
        facts: Texts of the file's metadata.

    Returns:
        The PNG; equal arguments give the same bytes.
    """
    with DRAWING:
        figure = _figure(6.4 * len(plots), 4.2, title)
        for place, plot in enumerate(plots):
            axes = figure.add_subplot(1, len(plots), place + 1)
            for number, (name, x, y) in enumerate(plot.curves):
                color, dashes = _COLORS[number % len(_COLORS)], _DASHES[number % len(_DASHES)]
                marker = "o" if len(x) < 3 else None
                axes.plot(x, y, dashes, color=color, linewidth=1.4, label=name, marker=marker, markersize=4)
            axes.set_xlabel(axis, fontsize=8, color=_MUTED)
            axes.set_title(plot.metric, fontsize=9, color=_INK, loc="left")
            axes.tick_params(labelsize=7, colors=_MUTED)
            axes.grid(color="0.93", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize=7, frameon=False, handlelength=3.2)
            if not any(len(x) for _, x, _ in plot.curves):
                axes.set(xticks=(), yticks=())  # numbers at empty axes would look like values
                axes.text(0.5, 0.5, "no values", transform=axes.transAxes, fontsize=9, color=_MUTED, ha="center")
        figure.subplots_adjust(
            left=0.5 / (6.4 * len(plots)), right=1 - 0.15 / (6.4 * len(plots)), top=0.84, bottom=0.12
        )
        return _png(figure, facts)


def draw_matches(plots: Sequence[MatchPlot], title: str, facts: Mapping[str, str]) -> bytes:
    """Draw which heads were found again: two ragged columns of heads a comparison, with a line between equal heads.

    Args:
        plots: The comparisons, each of two models.
        title: Title of the picture.
        facts: Texts of the file's metadata.

    Returns:
        The PNG; equal arguments give the same bytes.
    """
    columns = [[_rows(heads) for heads in plot.heads] for plot in plots]
    most = max(rows[-1][1] + 1 for sides in columns for rows in sides)
    height = min(max(most * _ROW_IN, _LEAST_IN), _MOST_IN)
    width = max(len(plots) * _COLUMN_IN + _MARGIN_IN, _LEAST_WIDTH_IN)
    whole = height + _HEAD_IN + _MARGIN_IN
    with DRAWING:
        figure = _figure(width, whole, title)
        for place, (plot, sides) in enumerate(zip(plots, columns, strict=True)):
            left = (place * _COLUMN_IN + _MARGIN_IN) / width
            box = (left, _MARGIN_IN / whole, (_COLUMN_IN - _MARGIN_IN) / width, height / whole)
            axes = figure.add_axes(box)
            axes.set(xlim=(-0.6, 1.6), ylim=(most - 0.5, -0.5))
            axes.axis("off")
            _draw_match(axes, plot, sides, height / most)
        return _png(figure, facts)


def _draw_match(axes: Axes, plot: MatchPlot, sides: Sequence[Sequence[tuple[HeadName, float]]], row_in: float) -> None:
    places = [dict(rows) for rows in sides]
    for a, b, overlap in plot.found:
        axes.plot([0.08, 0.92], [places[0][a], places[1][b]], "-", color=_COLORS[0], linewidth=0.4 + 2.6 * overlap)
    for side, (rows, flat) in enumerate(zip(places, plot.flat, strict=True)):
        matched = {pair[side] for pair in plot.found}
        fills = [_COLORS[0] if head in matched else _FAINT if head in flat else "white" for head in rows]
        size = (min(row_in, _ROW_IN) * 72 * 0.62) ** 2
        edges = [_COLORS[0] if head in matched else _MUTED for head in rows]
        axes.scatter(
            [side] * len(rows), list(rows.values()), s=size, c=fills, edgecolors=edges, linewidths=0.6, zorder=3
        )
        if row_in >= _NAMED_IN:
            shift, across = (-0.12, "right") if side == 0 else (0.12, "left")
            for (layer, head), row in rows.items():
                axes.text(
                    side + shift,
                    row,
                    f"{layer}.{head}",
                    fontsize=min(6.5, row_in * 50),
                    color=_MUTED,
                    ha=across,
                    va="center",
                )
    _caption(axes, 0, 17, plot.names[0], "left")
    _caption(axes, 1, 17, plot.names[1], "right")
    _caption(axes, 0.5, 4, plot.note, "center")


def _caption(axes: Axes, x: float, up_points: float, text: str, across: str) -> None:
    """Write above the axes."""
    axes.annotate(
        text, (x, 1), xycoords="axes fraction", xytext=(0, up_points), textcoords="offset points",
        fontsize=7, color=_INK, ha=across, va="bottom",
    )  # fmt: skip


def _rows(heads: Sequence[int]) -> list[tuple[HeadName, float]]:
    """Every head with its row, a gap between layers."""
    rows, below = [], 0.0
    for layer, n_head in enumerate(heads):
        rows += [((layer, head), below + head) for head in range(n_head)]
        below += n_head + _GAP_ROWS
    return rows


def _figure(width_in: float, height_in: float, title: str) -> Figure:
    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.2 / width_in, 1 - 0.12 / height_in, title, fontsize=10, fontweight="bold", color=_INK, va="top")
    return figure


def _png(figure: Figure, facts: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"savefig.bbox": "standard"}):
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None, **facts})
    return buffer.getvalue()
