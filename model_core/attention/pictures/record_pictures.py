"""Pictures of a record: one head, one layer, every layer, or heads in the order of a number.

A picture may show a range of tokens, mark some, and scale its colors to what it shows. All come from the stored levels.

Shapes: H heads of one layer, T tokens, R tokens of a range.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_core.attention.pictures.layout import (
    Annotations,
    Page,
    PictureStyle,
    all_layers_page,
    layer_page,
)
from model_core.attention.pictures.plot import AUTO_NAME, HEAD_SIDE_IN, draw, layer_page_of
from model_core.attention.record import AttentionRecord, layer_file
from model_core.attention.selection import TokenRange, check_head, check_layer, parse_highlight
from model_core.attention.statistics import share_before
from model_core.attention.weights import largest_weight
from model_core.config import TestingConfig
from model_core.errors import FieldProblem, InvalidParameters
from model_core.storage.files import atomic_write, read_json, write_json

log = logging.getLogger(__name__)

Levels = NDArray[np.uint8]

PICTURES = "pictures.json"  # settings of the pictures in a directory
_DEFAULT = PictureStyle()


@dataclass(frozen=True)
class PictureContent:
    """What of a record a picture shows.

    Attributes:
        layer: Index of the layer; None shows every layer.
        head: Index of the head; None shows every head of the layer.
        max_tokens: Most tokens, from the beginning of the text; None takes all.
        tokens: Range of tokens, as `TokenRange.parse` reads it; None takes all of them.
        highlight: Tokens to mark, as `parse_highlight` reads them.
    """

    layer: int | None = None
    head: int | None = None
    max_tokens: int | None = None
    tokens: str | None = None
    highlight: str | None = None


_EVERYTHING = PictureContent()


def record_picture(
    record: AttentionRecord, content: PictureContent = _EVERYTHING, style: PictureStyle = _DEFAULT
) -> bytes:
    """Draw a record.

    Args:
        record: The captured attention.
        content: Layers, heads and tokens.
        style: Format, color map, resolution, labels and range of colors.

    Returns:
        The picture's file.

    Raises:
        InvalidParameters: There is no such layer, head or token, a head without a layer, or too many pixels.
    """
    shown = _Shown.of(record, content)
    page = shown.page(style).checked()
    return draw(page, shown.panels(), shown.annotations(style), style)


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


@dataclass(frozen=True)
class _Shown:
    """The chosen part of a record.

    Attributes:
        record: The record.
        heads: Indices of heads by layer.
        tokens: The range of tokens.
        highlight: Places of marked tokens in the text.
        length: Tokens of the text of which the range is a part.
        layer: The layer, if only one is shown.
        head: The head, if only one is shown.
    """

    record: AttentionRecord
    heads: dict[int, list[int]]
    tokens: TokenRange
    highlight: tuple[int, ...]
    length: int
    layer: int | None
    head: int | None

    @classmethod
    def of(cls, record: AttentionRecord, content: PictureContent) -> _Shown:
        layer, head, counts = content.layer, content.head, record.heads
        if layer is None and head is not None:
            detail = f"belongs to a layer, and layer is not given; it is 0 to {record.n_layer - 1}"
            raise InvalidParameters([FieldProblem("/head", detail, head)])
        length = len(record.tokens) if content.max_tokens is None else min(len(record.tokens), content.max_tokens)
        tokens = TokenRange.parse(content.tokens, length)
        highlight = parse_highlight(content.highlight, tokens)
        if layer is None:
            heads = {number: list(range(count)) for number, count in enumerate(counts)}
        else:
            chosen = range(counts[check_layer(layer, counts)]) if head is None else [check_head(head, layer, counts)]
            heads = {layer: list(chosen)}
        return cls(record, heads, tokens, highlight, length, layer, head)

    def levels(self, layer: int) -> Levels:
        """Levels of the chosen heads of a layer up to the end of the range, (H, stop, stop)."""
        if self.head is not None:
            return self.record.head(layer, self.head, first=self.tokens.stop)[None]
        return self.record.layer(layer, first=self.tokens.stop)

    def panels(self) -> Iterator[Levels]:
        """Levels of each chosen head, (R, R)."""
        start = self.tokens.start
        for layer in self.heads:
            yield from self.levels(layer)[:, start:, start:]

    def page(self, style: PictureStyle) -> Page:
        notes = self._notes()
        if self.layer is None:
            return all_layers_page(self.record.heads, title="Every head of every layer", notes=notes, dpi=style.dpi)
        names = [f"Head {head}" for head in self.heads[self.layer]]
        if self.tokens.start:
            before = share_before(self.levels(self.layer), self.tokens.start, self.tokens.stop)
            names = [f"{name} · {share:.0%} before" for name, share in zip(names, before, strict=True)]
        labelled = len(self.tokens) <= style.label_max_tokens
        title = f"Layer {self.layer}"
        if self.head is not None:
            return layer_page(names, title=title, notes=notes, dpi=style.dpi, labelled=labelled, side_in=HEAD_SIDE_IN)
        count = len(names)
        notes = [f"{count} head" if count == 1 else f"{count} heads", *notes]
        return layer_page(names, title=title, notes=notes, dpi=style.dpi, labelled=labelled)

    def annotations(self, style: PictureStyle) -> Annotations:
        start, stop = self.tokens.start, self.tokens.stop
        scale_max, name = 1.0, "Attention weight"
        if style.scale == "auto":
            scale_max = max(largest_weight(panel, first=start) for panel in self.panels()) or 1.0
            name = AUTO_NAME
        manifest = self.record.manifest
        metadata = {
            **{key: str(manifest[key]) for key in ("run", "checkpoint", "step", "sha256", "id")},
            "tokens": str(self.tokens),
            "scale": f"0 to {scale_max:.4g}",
        }
        marked = tuple(token - start for token in self.highlight)
        return Annotations(self.record.tokens[start:stop], start, marked, scale_max, name, metadata)

    def _notes(self) -> list[str]:
        notes = _notes(self.record, self.length)
        if not self.tokens.start and self.tokens.stop == self.length:
            return notes
        part = f"tokens {self.tokens.start} to {self.tokens.stop - 1}"
        if not self.tokens.start:
            return [*notes, part]
        start, stop = self.tokens.start, self.tokens.stop
        shares = [share for layer in self.heads for share in share_before(self.levels(layer), start, stop)]
        return [*notes, part, f"{sum(shares) / len(shares):.0%} of their weight is on tokens before"]


def _fitting_picture(record: AttentionRecord, layer: int, style: PictureStyle, shown: int) -> bytes:
    attention, tokens, notes = record.layer(layer, first=shown), record.tokens[:shown], _notes(record, shown)
    fitting = layer_page_of(attention, tokens, layer, style, notes).fitting_dpi
    if fitting < style.dpi:
        log.warning("picture too large at the wanted resolution layer=%d dpi=%d used=%d", layer, style.dpi, fitting)
    return record_picture(record, PictureContent(layer=layer, max_tokens=shown), style.with_dpi(fitting))


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
