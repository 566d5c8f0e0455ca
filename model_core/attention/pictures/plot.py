"""Attention as PNG, SVG or PDF, from arrays or a record, without torch.

One heat map per head: x is the key, y the query, the color map covers 0 to 1, and the upper triangle, the future, is
masked. PNG files are composed without drawing a figure: labels are rendered once and pasted, and heads go through a
lookup table of 224 colors, beside 32 greys for text. That is tens of times faster than one matplotlib figure per layer
and looks the same.

Shapes: H heads of one layer, T tokens, S pixels of a panel's side.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from model_core.attention.pictures.figure import (
    FUTURE,
    axis_labels,
    empty_bar,
    empty_panel,
    figure,
    max_pool,
    render_text,
    vector,
)
from model_core.attention.pictures.layout import Box, Page, PictureStyle, all_layers_page, layer_page
from model_core.attention.record import AttentionRecord, layer_file, quantize
from model_core.config import TestingConfig
from model_core.errors import InvalidParameter
from model_core.storage.files import atomic_write, read_json, write_json

log = logging.getLogger(__name__)

Array = NDArray[Any]
Canvas = NDArray[np.uint8]  # indices into the palette

PICTURES = "pictures.json"  # settings of the pictures in a directory
_DEFAULT = PictureStyle()
_HEAD_SIDE_IN = 5.5
_STEPS, _GREYS = 224, 32
_LEVEL_COLORS = np.rint(np.square(np.arange(256) / 255) * (_STEPS - 1)).astype(np.uint8)  # level -> palette
_GREY_COLORS = (_STEPS + np.rint(np.arange(256) / 255 * (_GREYS - 1))).astype(np.uint8)  # grey -> palette
_WHITE = int(_GREY_COLORS[255])
_FUTURE = np.uint8(_STEPS + round(FUTURE * (_GREYS - 1)))


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
    page = _layer_page(attention, tokens, layer, style, notes).checked()
    return _draw(page, _panels(attention), tokens, style)


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
    page = _layer_page(attention, tokens, layer, style, notes).checked()
    return figure(page, _panels(attention), tokens, style)


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
        [head], title=f"Layer {layer}", notes=notes, dpi=style.dpi, labelled=labelled, side_in=_HEAD_SIDE_IN
    )
    return _draw(page.checked(), _panels(attention[None]), tokens, style)


def all_layers_image(
    layers: Iterable[Array], *, heads: Sequence[int], style: PictureStyle = _DEFAULT, notes: Sequence[str] = ()
) -> bytes:
    """Draw every head of every layer in small panels, one row per layer.

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
    return _draw(page, (panel for attention in layers for panel in _panels(attention)), (), style)


def record_picture(
    record: AttentionRecord, *, layer: int | None = None, head: int | None = None, style: PictureStyle = _DEFAULT
) -> bytes:
    """Draw a record: one head, one layer, or every layer.

    Args:
        record: The captured attention.
        layer: Index of the layer; None draws every layer.
        head: Index of the head; None draws every head of the layer.
        style: Format, color map, resolution and labels.

    Returns:
        The picture's file.

    Raises:
        InvalidParameter: There is no such layer or head, a head without a layer, or too many pixels.
    """
    notes = _notes(record, len(record.tokens))
    if layer is None:
        if head is not None:
            raise InvalidParameter(f"head {head} of which layer? give layer=0 to {record.n_layer - 1}")
        layers = (record.layer(number) for number in range(record.n_layer))
        return all_layers_image(layers, heads=record.heads, style=style, notes=notes)
    if head is None:
        return layer_picture(record.layer(layer), record.tokens, layer=layer, style=style, notes=notes)
    attention = record.head(layer, head)
    return head_picture(attention, record.tokens, layer=layer, head=head, style=style, notes=notes)


def write_layer_pictures(
    record: AttentionRecord, directory: Path | None = None, *, testing: TestingConfig
) -> list[Path]:
    """Draw one file per layer, as configured; files that were drawn with the same settings are kept.

    Args:
        record: The captured attention; at most `testing.max_seq_len_viz` tokens of it are drawn.
        directory: Directory of the files; None takes the record's own.
        testing: Format, color map, resolution, labels and tokens.

    Returns:
        The files in the order of the layers, layer00.png first.
    """
    folder = directory or record.path
    shown = min(len(record.tokens), testing.max_seq_len_viz)
    style = PictureStyle.of(testing)
    _remove_stale(folder, record, style, shown)
    files = [folder / layer_file(layer, record.n_layer, style.format) for layer in range(record.n_layer)]
    for layer, file in enumerate(files):
        if not file.is_file():
            picture = _fitting_picture(record, layer, style, shown)
            with atomic_write(file) as out:
                out.write(picture)
    return files


def png(page: Page, panels: Iterable[NDArray[Any]], tokens: Sequence[str], style: PictureStyle) -> bytes:
    """Draw a page as PNG.

    Args:
        page: Layout of the page.
        panels: Quantized attention of each panel, (T, T); only the lower triangle is drawn.
        tokens: Label of every token.
        style: Color map, and the most tokens to label.

    Returns:
        The file.
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
        right, below, text = render_text(caption.text, caption.points, caption.bold, caption.color, page.dpi)
        _paste(canvas, caption.x + right, caption.y + below, _in_palette(text))
    return _encoded(canvas, style)


def _fitting_picture(record: AttentionRecord, layer: int, style: PictureStyle, shown: int) -> bytes:
    attention, tokens, notes = record.layer(layer, first=shown), record.tokens[:shown], _notes(record, shown)
    fitting = _layer_page(attention, tokens, layer, style, notes).fitting_dpi
    if fitting < style.dpi:
        log.warning("picture too large at the wanted resolution layer=%d dpi=%d used=%d", layer, style.dpi, fitting)
    return layer_picture(attention, tokens, layer=layer, style=style.with_dpi(fitting), notes=notes)


def _remove_stale(folder: Path, record: AttentionRecord, style: PictureStyle, shown: int) -> None:
    """Remove pictures of this format that were drawn with other settings, and store the present settings."""
    settings = {
        "sha256": record.manifest["sha256"], "tokens": shown, "cmap": style.cmap, "dpi": style.dpi,
        "label_max_tokens": style.label_max_tokens,
    }  # fmt: skip
    known = read_json(folder / PICTURES) if (folder / PICTURES).is_file() else {}
    if known.get(style.format) == settings:
        return
    for stale in folder.glob(f"layer*.{style.format}"):
        stale.unlink()
    write_json(folder / PICTURES, {**known, style.format: settings})


def _notes(record: AttentionRecord, shown: int) -> list[str]:
    manifest = record.manifest
    whole = manifest["truncated_from"] or len(record.tokens)
    tokens = f"{whole} tokens" if shown == whole else f"first {shown} of {whole} tokens"
    source = f"text {manifest['id']}" if manifest["id"].startswith("t_") else f"example {manifest['id']}"
    return [manifest["run"], f"{manifest['checkpoint']}, step {manifest['step']}", source, tokens]


def _layer_page(attention: Array, tokens: Sequence[str], layer: int, style: PictureStyle, notes: Sequence[str]) -> Page:
    _check(attention, tokens)
    count = len(attention)
    lines = [f"{count} head" if count == 1 else f"{count} heads", *notes]
    labelled = len(tokens) <= style.label_max_tokens
    return layer_page(range(count), title=f"Layer {layer}", notes=lines, dpi=style.dpi, labelled=labelled)


def _check(attention: Array, tokens: Sequence[str]) -> None:
    if attention.ndim != 3 or not attention.size or attention.shape[1] != attention.shape[2]:
        raise ValueError(f"expected attention of shape (H, T, T), got {attention.shape}")
    if len(tokens) != attention.shape[1]:
        raise ValueError(f"{len(tokens)} labels for {attention.shape[1]} tokens")


def _panels(attention: Array) -> Iterable[Array]:
    return (quantize(np.asarray(one)) for one in attention)


def _draw(page: Page, panels: Iterable[Array], tokens: Sequence[str], style: PictureStyle) -> bytes:
    draw = png if style.format == "png" else vector
    return draw(page, panels, tokens, style)


def _empty_panel(page: Page, tokens: Sequence[str], style: PictureStyle) -> Canvas:
    if page.margins is None:
        return np.zeros((0, 0), dtype=np.uint8)
    labels = axis_labels(tokens, style)
    return _in_palette(empty_panel(len(tokens), labels, page.panels[0].width, page.margins, page.dpi))


def _in_palette(greys: Canvas) -> Canvas:
    return np.take(_GREY_COLORS, greys)


def _panel(levels: NDArray[Any], side: int) -> Canvas:
    small = max_pool(levels, side)  # (T, T), or (S, S) if T > S
    colors = np.where(_future(len(small)), _FUTURE, np.take(_LEVEL_COLORS, small))  # as small
    if len(small) == side:
        return colors
    nearest = (2 * np.arange(side) + 1) * len(colors) // (2 * side)  # (S,) token at the center of a pixel
    return np.take(np.take(colors, nearest, axis=1), nearest, axis=0)  # (S, S)


@lru_cache(maxsize=8)
def _future(size: int) -> NDArray[np.bool_]:
    return np.triu(np.ones((size, size), dtype=bool), k=1)  # (size, size)


def _ramp(bar: Box) -> Canvas:
    steps = np.rint(np.linspace(_STEPS - 1, 0, bar.height)).astype(np.uint8)  # (height,)
    return np.repeat(steps[:, None], bar.width, axis=1)  # (height, width)


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
    colors = matplotlib.colormaps[cmap](np.linspace(0, 1, _STEPS))[:, :3]  # (224, 3)
    greys = np.repeat(np.linspace(0, 1, _GREYS)[:, None], 3, axis=1)  # (32, 3)
    rgb: Canvas = np.rint(np.concatenate([colors, greys]) * 255).astype(np.uint8)  # (256, 3)
    return rgb.tobytes()
