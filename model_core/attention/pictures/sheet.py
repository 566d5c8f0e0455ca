"""A PNG that is composed in NumPy: colored cells, texts and lines, in one palette.

224 colors of a color map, 31 greys and one color for marks make the palette. Texts are rendered once by matplotlib and
pasted, which is tens of times faster than a figure. Everything is placed in pixels from the top left corner.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model_core.attention.pictures.figure import ACCENT, render_text
from model_core.attention.pictures.layout import PictureStyle

Pixels = NDArray[np.uint8]

COLORS, GREYS = 224, 31
WHITE, FAINT, MUTED, TEXT, MARK = COLORS + 30, COLORS + 28, COLORS + 13, COLORS + 3, 255  # places in the palette
GREY_PLACES: Pixels = (COLORS + np.rint(np.arange(256) / 255 * (GREYS - 1))).astype(np.uint8)

Across = Literal["left", "center", "right"]


class Sheet:
    """A picture under construction.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        style: Color map and resolution.
    """

    def __init__(self, width: int, height: int, style: PictureStyle) -> None:
        self._style = style
        self._pixels: Pixels = np.full((height, width), WHITE, dtype=np.uint8)

    def cells(self, x: int, y: int, colors: Pixels) -> None:
        """Paste pixels.

        Args:
            x: Left edge.
            y: Upper edge.
            colors: Places in the palette, see `color_of`, (height, width). What is outside of the sheet is cut.
        """
        top, left = max(0, -y), max(0, -x)
        height, width = self._pixels.shape
        inside = colors[top : max(0, height - y), left : max(0, width - x)]
        self._pixels[y + top : y + top + inside.shape[0], x + left : x + left + inside.shape[1]] = inside

    def fill(self, x: int, y: int, width: int, height: int, color: int) -> None:
        """Fill a rectangle, or draw a horizontal or vertical line.

        Args:
            x: Left edge.
            y: Upper edge.
            width: Width, at least 1.
            height: Height, at least 1.
            color: Place in the palette.
        """
        self.cells(x, y, np.full((height, width), color, dtype=np.uint8))

    def text(
        self, x: int, y: int, text: str, *, points: float = 8.0, bold: bool = False, grey: str = "0.25",
        across: Across = "left", middle: bool = False,
    ) -> None:  # fmt: skip
        """Write a line of text.

        Args:
            x: Where the text begins, has its center or ends.
            y: Its baseline, or its vertical center.
            text: The text.
            points: Font size.
            bold: Whether it is bold.
            grey: Grey as matplotlib writes it, from ``0`` to ``1``.
            across: Which part of the text is at `x`.
            middle: Whether `y` is its vertical center.
        """
        right, below, drawn = render_text(text, points, bold, grey, self._style.dpi)
        shift = {"left": right, "center": -(drawn.shape[1] // 2), "right": -drawn.shape[1]}[across]
        self.cells(x + shift, y - drawn.shape[0] // 2 if middle else y + below, np.take(GREY_PLACES, drawn))

    def png(self, **facts: str) -> bytes:
        """Encode the picture.

        Args:
            **facts: Texts of the file's metadata.

        Returns:
            The file; equal sheets give the same bytes.
        """
        image, info, buffer = Image.fromarray(self._pixels), PngInfo(), io.BytesIO()
        for name, fact in facts.items():
            info.add_text(name, fact)
        image.putpalette(palette(self._style.cmap))
        image.save(buffer, "PNG", compress_level=1, dpi=(self._style.dpi, self._style.dpi), pnginfo=info)
        return buffer.getvalue()


def color_of(values: NDArray[Any], scale: tuple[float, float]) -> Pixels:
    """Map values to colors, whose order is that of the values.

    Args:
        values: Numbers of any shape; those outside of the scale have the color of its end, NaN is a faint grey.
        scale: Values of both ends, ascending.

    Returns:
        Places in the palette, of the same shape.
    """
    low, high = scale
    share = np.nan_to_num(np.clip((np.asarray(values, dtype=float) - low) / (high - low), 0.0, 1.0))
    return np.where(np.isnan(values), FAINT, np.rint(share * (COLORS - 1))).astype(np.uint8)


def palette(cmap: str) -> bytes:
    """List the colors of a picture.

    Args:
        cmap: Name of the color map.

    Returns:
        Red, green and blue of the 256 places.
    """
    colors = matplotlib.colormaps[cmap](np.linspace(0, 1, COLORS))[:, :3]  # (224, 3)
    greys = np.repeat(np.linspace(0, 1, GREYS)[:, None], 3, axis=1)  # (31, 3)
    rgb: Pixels = np.rint(np.concatenate([colors, greys, [to_rgb(ACCENT)]]) * 255).astype(np.uint8)  # (256, 3)
    return rgb.tobytes()
