"""PNG without matplotlib's drawing: parts drawn once are pasted, heads go through a lookup table.

The picture has one byte a pixel: 224 steps of the colour map and 32 greys for everything written. Compared with
drawing a figure for every layer this is tens of times faster, and to the eye the same.

Shapes: T tokens, S pixels of a panel's side.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_core.pictures.figure import FUTURE, empty_bar, empty_panel, ink, shrunk, token_labels
from model_core.pictures.page import Box, Page, PictureStyle

Canvas = NDArray[np.uint8]

_STEPS, _GREYS = 224, 32
_OF_LEVEL = np.rint(np.square(np.arange(256) / 255) * (_STEPS - 1)).astype(np.uint8)  # weight's root -> palette
_OF_GREY = (_STEPS + np.rint(np.arange(256) / 255 * (_GREYS - 1))).astype(np.uint8)  # grey -> palette
_WHITE = int(_OF_GREY[255])
_FUTURE = np.uint8(_STEPS + round(FUTURE * (_GREYS - 1)))


def png(page: Page, panels: Iterable[NDArray[Any]], tokens: Sequence[str], style: PictureStyle) -> bytes:
    """Draw a page.

    Args:
        page: Where everything lies.
        panels: uint8 of the square root of the weights, (T, T), one a panel, lower triangle.
        tokens: One label a token.
        style: Colours, and whether labels are written.
    """
    canvas = np.full((page.height, page.width), _WHITE, dtype=np.uint8)
    around, axes = page.margins, _empty_panel(page, tokens, style)
    for box, levels in zip(page.panels, panels, strict=True):
        if around is not None:
            _paste(canvas, box.x - around.left, box.y - around.top, axes)
        _paste(canvas, box.x, box.y, _panel(levels, box.width))
    _paste(canvas, page.bar_frame.x, page.bar_frame.y, _in_palette(empty_bar(page.bar, page.bar_frame, page.dpi)))
    _paste(canvas, page.bar.x, page.bar.y, _ramp(page.bar))
    for caption in page.captions:
        right, below, text = ink(caption.text, caption.points, caption.bold, caption.color, page.dpi)
        _paste(canvas, caption.x + right, caption.y + below, _in_palette(text))
    return _encoded(canvas, style)


def _empty_panel(page: Page, tokens: Sequence[str], style: PictureStyle) -> Canvas:
    if page.margins is None:
        return np.zeros((0, 0), dtype=np.uint8)
    labels = token_labels(tokens, style)
    return _in_palette(empty_panel(len(tokens), labels, page.panels[0].width, page.margins, page.dpi))


def _in_palette(greys: Canvas) -> Canvas:
    return np.take(_OF_GREY, greys)


def _panel(levels: NDArray[Any], side: int) -> Canvas:
    small = shrunk(levels, side)  # (T, T), or (S, S) if T > S
    colors = np.where(_future(len(small)), _FUTURE, np.take(_OF_LEVEL, small))
    if len(small) == side:
        return colors
    nearest = (2 * np.arange(side) + 1) * len(colors) // (2 * side)  # (S,) the token under a pixel's centre
    return np.take(np.take(colors, nearest, axis=1), nearest, axis=0)  # (S, S)


@lru_cache(maxsize=8)
def _future(size: int) -> NDArray[np.bool_]:
    return np.triu(np.ones((size, size), dtype=bool), k=1)


def _ramp(bar: Box) -> Canvas:
    steps = np.rint(np.linspace(_STEPS - 1, 0, bar.height)).astype(np.uint8)
    return np.repeat(steps[:, None], bar.width, axis=1)


def _paste(canvas: Canvas, x: int, y: int, part: Canvas) -> None:
    height, width = canvas.shape
    top, left = max(0, -y), max(0, -x)
    inside = part[top : max(0, height - y), left : max(0, width - x)]
    canvas[y + top : y + top + inside.shape[0], x + left : x + left + inside.shape[1]] = inside


def _encoded(canvas: Canvas, style: PictureStyle) -> bytes:
    image = Image.fromarray(canvas)
    image.putpalette(_palette(style.cmap))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, dpi=(style.dpi, style.dpi))
    return buffer.getvalue()


def _palette(cmap: str) -> bytes:
    colors = matplotlib.colormaps[cmap](np.linspace(0, 1, _STEPS))[:, :3]
    greys = np.repeat(np.linspace(0, 1, _GREYS)[:, None], 3, axis=1)
    rgb: Canvas = np.rint(np.concatenate([colors, greys]) * 255).astype(np.uint8)  # (256, 3)
    return rgb.tobytes()
