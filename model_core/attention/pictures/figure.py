"""Drawing with matplotlib: whole figures for SVG, PDF and notebooks, and the parts that PNGs are composed of.

It uses `Figure` and the Agg canvas, never pyplot, which keeps every figure and shares its state between threads. One
lock guards what remains of matplotlib's global state.

Shapes: T tokens, S pixels of a panel's side.
"""

from __future__ import annotations

import io
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from model_core.attention.pictures.layout import Box, Caption, Margins, Page, PictureStyle
from model_core.attention.record import dequantize

Greys = NDArray[np.uint8]
Array = NDArray[Any]

FUTURE = 29 / 31  # grey of the upper triangle; one of the 32 greys of a PNG's palette
_FONT = "DejaVu Sans"
_LABEL_LENGTH = 10  # characters
_VISIBLE = {"\n": "↵", "\t": "⇥"}
_lock = threading.RLock()


def figure(page: Page, panels: Iterable[Array], tokens: Sequence[str], style: PictureStyle) -> Figure:
    """Draw a page as a matplotlib figure.

    Args:
        page: Layout of the page.
        panels: Quantized attention of each panel, (T, T); only the lower triangle is drawn.
        tokens: Label of every token.
        style: Color map, and the most tokens to label.

    Returns:
        The figure.
    """
    canvas = Figure(figsize=(page.width / page.dpi, page.height / page.dpi), dpi=page.dpi, facecolor="white")
    FigureCanvasAgg(canvas)
    if page.margins is None:
        _draw_small_panels(canvas, page, panels, style)
    else:
        for box, levels in zip(page.panels, panels, strict=True):
            axes = _axes(canvas, box, page.width, page.height)
            _draw_panel(axes, levels, box.width, style, (-0.5, len(levels) - 0.5, len(levels) - 0.5, -0.5))
            _style_axes(axes, len(levels), axis_labels(tokens, style), box.width / page.dpi)
    for caption in page.captions:
        _draw_text(canvas, caption, page.width, page.height)
    _style_bar(_axes(canvas, page.bar, page.width, page.height), style.cmap)
    return canvas


def vector(page: Page, panels: Iterable[Array], tokens: Sequence[str], style: PictureStyle) -> bytes:
    """Draw a page as SVG or PDF; the same page gives the same bytes.

    Args:
        page: Layout of the page.
        panels: Quantized attention of each panel, (T, T); only the lower triangle is drawn.
        tokens: Label of every token.
        style: Format, color map, and the most tokens to label.

    Returns:
        The file.
    """
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}[style.format]
    with _lock, matplotlib.rc_context({"svg.hashsalt": "attention", "image.composite_image": False}):
        drawn = figure(page, panels, tokens, style)
        drawn.savefig(buffer, format=style.format, dpi=page.dpi, metadata=metadata)
    return buffer.getvalue()


@lru_cache(maxsize=8)
def empty_panel(tokens: int, labels: tuple[str, ...] | None, side: int, margins: Margins, dpi: int) -> Greys:
    """Draw a panel without its data: ticks, labels and axis names.

    Args:
        tokens: Number of tokens, T.
        labels: Label of every token; None numbers the ticks.
        side: Side of the panel in pixels, S.
        margins: Space around the panel.
        dpi: Pixels per inch.

    Returns:
        Grey levels, (top + S + bottom, left + S + right).
    """
    width, height = margins.left + side + margins.right, margins.top + side + margins.bottom
    with _lock:
        canvas = _canvas(width, height, dpi)
        axes = _axes(canvas, Box(margins.left, margins.top, side, side), width, height)
        _style_axes(axes, tokens, labels, side / dpi)
        return _greys(canvas)


@lru_cache(maxsize=8)
def empty_bar(bar: Box, frame: Box, dpi: int) -> Greys:
    """Draw the color bar without its colors.

    Args:
        bar: Gradient of the color bar.
        frame: The color bar with its ticks and name.
        dpi: Pixels per inch.

    Returns:
        Grey levels, (frame.height, frame.width).
    """
    with _lock:
        canvas = _canvas(frame.width, frame.height, dpi)
        _style_bar(
            _axes(canvas, Box(bar.x - frame.x, bar.y - frame.y, bar.width, bar.height), frame.width, frame.height)
        )
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
    with _lock:
        canvas = _canvas(start + width, 2 * rise, dpi)
        _draw_text(canvas, Caption(start, rise, text, points, bold, color), start + width, 2 * rise)
        greys = _greys(canvas)
    rows, columns = np.nonzero((greys < 255).any(axis=1))[0], np.nonzero((greys < 255).any(axis=0))[0]
    if not rows.size:
        return 0, 0, greys[:0, :0]
    cut = greys[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return int(columns[0]) - start, int(rows[0]) - rise, cut


def axis_labels(tokens: Sequence[str], style: PictureStyle) -> tuple[str, ...] | None:
    """Shorten and escape the labels of the axes.

    Args:
        tokens: Label of every token.
        style: Its `label_max_tokens` is the most tokens to label.

    Returns:
        Label of every token; None if there are too many.
    """
    return tuple(map(_label, tokens)) if len(tokens) <= style.label_max_tokens else None


def escape(text: str) -> str:
    """Escape what the font lacks and what is invisible.

    Args:
        text: Any text.

    Returns:
        Text that the font can draw.
    """
    return "".join(_VISIBLE.get(character) or _drawable(character) for character in text)


def max_pool(levels: Array, side: int) -> Array:
    """Fit a panel with more tokens than pixels: a pixel shows the largest value that falls on it.

    Args:
        levels: Quantized attention, (T, T).
        side: Side of the panel in pixels, S.

    Returns:
        Quantized attention, (min(T, S), min(T, S)).
    """
    tokens = len(levels)
    if tokens <= side:
        return levels
    starts = np.arange(side) * tokens // side  # (S,)
    last = np.append(starts[1:], tokens) - 1  # (S,) last token of each pixel
    rows = levels[starts]  # (S, T)
    for step in range(1, -(-tokens // side)):
        rows = np.maximum(rows, levels[np.minimum(starts + step, last)])  # (S, T)
    columns = rows[:, starts]  # (S, S)
    for step in range(1, -(-tokens // side)):
        columns = np.maximum(columns, rows[:, np.minimum(starts + step, last)])  # (S, S)
    return columns


def _drawable(character: str) -> str:
    if character == " " or (unicodedata.category(character)[0] not in "CZ" and ord(character) in _glyphs()):
        return character
    return character.encode("unicode_escape").decode() if ord(character) > 127 else repr(character)[1:-1]


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    with _lock:
        return frozenset(get_font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap())


def _label(token: str) -> str:
    text = escape(token.strip(" ") or "␣" * len(token))
    return text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"


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
    canvas.text(
        caption.x / width, 1 - caption.y / height, escape(caption.text), fontsize=caption.points,
        fontweight="bold" if caption.bold else "normal", color=caption.color, ha="left", va="baseline",
        fontfamily=_FONT, parse_math=False,
    )  # fmt: skip


def _draw_panel(
    axes: Axes, levels: Array, side: int, style: PictureStyle, extent: tuple[float, float, float, float]
) -> None:
    small = max_pool(levels, side)
    future = np.triu(np.ones(small.shape, dtype=bool), k=1)
    colors = matplotlib.colormaps[style.cmap].with_extremes(bad=str(FUTURE))
    axes.imshow(
        np.ma.masked_array(dequantize(small), mask=future), cmap=colors, vmin=0.0, vmax=1.0,
        interpolation="nearest", extent=extent, aspect="auto",
    )  # fmt: skip


def _draw_small_panels(canvas: Figure, page: Page, panels: Iterable[Array], style: PictureStyle) -> None:
    axes = canvas.add_axes((0, 0, 1, 1))  # one for all panels: creating axes is slow
    axes.axis("off")
    for box, levels in zip(page.panels, panels, strict=True):
        _draw_panel(axes, levels, box.width, style, (box.x, box.x + box.width, box.y + box.height, box.y))
    axes.set_xlim(0, page.width)
    axes.set_ylim(page.height, 0)


def _style_axes(axes: Axes, tokens: int, labels: tuple[str, ...] | None, side_in: float) -> None:
    axes.set_xlim(-0.5, tokens - 0.5)
    axes.set_ylim(tokens - 0.5, -0.5)
    axes.spines[:].set_visible(False)
    axes.patch.set_alpha(0)
    axes.tick_params(length=2.5, width=0.6, color="0.6", labelcolor="0.25", pad=2)
    if labels is None:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.tick_params(labelsize=8, labelfontfamily=_FONT)
    else:
        size = max(1.0, min(8.0, side_in * 72 / max(1, tokens) * 0.8))
        text: dict[str, Any] = {"fontsize": size, "fontfamily": _FONT, "parse_math": False}
        axes.set_xticks(range(tokens), labels, rotation=90, **text)
        axes.set_yticks(range(tokens), labels, **text)
    name: dict[str, Any] = {"fontsize": 8, "color": "0.42", "fontfamily": _FONT}
    axes.set_xlabel("Key", **name)
    axes.set_ylabel("Query", **name)
    offset = (0.74 if labels else 0.36) / side_in  # the same for labels of any length
    axes.xaxis.set_label_coords(0.5, -offset)
    axes.yaxis.set_label_coords(-offset, 0.5)


def _style_bar(axes: Axes, cmap: str | None = None) -> None:
    if cmap is not None:
        ramp = np.linspace(1, 0, 256)[:, None]
        axes.imshow(ramp, cmap=cmap, vmin=0.0, vmax=1.0, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.tick_params(length=2.5, width=0.6, color="0.6", labelcolor="0.25", pad=2, labelsize=8, labelfontfamily=_FONT)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_ylabel("Attention weight", fontsize=8, color="0.42", fontfamily=_FONT)
