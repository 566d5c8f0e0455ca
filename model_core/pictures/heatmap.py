"""Pictures of attention: arrays or a record in, PNG, SVG or PDF out; no torch.

A heat map a head: x is the key (what is looked at), y the query (what looks), the colour runs from 0 to 1, and
the upper triangle, the future, is masked.

Shapes: H heads of one layer, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model_core.config import TestingConfig
from model_core.errors import InvalidParameter
from model_core.pictures.figure import figure, vector
from model_core.pictures.page import Page, PictureStyle, layer_page, sheet_page
from model_core.pictures.raster import png
from model_core.records.attention import AttentionRecord, layer_name, quantized
from model_core.records.files import read_json, replacing, write_json

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


def contact_sheet(
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
        return contact_sheet(layers, heads=record.heads, style=style, notes=notes)
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
