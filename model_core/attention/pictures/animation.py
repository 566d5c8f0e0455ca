"""How attention changed with the steps of a training, as an animated PNG or GIF.

All frames have one layout, one palette and one scale of colors, so what changes is attention. Each says its step.

Shapes: H heads of a layer, T tokens.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model_core.attention.pictures.layout import Annotations, Page, PictureStyle, all_layers_page, layer_page
from model_core.attention.pictures.plot import HEAD_SIDE_IN, OWN_SCALE, paint
from model_core.attention.pictures.sheet import palette
from model_core.attention.selection import check_head, check_layer
from model_core.attention.weights import largest_weight
from model_core.errors import AttentionTooLarge, FieldProblem, InvalidParameters

Levels = NDArray[np.uint8]

MAX_PIXELS = 2**28  # of all frames, a byte each in memory


@dataclass(frozen=True)
class StepFrame:
    """Attention at one step.

    Attributes:
        step: Optimizer updates done.
        heads: Head count of every layer.
        read: Reads the quantized attention of a layer, (H, T, T) with its own H.
    """

    step: int
    heads: tuple[int, ...]
    read: Callable[[int], Levels]


@dataclass(frozen=True)
class AnimationPlot:
    """What an animation shows.

    Attributes:
        frames: The frames in the order of their steps, at least one; all of one text and one shape.
        tokens: Label of every token.
        layer: Index of the layer; None shows every layer.
        head: Index of the head; None shows every head of the layer.
        notes: Notes below the title.
        metadata: Facts that are stored in the file.
    """

    frames: Sequence[StepFrame]
    tokens: Sequence[str]
    layer: int | None = None
    head: int | None = None
    notes: Sequence[str] = ()
    metadata: Mapping[str, str] | None = None

    @property
    def heads(self) -> tuple[int, ...]:
        """Head count of every layer."""
        return self.frames[0].heads

    def checked(self) -> AnimationPlot:
        """Check layer and head.

        Returns:
            The same plot.

        Raises:
            InvalidParameters: There is no such layer or head, or a head is chosen without a layer.
        """
        if self.layer is None and self.head is not None:
            raise InvalidParameters([FieldProblem("/head", "belongs to a layer, and layer is not given", self.head)])
        if self.layer is not None:
            check_layer(self.layer, self.heads)
        if self.layer is not None and self.head is not None:
            check_head(self.head, self.layer, self.heads)
        return self


def animate(plot: AnimationPlot, style: PictureStyle, container: str, *, frame_ms: int) -> bytes:
    """Draw one frame a step.

    Args:
        plot: What to draw.
        style: Color map, resolution, labels and range of colors.
        container: ``png`` or ``gif``.
        frame_ms: Milliseconds that each frame is shown.

    Returns:
        The picture's file, which repeats without end.

    Raises:
        InvalidParameters: There is no such layer or head.
        AttentionTooLarge: The frames have more than MAX_PIXELS pixels. The error names a resolution that fits.
    """
    plot.checked()
    page = _page(plot, plot.frames[0].step, style)
    _check_pixels(page, len(plot.frames), style)
    scale_max = max(_largest(plot, frame) for frame in plot.frames) or 1.0 if style.scale == "auto" else 1.0
    annotations = Annotations(plot.tokens, scale_max=scale_max, bar_name=_bar_name(style))
    images = list(_images(plot, annotations, style))
    facts = {**(plot.metadata or {}), "scale": f"0 to {scale_max:.4g}"}
    buffer = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "duration": frame_ms, "loop": 0}
    if container == "png":
        options |= {"format": "PNG", "compress_level": 1, "pnginfo": _info(facts), "dpi": (style.dpi, style.dpi)}
    else:
        comment = "; ".join(f"{name}: {value}" for name, value in facts.items())
        options |= {"format": "GIF", "optimize": False, "comment": comment.encode()}
    images[0].save(buffer, append_images=images[1:], **options)
    return buffer.getvalue()


def _images(plot: AnimationPlot, annotations: Annotations, style: PictureStyle) -> Iterator[Image.Image]:
    colors = palette(style.cmap)
    for frame in plot.frames:
        panels = (panel for layer in _chosen(plot, frame) for panel in layer)
        image = Image.fromarray(paint(_page(plot, frame.step, style), panels, annotations, style))
        image.putpalette(colors)
        yield image


def _chosen(plot: AnimationPlot, frame: StepFrame) -> Iterator[Levels]:
    for layer in range(len(frame.heads)) if plot.layer is None else (plot.layer,):
        levels = frame.read(layer)  # (H, T, T)
        yield levels if plot.head is None else levels[plot.head][None]


def _page(plot: AnimationPlot, step: int, style: PictureStyle) -> Page:
    when = f"step {step:,}"
    if plot.layer is None:
        return all_layers_page(plot.heads, title=f"Every head, {when}", notes=plot.notes, dpi=style.dpi)
    title, labelled = f"Layer {plot.layer}, {when}", len(plot.tokens) <= style.label_max_tokens
    if plot.head is not None:
        return layer_page(
            [f"Head {plot.head}"], title=title, notes=plot.notes, dpi=style.dpi, labelled=labelled,
            side_in=HEAD_SIDE_IN,
        )  # fmt: skip
    names = [f"Head {head}" for head in range(plot.heads[plot.layer])]
    return layer_page(names, title=title, notes=plot.notes, dpi=style.dpi, labelled=labelled)


def _check_pixels(page: Page, frames: int, style: PictureStyle) -> None:
    page.checked()
    pixels = frames * page.width * page.height
    if pixels > MAX_PIXELS:
        fits = int(style.dpi * math.sqrt(MAX_PIXELS / pixels))
        detail = f"{frames} frames have {pixels:,} pixels, and {MAX_PIXELS:,} is the most: dpi={fits} fits"
        raise AttentionTooLarge(detail, [FieldProblem("/dpi", detail, style.dpi, (fits,))])


def _largest(plot: AnimationPlot, frame: StepFrame) -> float:
    return max(largest_weight(levels) for levels in _chosen(plot, frame))


def _bar_name(style: PictureStyle) -> str:
    return f"Attention weight{OWN_SCALE}" if style.scale == "auto" else "Attention weight"


def _info(facts: Mapping[str, str]) -> PngInfo:
    info = PngInfo()
    for name, value in facts.items():
        info.add_itxt(name, value)
    return info
