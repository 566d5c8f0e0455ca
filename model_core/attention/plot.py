"""Attention as PNG, SVG or PDF: arrays or a record in, bytes out, without torch.

One heat map per head: x is the key, y the query, the color runs from 0 to 1, and the upper triangle, the future, is
masked. PNG files are composed without drawing a figure: labels are rendered once and pasted, and heads go through a
lookup table of 224 steps of the color map and 32 greys for text. That is tens of times faster than one matplotlib
figure per layer and looks the same.

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

from model_core.attention.figure import (
    FUTURE,
    empty_bar,
    empty_panel,
    figure,
    render_text,
    shrunk,
    token_labels,
    vector,
)
from model_core.attention.layout import Box, Page, PictureStyle, layer_page, sheet_page
from model_core.attention.record import AttentionRecord, layer_name, quantized
from model_core.config import TestingConfig
from model_core.errors import InvalidParameter
from model_core.storage.files import read_json, replacing, write_json

log = logging.getLogger(__name__)

Array = NDArray[Any]

PICTURES = "pictures.json"  # the settings that the pictures of a directory were drawn with
_DEFAULT = PictureStyle()
_HEAD_SIDE_IN = 5.5


def layer_picture(
    weights: Array, tokens: Sequence[str], *, layer: int, style: PictureStyle = _DEFAULT, notes: Sequence[str] = ()
) -> bytes:
    """Draw all heads of a layer in four columns.

    Args:
        weights: (H, T, T), weights or their stored form.
        tokens: One label a token.
        layer: Its number, for the title.
        style: Format, colours, resolution, labels.
        notes: What the line below the title says, besides the number of heads.
    """
    page = _layer_page(weights, tokens, layer, style, notes).checked()
    return _drawn(page, _panels(weights), tokens, style)


plot_layer_attention = layer_picture  # the name that the first version of this program used


def layer_figure(
    weights: Array, tokens: Sequence[str], *, layer: int, style: PictureStyle = _DEFAULT, notes: Sequence[str] = ()
) -> Figure:
    """The same as a matplotlib figure, for a notebook that wants to add to it."""
    page = _layer_page(weights, tokens, layer, style, notes).checked()
    return figure(page, _panels(weights), tokens, style)


def head_picture(
    weights: Array, tokens: Sequence[str], *, layer: int, head: int, style: PictureStyle = _DEFAULT,
    notes: Sequence[str] = (),
) -> bytes:  # fmt: skip
    """Draw one head large.

    Args:
        weights: (T, T), weights or their stored form.
        tokens: One label a token.
        layer: For the title.
        head: For the title.
        style: Format, colours, resolution, labels.
        notes: What the line below the title says.
    """
    _check(weights[None], tokens)
    labelled = len(tokens) <= style.label_max_tokens
    page = layer_page(
        [head], title=f"Layer {layer}", notes=notes, dpi=style.dpi, labelled=labelled, side_in=_HEAD_SIDE_IN
    )
    return _drawn(page.checked(), _panels(weights[None]), tokens, style)


def all_layers_image(
    layers: Iterable[Array], *, heads: Sequence[int], style: PictureStyle = _DEFAULT, notes: Sequence[str] = ()
) -> bytes:
    """Draw every head of every layer small: a row a layer.

    Args:
        layers: One (H, T, T) a layer, weights or their stored form; read one at a time.
        heads: Head count of every layer.
        style: Format, colours and resolution; tokens are never written here.
        notes: What the lines below the title say.
    """
    page = sheet_page(heads, title="Every head of every layer", notes=notes, dpi=style.dpi).checked()
    return _drawn(page, (panel for weights in layers for panel in _panels(weights)), (), style)


def record_picture(
    record: AttentionRecord, *, layer: int | None = None, head: int | None = None, style: PictureStyle = _DEFAULT
) -> bytes:
    """Draw what was captured: one head, one layer, or without either every layer.

    Raises:
        InvalidParameter: No such layer or head, or a head without a layer.
    """
    notes = _notes(record, len(record.tokens))
    if layer is None:
        if head is not None:
            raise InvalidParameter(f"head {head} of which layer? give layer=0 to {record.n_layer - 1}")
        layers = (record.layer(number) for number in range(record.n_layer))
        return all_layers_image(layers, heads=record.heads, style=style, notes=notes)
    if head is None:
        return layer_picture(record.layer(layer), record.tokens, layer=layer, style=style, notes=notes)
    weights = record.head(layer, head)
    return head_picture(weights, record.tokens, layer=layer, head=head, style=style, notes=notes)


def write_layer_pictures(
    record: AttentionRecord, directory: Path | None = None, *, testing: TestingConfig
) -> list[Path]:
    """Draw one file a layer, as a configuration asks for; files already drawn so are left alone.

    Args:
        record: What was captured. No more than `testing.max_seq_len_viz` tokens of it are drawn, and the picture
            says how many there are.
        directory: Where the files go; None: into the record's own directory.
        testing: Format, colours, resolution, labels, tokens.

    Returns:
        The files in the order of the layers, layer00.png first.
    """
    place = directory or record.path
    shown = min(len(record.tokens), testing.max_seq_len_viz)
    style = PictureStyle.of(testing)
    _forget_others(place, record, style, shown)
    files = [place / layer_name(layer, record.n_layer, style.format) for layer in range(record.n_layer)]
    for layer, file in enumerate(files):
        if not file.is_file():
            picture = _fitting_picture(record, layer, style, shown)
            with replacing(file) as out:
                out.write(picture)
    return files


def _fitting_picture(record: AttentionRecord, layer: int, style: PictureStyle, shown: int) -> bytes:
    weights, tokens, notes = record.layer(layer, first=shown), record.tokens[:shown], _notes(record, shown)
    fitting = _layer_page(weights, tokens, layer, style, notes).fitting_dpi
    if fitting < style.dpi:
        log.warning("picture too large at the wanted resolution layer=%d dpi=%d used=%d", layer, style.dpi, fitting)
    return layer_picture(weights, tokens, layer=layer, style=style.with_dpi(fitting), notes=notes)


def _forget_others(place: Path, record: AttentionRecord, style: PictureStyle, shown: int) -> None:
    """Remove pictures of this format that were drawn with other settings, then note the present ones."""
    settings = {
        "sha256": record.manifest["sha256"], "tokens": shown, "cmap": style.cmap, "dpi": style.dpi,
        "label_max_tokens": style.label_max_tokens,
    }  # fmt: skip
    known = read_json(place / PICTURES) if (place / PICTURES).is_file() else {}
    if known.get(style.format) == settings:
        return
    for stale in place.glob(f"layer*.{style.format}"):
        stale.unlink()
    write_json(place / PICTURES, {**known, style.format: settings})


def _notes(record: AttentionRecord, shown: int) -> list[str]:
    facts = record.manifest
    whole = facts["truncated_from"] or len(record.tokens)
    tokens = f"{whole} tokens" if shown == whole else f"first {shown} of {whole} tokens"
    what = f"text {facts['id']}" if facts["id"].startswith("t_") else f"example {facts['id']}"
    return [facts["run"], f"{facts['checkpoint']}, step {facts['step']}", what, tokens]


def _layer_page(weights: Array, tokens: Sequence[str], layer: int, style: PictureStyle, notes: Sequence[str]) -> Page:
    _check(weights, tokens)
    count = len(weights)
    lines = [f"{count} head" if count == 1 else f"{count} heads", *notes]
    labelled = len(tokens) <= style.label_max_tokens
    return layer_page(range(count), title=f"Layer {layer}", notes=lines, dpi=style.dpi, labelled=labelled)


def _check(weights: Array, tokens: Sequence[str]) -> None:
    if weights.ndim != 3 or not weights.size or weights.shape[1] != weights.shape[2]:
        raise ValueError(f"expected weights of shape (H, T, T), got {weights.shape}")
    if len(tokens) != weights.shape[1]:
        raise ValueError(f"{len(tokens)} labels for {weights.shape[1]} tokens")


def _panels(weights: Array) -> Iterable[Array]:
    return (quantized(np.asarray(one)) for one in weights)


def _drawn(page: Page, panels: Iterable[Array], tokens: Sequence[str], style: PictureStyle) -> bytes:
    draw = png if style.format == "png" else vector
    return draw(page, panels, tokens, style)


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
        right, below, text = render_text(caption.text, caption.points, caption.bold, caption.color, page.dpi)
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
