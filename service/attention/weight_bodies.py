"""Attention weights as clients read them: levels in JSON or as bytes, and the strongest keys of each query."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.attention.exact import ExactWeights, npz_pieces
from model_core.attention.record import AttentionRecord
from model_core.attention.selection import TokenRange, chosen_heads, parse_numbers
from model_core.attention.statistics import range_statistics, share_before
from model_core.attention.weights import SPARSE_UNIT, U8_ENCODING, pack_triangles, sparse_rows
from service.attention.replies import identity_of

Levels = NDArray[np.uint8]


@dataclass(frozen=True)
class Selection:
    """A part of a record.

    Attributes:
        record: The record.
        heads: Indices of the chosen heads by layer.
        tokens: The chosen tokens.
    """

    record: AttentionRecord
    heads: Mapping[int, tuple[int, ...]]
    tokens: TokenRange

    @classmethod
    def of(cls, record: AttentionRecord, layer: str | None, head: str | None, tokens: str | None) -> Selection:
        """Choose a part.

        Args:
            record: The record.
            layer: Indices of layers, separated by commas; None takes all.
            head: Indices of heads, which each chosen layer must have; None takes all.
            tokens: Range of tokens ``a:b``; None takes all.

        Returns:
            The part.

        Raises:
            InvalidParameters: There is no such part.
        """
        heads = chosen_heads(record.heads, parse_numbers("layer", layer), parse_numbers("head", head))
        return cls(record, heads, TokenRange.parse(tokens, len(record.tokens)))

    def levels(self, layer: int) -> Levels:
        """Read the chosen heads of a layer.

        Args:
            layer: Index of the layer.

        Returns:
            Their levels from the beginning of the text to the end of the range, (H, stop, stop).
        """
        heads, stop = self.heads[layer], self.tokens.stop
        if len(heads) == 1:
            return self.record.head(layer, heads[0], first=stop)[None]
        levels = self.record.layer(layer, first=stop)  # (H, stop, stop)
        return levels if len(heads) == len(levels) else levels[list(heads)]

    def header(self) -> dict[str, Any]:
        """Describe the part.

        Returns:
            The record's identity, text, tokens and the place of the first one.
        """
        manifest, span = self.record.manifest, self.tokens
        return {
            **identity_of(self.record),
            "text": manifest["text"],
            "tokens": self.record.tokens[span.start : span.stop],
            "first": span.start,
            "truncated_from": manifest["truncated_from"],
        }

    def shape(self, layer: int) -> dict[str, Any]:
        """Describe a layer of the part.

        Args:
            layer: Index of the layer.

        Returns:
            ``{layer, n_head, head_dim, heads}``; `heads` are the indices of the chosen ones.
        """
        stored = self.record.manifest["layers"][layer]
        return {
            "layer": layer,
            "n_head": stored["n_head"],
            "head_dim": stored["head_dim"],
            "heads": list(self.heads[layer]),
        }


def u8_bytes(part: Selection, pool: int | None) -> Iterator[bytes]:
    """Write levels, layer after layer.

    Args:
        part: The chosen part.
        pool: Most blocks of a side; None keeps every token.

    Yields:
        The lower triangles of the chosen heads of a layer.
    """
    start = part.tokens.start
    for layer in part.heads:
        yield pack_triangles(part.levels(layer)[:, start:, start:], pool=pool)


def u8_json(part: Selection, pool: int | None) -> Iterator[bytes]:
    """Write levels in base64, with the statistics of their heads.

    Args:
        part: The chosen part.
        pool: Most blocks of a side; None keeps every token.

    Yields:
        Pieces of JSON.
    """
    size = len(part.tokens) if pool is None else min(pool, len(part.tokens))
    head = {"object": "attention_weights", **part.header(), "pool": pool, "size": size, "encoding": U8_ENCODING}
    start, stop = part.tokens.start, part.tokens.stop

    def layers() -> Iterator[dict[str, Any]]:
        for layer in part.heads:
            levels = part.levels(layer)  # (H, stop, stop)
            before = {"before": share_before(levels, start, stop)} if start else {}
            packed = pack_triangles(levels[:, start:, start:], pool=pool)
            yield {**part.shape(layer), **before, "weights": base64.b64encode(packed).decode()}

    return _written(head, layers(), {"statistics": list(statistics_of(part))})


def sparse_json(part: Selection) -> Iterator[bytes]:
    """Write the strongest keys of each query.

    Args:
        part: The chosen part.

    Yields:
        Pieces of JSON.
    """
    head = {"object": "attention_sparse", **part.header(), "unit": SPARSE_UNIT}

    def layers() -> Iterator[dict[str, Any]]:
        for layer in part.heads:
            rows = sparse_rows(part.levels(layer), part.tokens.start)
            numbered = zip(part.heads[layer], rows, strict=True)
            yield {**part.shape(layer), "heads": [{"head": head, **row.to_json()} for head, row in numbered]}

    return _written(head, layers(), {})


def npz_body(part: Selection, dtype: str) -> Iterator[bytes]:
    """Write exact weights for `numpy.load`.

    Args:
        part: The chosen part of a record whose exact attention is on disk.
        dtype: ``float32`` or ``float16``.

    Returns:
        Pieces of the archive.

    Raises:
        FileNotFoundError: The exact attention is not, or no longer, on disk.
    """
    weights = ExactWeights.find(part.record)
    if weights is None:
        raise FileNotFoundError(part.record.path)
    return npz_pieces(weights, part.heads.items(), part.tokens, dtype)


def statistics_of(part: Selection) -> Iterator[dict[str, Any]]:
    """Measure the chosen heads: from the exact values where they were stored, else from the levels.

    Args:
        part: The chosen part.

    Yields:
        ``{layer, heads: [{head, ...}]}`` for each layer.
    """
    is_whole = len(part.tokens) == len(part.record.tokens)
    stored = part.record.statistics()["layers"] if is_whole else None
    for layer, heads in part.heads.items():
        found = _measured(part, layer) if stored is None else [stored[layer]["heads"][head] for head in heads]
        yield {"layer": layer, "heads": found}


def _measured(part: Selection, layer: int) -> list[dict[str, Any]]:
    heads, stop = list(part.heads[layer]), part.tokens.stop
    norms, outputs = part.record.norms(layer), part.record.output_norms(layer)  # (H, T) twice
    measured = range_statistics(
        part.levels(layer), part.tokens.start, stop,
        value_norms=None if norms is None else norms[heads, :stop],
        output_norms=None if outputs is None else outputs[heads],
    )  # fmt: skip
    return [{"head": head, **vars(one)} for head, one in zip(heads, measured, strict=True)]


def _written(head: dict[str, Any], layers: Iterable[dict[str, Any]], tail: dict[str, Any]) -> Iterator[bytes]:
    """An object of JSON whose `layers` are written one at a time."""
    yield _json(head)[:-1] + b',"layers":['
    for number, layer in enumerate(layers):
        yield (b"," if number else b"") + _json(layer)
    yield b"]" + (b"," + _json(tail)[1:] if tail else b"}")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
