"""Attention as PNG, SVG or PDF from arrays, without torch.

One heat map per head: x is the key, y the query, the color map covers 0 to 1 or to the largest weight, and the upper
triangle, the future, is masked. PNG files are composed without drawing a figure: labels are rendered once and pasted,
and heads go through a lookup table of 224 colors, beside 31 greys for text and one color for marked tokens. That is
tens of times faster than one matplotlib figure per layer and looks the same.

Shapes: H heads of one layer, T tokens, S pixels of a panel's side.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model_core.attention.pictures.figure import (
    FUTURE,
    empty_bar,
    empty_panel,
    figure,
    render_text,
    vector,
)
from model_core.attention.pictures.labels import axis_labels
from model_core.attention.pictures.layout import (
    Annotations,
    Box,
    Page,
    PictureStyle,
    all_layers_page,
    layer_page,
)
from model_core.attention.pictures.sheet import COLORS, GREY_PLACES, GREYS, MARK, WHITE, palette
from model_core.attention.record import quantize
from model_core.attention.weights import largest_weight, max_pool

Array = NDArray[Any]
Canvas = NDArray[np.uint8]  # places in the palette

OWN_SCALE = " (own scale)"  # in the name of a color bar
HEAD_SIDE_IN = 5.5  # of a head that is drawn alone
_DEFAULT = PictureStyle()
_FUTURE = np.uint8(COLORS + round(FUTURE * (GREYS - 1)))


def layer_picture(
    attention: Array, tokens: Sequence[str], *, layer: int, style: PictureStyle = _DEFAULT, notes: Sequence[str] = ()
) -> bytes:
    """Draw all heads of a layer in four columns.

    Args:
        attention: Attention of the layer, exact or quantized, (H, T, T).
        tokens: Label of every token.
        layer: Index of the layer, for the title.
        style: Format, color map, resolution and labels.
        notes: Notes below the title, after the number of heads.

    Returns:
        The picture's file.

    Raises:
        ValueError: The shapes do not match.
        InvalidParameter: The picture has too many pixels.
    """
    page = layer_page_of(attention, tokens, layer, style, notes).checked()
    return draw(page, _panels(attention), annotations_of(attention, tokens, style), style)


plot_layer_attention = layer_picture  # the public name of model_core


def layer_figure(
    attention: Array, tokens: Sequence[str], *, layer: int, style: PictureStyle = _DEFAULT, notes: Sequence[str] = ()
) -> Figure:
    """Draw all heads of a layer as a matplotlib figure, for a notebook.

    Args:
        attention: Attention of the layer, exact or quantized, (H, T, T).
        tokens: Label of every token.
        layer: Index of the layer, for the title.
        style: Color map, resolution and labels.
        notes: Notes below the title, after the number of heads.

    Returns:
        The figure.

    Raises:
        ValueError: The shapes do not match.
        InvalidParameter: The picture has too many pixels.
    """
    page = layer_page_of(attention, tokens, layer, style, notes).checked()
    return figure(page, _panels(attention), annotations_of(attention, tokens, style), style)


def head_picture(
    attention: Array, tokens: Sequence[str], *, layer: int, head: int, style: PictureStyle = _DEFAULT,
    notes: Sequence[str] = (),
) -> bytes:  # fmt: skip
    """Draw one head large.

    Args:
        attention: Attention of the head, exact or quantized, (T, T).
        tokens: Label of every token.
        layer: Index of the layer, for the title.
        head: Index of the head, for the title.
        style: Format, color map, resolution and labels.
        notes: Notes below the title.

    Returns:
        The picture's file.

    Raises:
        ValueError: The shapes do not match.
        InvalidParameter: The picture has too many pixels.
    """
    _check(attention[None], tokens)
    labelled = len(tokens) <= style.label_max_tokens
    page = layer_page(
        [f"Head {head}"], title=f"Layer {layer}", notes=notes, dpi=style.dpi, labelled=labelled, side_in=HEAD_SIDE_IN
    )
    return draw(page.checked(), _panels(attention[None]), annotations_of(attention[None], tokens, style), style)


def all_layers_image(
    layers: Iterable[Array], *, heads: Sequence[int], style: PictureStyle = _DEFAULT, notes: Sequence[str] = ()
) -> bytes:
    """Draw every head of every layer in small panels, one row per layer, with colors from 0 to 1.

    Args:
        layers: Attention of each layer, exact or quantized, (H, T, T) with its own H; read one at a time.
        heads: Head count of every layer.
        style: Format, color map and resolution; tokens have no labels here.
        notes: Notes below the title.

    Returns:
        The picture's file.

    Raises:
        InvalidParameter: The picture has too many pixels.
    """
    page = all_layers_page(heads, title="Every head of every layer", notes=notes, dpi=style.dpi).checked()
    panels = (panel for attention in layers for panel in _panels(attention))
    return draw(page, panels, Annotations(()), style)


def layer_page_of(
    attention: Array, tokens: Sequence[str], layer: int, style: PictureStyle, notes: Sequence[str]
) -> Page:
    """Lay out all heads of a layer.

    Args:
        attention: Attention of the layer, exact or quantized, (H, T, T).
        tokens: Label of every token.
        layer: Index of the layer, for the title.
        style: Resolution and labels.
        notes: Notes below the title, after the number of heads.

    Returns:
        The page; its size is not checked.

    Raises:
        ValueError: The shapes do not match.
    """
    _check(attention, tokens)
    count = len(attention)
    lines = [f"{count} head" if count == 1 else f"{count} heads", *notes]
    names = [f"Head {head}" for head in range(count)]
    labelled = len(tokens) <= style.label_max_tokens
    return layer_page(names, title=f"Layer {layer}", notes=lines, dpi=style.dpi, labelled=labelled)


def annotations_of(attention: Array, tokens: Sequence[str], style: PictureStyle) -> Annotations:
    """Annotate whole texts.

    Args:
        attention: Attention of what is drawn, exact or quantized, (H, T, T).
        tokens: Label of every token.
        style: How colors are scaled.

    Returns:
        Labels, and the upper end of the color map.
    """
    if style.scale == "fixed":
        return Annotations(tokens)
    return Annotations(
        tokens,
        scale_max=largest_weight(quantize(np.asarray(attention))) or 1.0,
        bar_name=f"Attention weight{OWN_SCALE}",
    )


def draw(page: Page, panels: Iterable[Array], annotations: Annotations, style: PictureStyle) -> bytes:
    """Draw a page in the format of its style.

    Args:
        page: Layout of the page.
        panels: Quantized attention of each panel, (T, T); only the lower triangle is drawn.
        annotations: Labels, marks, the range of colors, and what the file says of itself.
        style: Format, color map, and the most tokens to label.

    Returns:
        The file.
    """
    if style.format != "png":
        return vector(page, panels, annotations, style)
    return _encoded(paint(page, panels, annotations, style), style, annotations)


def paint(page: Page, panels: Iterable[NDArray[Any]], annotations: Annotations, style: PictureStyle) -> Canvas:
    """Paint a page.

    Args:
        page: Layout of the page.
        panels: Quantized attention of each panel, (T, T); only the lower triangle is drawn.
        annotations: Labels, marks and the range of colors.
        style: The most tokens to label.

    Returns:
        Places in the palette of `sheet`, (height, width).
    """
    canvas = np.full((page.height, page.width), WHITE, dtype=np.uint8)
    around, axes = page.margins, _empty_panel(page, annotations, style)
    colors = _level_colors(annotations.scale_max)
    for box, levels in zip(page.panels, panels, strict=True):
        if around is not None:
            _paste(canvas, box.x - around.left, box.y - around.top, axes)
        _paste(canvas, box.x, box.y, _panel(levels, box.width, colors))
        _mark(canvas, box, len(levels), annotations, page.dpi)
    bar = empty_bar(page.bar, page.bar_frame, page.dpi, annotations.scale_max, annotations.bar_name)
    _paste(canvas, page.bar_frame.x, page.bar_frame.y, _in_palette(bar))
    _paste(canvas, page.bar.x, page.bar.y, _ramp(page.bar))
    for caption in page.captions:
        right, below, text = render_text(caption.text, caption.points, caption.bold, caption.color, page.dpi)
        _paste(canvas, caption.x + right, caption.y + below, _in_palette(text))
    return canvas


def _check(attention: Array, tokens: Sequence[str]) -> None:
    if attention.ndim != 3 or not attention.size or attention.shape[1] != attention.shape[2]:
        raise ValueError(f"expected attention of shape (H, T, T), got {attention.shape}")
    if len(tokens) != attention.shape[1]:
        raise ValueError(f"{len(tokens)} labels for {attention.shape[1]} tokens")


def _panels(attention: Array) -> Iterable[Array]:
    return (quantize(np.asarray(one)) for one in attention)


def _empty_panel(page: Page, annotations: Annotations, style: PictureStyle) -> Canvas:
    if page.margins is None:
        return np.zeros((0, 0), dtype=np.uint8)
    tokens, labels = annotations.tokens, axis_labels(annotations.tokens, style)
    bold = () if labels is None else annotations.highlight
    side = page.panels[0].width
    return _in_palette(empty_panel(len(tokens), labels, side, page.margins, page.dpi, annotations.first, bold))


def _in_palette(greys: Canvas) -> Canvas:
    return np.take(GREY_PLACES, greys)


def _level_colors(scale_max: float) -> Canvas:
    """Color of each level, (256,)."""
    shares = np.minimum(np.square(np.arange(256) / 255) / scale_max, 1.0)
    colors: Canvas = np.rint(shares * (COLORS - 1)).astype(np.uint8)
    return colors


def _panel(levels: NDArray[Any], side: int, level_colors: Canvas) -> Canvas:
    small = max_pool(levels, side)  # (T, T), or (S, S) if T > S
    colors = np.where(_future(len(small)), _FUTURE, np.take(level_colors, small))  # as small
    if len(small) == side:
        return colors
    nearest = (2 * np.arange(side) + 1) * len(colors) // (2 * side)  # (S,) token at the center of a pixel
    return np.take(np.take(colors, nearest, axis=1), nearest, axis=0)  # (S, S)


def _mark(canvas: Canvas, box: Box, tokens: int, annotations: Annotations, dpi: int) -> None:
    """Outline the rows and columns of highlighted tokens, and mark them beside the axes."""
    line, thick = max(1, round(dpi / 100)), max(1, round(dpi * 0.025))
    for begin, end in annotations.bands:
        low, high = begin * box.width // tokens, max(end * box.width // tokens, begin * box.width // tokens + 1)
        for edge in (low, max(low, high - line)):
            canvas[box.y + edge : box.y + edge + line, box.x : box.x + box.width] = MARK
            canvas[box.y : box.y + box.height, box.x + edge : box.x + edge + line] = MARK
        canvas[box.y + low : box.y + high, max(0, box.x - thick) : box.x] = MARK
        canvas[box.y + box.height : box.y + box.height + thick, box.x + low : box.x + high] = MARK


@lru_cache(maxsize=8)
def _future(size: int) -> NDArray[np.bool_]:
    return np.triu(np.ones((size, size), dtype=bool), k=1)  # (size, size)


def _ramp(bar: Box) -> Canvas:
    steps = np.rint(np.linspace(COLORS - 1, 0, bar.height)).astype(np.uint8)  # (height,)
    return np.repeat(steps[:, None], bar.width, axis=1)  # (height, width)


def _paste(canvas: Canvas, x: int, y: int, part: Canvas) -> None:
    height, width = canvas.shape
    top, left = max(0, -y), max(0, -x)
    inside = part[top : max(0, height - y), left : max(0, width - x)]
    canvas[y + top : y + top + inside.shape[0], x + left : x + left + inside.shape[1]] = inside


def _encoded(canvas: Canvas, style: PictureStyle, annotations: Annotations) -> bytes:
    image = Image.fromarray(canvas)
    image.putpalette(palette(style.cmap))
    facts = PngInfo()
    for name, value in annotations.metadata.items():
        facts.add_itxt(name, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, dpi=(style.dpi, style.dpi), pnginfo=facts)
    return buffer.getvalue()
