"""Drawing with matplotlib: whole figures for SVG, PDF and notebooks, and the parts that PNGs are composed of.

It uses `Figure` and the Agg canvas, never pyplot, which keeps every figure and shares its state between threads. One
lock guards what remains of matplotlib's global state.

Shapes: T tokens, S pixels of a panel's side.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from model_core.attention.pictures.labels import DRAWING, FONT, axis_labels, escape, font_families
from model_core.attention.pictures.layout import Annotations, Box, Caption, Margins, Page, PictureStyle
from model_core.attention.record import dequantize
from model_core.attention.weights import max_pool

Greys = NDArray[np.uint8]
Array = NDArray[Any]

FUTURE = 28 / 30  # grey of the upper triangle; one of the 31 greys of a PNG's palette
ACCENT = "#ff3b30"  # of highlighted tokens; no usual color map has it


def figure(page: Page, panels: Iterable[Array], annotations: Annotations, style: PictureStyle) -> Figure:
    """Draw a page as a matplotlib figure.

    Args:
        page: Layout of the page.
        panels: Quantized attention of each panel, (T, T); only the lower triangle is drawn.
        annotations: Labels, marks and the range of colors.
        style: Color map, and the most tokens to label.

    Returns:
        The figure.
    """
    canvas = Figure(figsize=(page.width / page.dpi, page.height / page.dpi), dpi=page.dpi, facecolor="white")
    FigureCanvasAgg(canvas)
    if page.margins is None:
        _draw_small_panels(canvas, page, panels, annotations, style)
    else:
        labels, first = axis_labels(annotations.tokens, style), annotations.first
        for box, levels in zip(page.panels, panels, strict=True):
            axes = _axes(canvas, box, page.width, page.height)
            begin, end = first - 0.5, first + len(levels) - 0.5
            _draw_panel(axes, levels, box.width, annotations, style, (begin, end, end, begin))
            _style_axes(axes, first, len(levels), labels, annotations.highlight, box.width / page.dpi)
            _draw_bands(axes, annotations, (begin, begin, 1.0), box.width / page.dpi)
    for caption in page.captions:
        _draw_text(canvas, caption, page.width, page.height)
    bar = _axes(canvas, page.bar, page.width, page.height)
    _style_bar(bar, annotations.scale_max, annotations.bar_name, style.cmap)
    return canvas


def vector(page: Page, panels: Iterable[Array], annotations: Annotations, style: PictureStyle) -> bytes:
    """Draw a page as SVG or PDF; the same page gives the same bytes.

    Args:
        page: Layout of the page.
        panels: Quantized attention of each panel, (T, T); only the lower triangle is drawn.
        annotations: Labels, marks, the range of colors, and what the file says of itself.
        style: Format, color map, and the most tokens to label.

    Returns:
        The file.
    """
    buffer = io.BytesIO()
    facts = "; ".join(f"{name}: {value}" for name, value in annotations.metadata.items())
    metadata = {
        "svg": {"Date": None, "Description": facts or None},
        "pdf": {"CreationDate": None, "Subject": facts or None},
    }[style.format]
    with DRAWING, matplotlib.rc_context({"svg.hashsalt": "attention", "image.composite_image": False}):
        drawn = figure(page, panels, annotations, style)
        drawn.savefig(buffer, format=style.format, dpi=page.dpi, metadata=metadata)
    return buffer.getvalue()


@lru_cache(maxsize=8)
def empty_panel(
    tokens: int, labels: tuple[str, ...] | None, side: int, margins: Margins, dpi: int, first: int = 0,
    highlight: tuple[int, ...] = (),
) -> Greys:  # fmt: skip
    """Draw a panel without its data: ticks, labels and axis names.

    Args:
        tokens: Number of tokens, T.
        labels: Label of every token; None numbers the ticks.
        side: Side of the panel in pixels, S.
        margins: Space around the panel.
        dpi: Pixels per inch.
        first: Number of the first tick.
        highlight: Places of tokens whose labels are bold.

    Returns:
        Grey levels, (top + S + bottom, left + S + right).
    """
    width, height = margins.left + side + margins.right, margins.top + side + margins.bottom
    with DRAWING:
        canvas = _canvas(width, height, dpi)
        axes = _axes(canvas, Box(margins.left, margins.top, side, side), width, height)
        _style_axes(axes, first, tokens, labels, highlight, side / dpi)
        return _greys(canvas)


@lru_cache(maxsize=8)
def empty_bar(bar: Box, frame: Box, dpi: int, scale_max: float = 1.0, name: str = "Attention weight") -> Greys:
    """Draw the color bar without its colors.

    Args:
        bar: Gradient of the color bar.
        frame: The color bar with its ticks and name.
        dpi: Pixels per inch.
        scale_max: Weight at its upper end.
        name: Its name.

    Returns:
        Grey levels, (frame.height, frame.width).
    """
    with DRAWING:
        canvas = _canvas(frame.width, frame.height, dpi)
        place = Box(bar.x - frame.x, bar.y - frame.y, bar.width, bar.height)
        _style_bar(_axes(canvas, place, frame.width, frame.height), scale_max, name)
        return _greys(canvas)


@lru_cache(maxsize=512)
def render_text(text: str, points: float, bold: bool, color: str, dpi: int) -> tuple[int, int, Greys]:
    """Draw a line of text.

    Args:
        text: The text.
        points: Font size.
        bold: Whether it is bold.
        color: Grey as matplotlib writes it, from ``0`` to ``1``.
        dpi: Pixels per inch.

    Returns:
        How many pixels to the right of its origin and below it the rendered text begins, and its grey levels,
        (height, width).
    """
    width = round((len(text) + 2) * points / 72 * dpi * 1.2) + 2  # more than any text needs
    rise = round(points / 72 * dpi * 2) + 2
    start = rise // 2  # italic and accented letters may begin left of the origin
    with DRAWING:
        canvas = _canvas(start + width, 2 * rise, dpi)
        _draw_text(canvas, Caption(start, rise, text, points, bold, color), start + width, 2 * rise)
        greys = _greys(canvas)
    rows, columns = np.nonzero((greys < 255).any(axis=1))[0], np.nonzero((greys < 255).any(axis=0))[0]
    if not rows.size:
        return 0, 0, greys[:0, :0]
    cut = greys[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return int(columns[0]) - start, int(rows[0]) - rise, cut


def _canvas(width: int, height: int, dpi: int) -> Figure:
    canvas = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(canvas)
    return canvas


def _greys(canvas: Figure) -> Greys:
    """One channel of what is drawn, (height, width): all parts are grey."""
    agg = canvas.canvas
    assert isinstance(agg, FigureCanvasAgg)
    agg.draw()  # type: ignore[no-untyped-call]
    greys = np.asarray(agg.buffer_rgba())[..., 0].copy()  # type: ignore[no-untyped-call]
    greys.flags.writeable = False  # cached
    return greys


def _axes(canvas: Figure, box: Box, width: int, height: int) -> Axes:
    bottom = height - box.y - box.height
    return canvas.add_axes((box.x / width, bottom / height, box.width / width, box.height / height))


def _draw_text(canvas: Figure, caption: Caption, width: int, height: int) -> None:
    text = escape(caption.text)
    canvas.text(
        caption.x / width, 1 - caption.y / height, text, fontsize=caption.points,
        fontweight="bold" if caption.bold else "normal", color=caption.color, ha="left", va="baseline",
        fontfamily=font_families(text), parse_math=False,
    )  # fmt: skip


def _draw_panel(
    axes: Axes, levels: Array, side: int, annotations: Annotations, style: PictureStyle,
    extent: tuple[float, float, float, float],
) -> None:  # fmt: skip
    small = max_pool(levels, side)
    future = np.triu(np.ones(small.shape, dtype=bool), k=1)
    colors = matplotlib.colormaps[style.cmap].with_extremes(bad=str(FUTURE))
    axes.imshow(
        np.ma.masked_array(dequantize(small), mask=future), cmap=colors, vmin=0.0, vmax=annotations.scale_max,
        interpolation="nearest", extent=extent, aspect="auto",
    )  # fmt: skip


def _draw_bands(axes: Axes, annotations: Annotations, place: tuple[float, float, float], side_in: float) -> None:
    """Outline the rows and columns of highlighted tokens, and mark them beside the axes.

    Args:
        axes: Where the panel is.
        annotations: The highlighted tokens.
        place: Left and upper end of the panel and the size of a token, in units of the axes.
        side_in: Side of the panel in inches.
    """
    left, top, size = place
    length = len(annotations.tokens) * size
    thick = length * 0.025 / side_in
    for begin, end in annotations.bands:
        first, extent = begin * size, (end - begin) * size
        for corner, width, height in (((left, top + first), length, extent), ((left + first, top), extent, length)):
            axes.add_patch(Rectangle(corner, width, height, fill=False, linewidth=0.72, edgecolor=ACCENT))
        for corner, width, height in (
            ((left - thick, top + first), thick, extent),
            ((left + first, top + length), extent, thick),
        ):
            axes.add_patch(Rectangle(corner, width, height, linewidth=0, facecolor=ACCENT, clip_on=False))


def _draw_small_panels(
    canvas: Figure, page: Page, panels: Iterable[Array], annotations: Annotations, style: PictureStyle
) -> None:
    axes = canvas.add_axes((0, 0, 1, 1))  # one for all panels: creating axes is slow
    axes.axis("off")
    for box, levels in zip(page.panels, panels, strict=True):
        extent = (box.x, box.x + box.width, box.y + box.height, box.y)
        _draw_panel(axes, levels, box.width, annotations, style, extent)
        _draw_bands(axes, annotations, (box.x, box.y, box.width / len(levels)), box.width / page.dpi)
    axes.set_xlim(0, page.width)
    axes.set_ylim(page.height, 0)


def _style_axes(
    axes: Axes, first: int, tokens: int, labels: tuple[str, ...] | None, highlight: tuple[int, ...], side_in: float
) -> None:
    axes.set_xlim(first - 0.5, first + tokens - 0.5)
    axes.set_ylim(first + tokens - 0.5, first - 0.5)
    axes.spines[:].set_visible(False)
    axes.patch.set_alpha(0)
    axes.tick_params(length=2.5, width=0.6, color="0.6", labelcolor="0.25", pad=2)
    if labels is None:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.tick_params(labelsize=8, labelfontfamily=FONT)
    else:
        _label_axes(axes, first, labels, highlight, max(1.0, min(8.0, side_in * 72 / max(1, tokens) * 0.8)))
    name: dict[str, Any] = {"fontsize": 8, "color": "0.42", "fontfamily": FONT}
    axes.set_xlabel("Key", **name)
    axes.set_ylabel("Query", **name)
    offset = (0.74 if labels else 0.36) / side_in  # the same for labels of any length
    axes.xaxis.set_label_coords(0.5, -offset)
    axes.yaxis.set_label_coords(-offset, 0.5)


def _label_axes(axes: Axes, first: int, labels: tuple[str, ...], highlight: tuple[int, ...], points: float) -> None:
    style: dict[str, Any] = {"fontsize": points, "parse_math": False}
    axes.set_xticks(range(first, first + len(labels)), labels, rotation=90, **style)
    axes.set_yticks(range(first, first + len(labels)), labels, **style)
    for texts in (axes.get_xticklabels(), axes.get_yticklabels()):
        for token, text in enumerate(texts):
            text.set_fontfamily(font_families(labels[token]))
            if token in highlight:
                text.set(fontweight="bold", color="0")


def _style_bar(axes: Axes, scale_max: float, name: str, cmap: str | None = None) -> None:
    if cmap is not None:
        ramp = np.linspace(1, 0, 256)[:, None]
        axes.imshow(ramp, cmap=cmap, vmin=0.0, vmax=1.0, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.tick_params(length=2.5, width=0.6, color="0.6", labelcolor="0.25", pad=2, labelsize=8, labelfontfamily=FONT)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_yticks(ticks, [f"{tick * scale_max:.3g}" for tick in ticks])
    axes.set_ylabel(name, fontsize=8, color="0.42", fontfamily=FONT)
