"""Pictures of a record: one head, one layer, every layer, or heads in the order of a number.

A picture may show a range of tokens, mark some, scale its colors to what it shows, and order heads by a statistic.

Shapes: H heads of one layer, T tokens, R tokens of a range.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_core.attention.head_metrics import FORMULAS
from model_core.attention.pictures.layout import (
    Annotations,
    Page,
    PictureStyle,
    all_layers_page,
    layer_page,
    ranked_page,
)
from model_core.attention.pictures.plot import HEAD_SIDE_IN, OWN_SCALE, draw, layer_page_of
from model_core.attention.record import AttentionRecord, layer_file
from model_core.attention.selection import TokenRange, chosen_heads, parse_highlight
from model_core.attention.statistics import range_statistics, share_before
from model_core.attention.weights import largest_weight, norm_weighted
from model_core.config import TestingConfig
from model_core.errors import FieldProblem, InvalidParameters
from model_core.storage.files import atomic_write, read_json, write_json

log = logging.getLogger(__name__)

Levels = NDArray[np.uint8]

PICTURES = "pictures.json"  # settings of the pictures in a directory
_DEFAULT = PictureStyle()
_BAR_NAMES = {"attention": "Attention weight", "norm": "Attention weight x norm"}


@dataclass(frozen=True)
class PictureContent:
    """What of a record a picture shows.

    Attributes:
        layer: Index of the layer; None shows every layer.
        head: Index of the head; None shows every head of the layer.
        max_tokens: Most tokens, from the beginning of the text; None takes all.
        tokens: Range of tokens, as `TokenRange.parse` reads it; None takes all of them.
        highlight: Tokens to mark, as `parse_highlight` reads them.
        sort: Metric of `statistics.FORMULAS` in whose order heads are drawn, each with its value; None keeps the order
            of the model.
        is_ascending: Whether the smallest value of `sort` comes first.
        top: Most heads to draw in this order; None draws all.
        weighting: ``attention``; or ``norm``, attention times the norm of what each key contributes, rows scaled to 1
            (Kobayashi et al., 2020).
    """

    layer: int | None = None
    head: int | None = None
    max_tokens: int | None = None
    tokens: str | None = None
    highlight: str | None = None
    sort: str | None = None
    is_ascending: bool = False
    top: int | None = None
    weighting: str = "attention"


_SHARED_SCALE = " (shared scale)"  # in the name of a color bar
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
class _Panel:
    """One head of a picture, and its value of the metric that orders them."""

    layer: int
    head: int
    value: float | None = None


@dataclass(frozen=True)
class _Shown:
    """The chosen part of a record.

    Attributes:
        record: The record.
        content: What was chosen.
        heads: Heads in the order in which they are drawn.
        tokens: The range of tokens.
        highlight: Places of marked tokens in the text.
        length: Tokens of the text of which the range is a part.
    """

    record: AttentionRecord
    content: PictureContent
    heads: list[_Panel]
    tokens: TokenRange
    highlight: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, record: AttentionRecord, content: PictureContent) -> _Shown:
        layer, head = content.layer, content.head
        if layer is None and head is not None:
            detail = f"belongs to a layer, and layer is not given; it is 0 to {record.n_layer - 1}"
            raise InvalidParameters([FieldProblem("/head", detail, head)])
        if content.sort is None and content.top is not None:
            raise InvalidParameters([FieldProblem("/top", "needs sort, the metric of the first heads", content.top)])
        length = len(record.tokens) if content.max_tokens is None else min(len(record.tokens), content.max_tokens)
        tokens = TokenRange.parse(content.tokens, length)
        chosen = chosen_heads(record.heads, None if layer is None else [layer], None if head is None else [head])
        heads = [_Panel(number, one) for number, ones in chosen.items() for one in ones]
        if content.sort is not None:
            heads = _ordered(record, heads, tokens, content.sort, is_ascending=content.is_ascending)[: content.top]
        return cls(record, content, heads, tokens, parse_highlight(content.highlight, tokens), length)

    def panels(self) -> Iterator[Levels]:
        """Levels of each head, (R, R)."""
        start = self.tokens.start
        for levels in self._levels():
            yield levels[start:, start:]

    def page(self, style: PictureStyle) -> Page:
        notes, layer = self._notes(), self.content.layer
        if layer is None and self.content.sort is None:
            return all_layers_page(self.record.heads, title="Every head of every layer", notes=notes, dpi=style.dpi)
        if layer is None:
            names = [f"{one.layer}.{one.head} · {_value(one.value)}" for one in self.heads]
            return ranked_page(names, title=f"Heads by {self.content.sort}", notes=notes, dpi=style.dpi)
        labelled, title = len(self.tokens) <= style.label_max_tokens, f"Layer {layer}"
        if self.content.head is not None:
            side_in = HEAD_SIDE_IN
            return layer_page(
                self._names(), title=title, notes=notes, dpi=style.dpi, labelled=labelled, side_in=side_in
            )
        count = len(self.heads)
        notes = [f"{count} head" if count == 1 else f"{count} heads", *notes]
        return layer_page(self._names(), title=title, notes=notes, dpi=style.dpi, labelled=labelled)

    def annotations(self, style: PictureStyle) -> Annotations:
        start, stop = self.tokens.start, self.tokens.stop
        scale_max, name = 1.0, _BAR_NAMES[self.content.weighting]
        if style.scale_max is not None:
            scale_max, name = style.scale_max, name + _SHARED_SCALE
        elif style.scale == "auto":
            scale_max = max(largest_weight(panel, first=start) for panel in self.panels()) or 1.0
            name += OWN_SCALE
        manifest = self.record.manifest
        metadata = {
            **{key: str(manifest[key]) for key in ("run", "checkpoint", "step", "sha256", "id")},
            "tokens": str(self.tokens),
            "scale": f"0 to {scale_max:.4g}",
            "weighting": self.content.weighting,
        }
        marked = tuple(token - start for token in self.highlight)
        return Annotations(self.record.tokens[start:stop], start, marked, scale_max, name, metadata)

    def _levels(self) -> Iterator[Levels]:
        """Levels of each head up to the end of the range, (stop, stop); a layer that is drawn whole is read once."""
        last, layer_levels = -1, np.empty(0, dtype=np.uint8)
        is_by_head = self.content.head is not None or self.content.sort is not None
        for one in self.heads:
            if is_by_head:
                levels = self.record.head(one.layer, one.head, first=self.tokens.stop)
            else:
                if one.layer != last:
                    last, layer_levels = one.layer, self.record.layer(one.layer, first=self.tokens.stop)  # (H, T, T)
                levels = layer_levels[one.head]
            yield levels if self.content.weighting == "attention" else self._weighted(one, levels)

    def _weighted(self, one: _Panel, levels: Levels) -> Levels:
        norms = self.record.norms(one.layer)  # (H, T)
        if norms is None:
            detail = "this record has no norms, because an earlier version captured it; delete it to capture it again"
            raise InvalidParameters([FieldProblem("/weighting", detail, self.content.weighting, ("attention",))])
        weighted: Levels = norm_weighted(levels[None], norms[one.head : one.head + 1, : len(levels)])[0]
        return weighted

    def _names(self) -> list[str]:
        names = [f"Head {one.head}" for one in self.heads]
        if self.content.sort is not None:
            values = (_value(one.value) for one in self.heads)
            names = [f"{name} · {self.content.sort} {value}" for name, value in zip(names, values, strict=True)]
        if self.tokens.start:
            names = [f"{name} · {share:.0%} before" for name, share in zip(names, self._before(), strict=True)]
        return names

    def _before(self) -> list[float]:
        start, stop = self.tokens.start, self.tokens.stop
        return [share_before(levels[None], start, stop)[0] for levels in self._levels()]

    def _notes(self) -> list[str]:
        notes = _notes(self.record, self.length)
        if not self.tokens.start and self.tokens.stop == self.length:
            return notes
        part = f"tokens {self.tokens.start} to {self.tokens.stop - 1}"
        if not self.tokens.start:
            return [*notes, part]
        shares = self._before()
        return [*notes, part, f"{sum(shares) / len(shares):.0%} of their weight is on tokens before"]


def _ordered(
    record: AttentionRecord, heads: list[_Panel], tokens: TokenRange, metric: str, *, is_ascending: bool
) -> list[_Panel]:
    """Heads in the order of a metric, with its values; those without one come last."""
    if metric not in FORMULAS:
        near = get_close_matches(metric, FORMULAS, n=1, cutoff=0.0)
        raise InvalidParameters([FieldProblem("/sort", "is no metric of a head", metric, tuple(near))])
    measured = {layer: _measured(record, layer, tokens, metric) for layer in {one.layer for one in heads}}
    valued = [replace(one, value=measured[one.layer][one.head]) for one in heads]
    sign = 1 if is_ascending else -1
    return sorted(valued, key=lambda one: (one.value is None, sign * (one.value or 0.0)))


def _measured(record: AttentionRecord, layer: int, tokens: TokenRange, metric: str) -> list[float | None]:
    if len(tokens) == len(record.tokens):
        return [head[metric] for head in record.statistics()["layers"][layer]["heads"]]
    levels, norms, outputs = record.layer(layer, first=tokens.stop), record.norms(layer), record.output_norms(layer)
    measured = range_statistics(levels, tokens.start, tokens.stop, value_norms=norms, output_norms=outputs)
    return [getattr(one, metric) for one in measured]


def _value(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


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
