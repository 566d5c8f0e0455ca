"""Wire formats of stored attention: uint8 triangles and the strongest keys of each query.

Both are made of the levels of a record, 255 times the square root of a weight. Whatever is a weight here, and not a
level, has rows that sum to 1: rounding to levels changes a row's sum by up to some percent, so it is divided by it.

Shapes: H heads of one layer, T tokens, S blocks of pooled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Levels = NDArray[np.uint8]

U8_ENCODING = "uint8 round(255 sqrt(p)), lower triangle row by row, head after head"
SPARSE_UNIT = 1e-4
SPARSE_KEYS, SPARSE_LEAST = 8, 0.005  # most keys of a query, and the smallest weight that is told
_WHOLE = round(1 / SPARSE_UNIT)
_BLOCK = 1 << 22  # weights that are spread out in memory at a time


@dataclass(frozen=True)
class SparseRows:
    """Strongest keys of every query of one head.

    Attributes:
        offsets: Where the keys of each query begin, and the end of the last, (T + 1,).
        keys: Places of the keys, the strongest of a query first, (N,).
        weights: Their weights in units of `SPARSE_UNIT`, (N,).
        rest: What each row leaves out, in the same unit, (T,).
    """

    offsets: Array
    keys: Array
    weights: Array
    rest: Array

    def to_json(self) -> dict[str, list[int]]:
        """Write the rows as lists.

        Returns:
            ``{offsets, keys, weights, rest}``.
        """
        return {
            "offsets": self.offsets.tolist(),
            "keys": self.keys.tolist(),
            "weights": self.weights.tolist(),
            "rest": self.rest.tolist(),
        }


def max_pool(levels: Array, side: int) -> Array:
    """Fit attention into fewer blocks, each with its largest value, so that no thin line is lost.

    Args:
        levels: Quantized attention, (..., T, T).
        side: Most blocks of a side, S.

    Returns:
        Quantized attention, (..., min(T, S), min(T, S)).
    """
    tokens = levels.shape[-1]
    if tokens <= side:
        return levels
    starts = np.arange(side) * tokens // side  # (S,)
    last = np.append(starts[1:], tokens) - 1  # (S,) last token of each block
    rows = levels[..., starts, :]  # (..., S, T)
    for step in range(1, -(-tokens // side)):
        rows = np.maximum(rows, levels[..., np.minimum(starts + step, last), :])  # (..., S, T)
    columns = rows[..., starts]  # (..., S, S)
    for step in range(1, -(-tokens // side)):
        columns = np.maximum(columns, rows[..., np.minimum(starts + step, last)])  # (..., S, S)
    return columns


def pack_triangles(levels: Levels, *, pool: int | None = None) -> bytes:
    """Write the lower triangles of heads.

    Args:
        levels: Quantized attention, (H, T, T).
        pool: Most blocks of a side; None keeps every token.

    Returns:
        Row by row, head after head: H S (S + 1) / 2 bytes.
    """
    small = levels if pool is None else max_pool(levels, pool)  # (H, S, S)
    size = small.shape[-1]
    packed = np.empty((len(small), size * (size + 1) // 2), dtype=np.uint8)  # (H, S (S + 1) / 2)
    begin = 0
    for row in range(size):
        packed[:, begin : begin + row + 1] = small[:, row, : row + 1]
        begin += row + 1
    return packed.tobytes()


def unpack_triangles(data: bytes, heads: int) -> Levels:
    """Read what `pack_triangles` wrote.

    Args:
        data: The triangles.
        heads: Number of heads, H.

    Returns:
        Quantized attention, (H, S, S).
    """
    packed = np.frombuffer(data, dtype=np.uint8).reshape(heads, -1)  # (H, S (S + 1) / 2)
    size = round((np.sqrt(8 * packed.shape[1] + 1) - 1) / 2)
    levels = np.zeros((heads, size, size), dtype=np.uint8)  # (H, S, S)
    levels[:, *np.tril_indices(size)] = packed
    return levels


def sparse_rows(levels: Levels, start: int = 0) -> list[SparseRows]:
    """Find the strongest keys of every query.

    Args:
        levels: Quantized attention of a text's beginning, (H, T, T).
        start: First query and key that are told; what earlier keys receive is in the rest.

    Returns:
        The rows of each head, (H,); keys count from the text's beginning.
    """
    return [_sparse_head(head, start) for head in levels]


def largest_weight(levels: Levels, *, first: int = 0) -> float:
    """Find the largest weight outside the first query and the first key of a text.

    Args:
        levels: Quantized attention, (..., T, T).
        first: Place of its first token in the text.

    Returns:
        The weight; 0 if there is nothing else.
    """
    inner = levels[..., 1:, 1:] if first == 0 else levels
    return float((int(inner.max(initial=0)) / 255) ** 2)


def norm_weighted(levels: Levels, value_norms: NDArray[np.float32]) -> Levels:
    """Weight attention by the length of what each key contributes (Kobayashi et al., 2020, 2004.10102).

    Args:
        levels: Quantized attention of a text's beginning, (H, T, T).
        value_norms: Length of each key's contribution, (H, T).

    Returns:
        Quantized p |f(x_j)| with rows that sum to 1, (H, T, T).
    """
    weighted = np.empty_like(levels)  # (H, T, T)
    for head, norms in enumerate(value_norms):
        rows = np.square(levels[head], dtype=np.uint16) * norms  # (T, T)
        rows /= np.maximum(rows.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        weighted[head] = np.rint(np.sqrt(rows) * 255)
    return weighted


def _sparse_head(levels: Levels, start: int) -> SparseRows:
    tokens = levels.shape[-1]
    rows = max(1, _BLOCK // max(1, tokens))
    keys, weights, rest = [], [], []
    for first in range(start, tokens, rows):
        block = levels[first : first + rows]  # (R, T)
        sums = np.square(block, dtype=np.uint16).sum(axis=1, dtype=np.float64)  # (R,)
        strongest, shown = _strongest(block[:, start:])  # (R, K) twice
        told = np.square(shown, dtype=np.float64) / np.maximum(sums, 1.0)[:, None]  # (R, K)
        is_told = told >= SPARSE_LEAST
        whole = np.where(is_told, np.rint(told * _WHOLE), 0).astype(np.int64)  # (R, K)
        counts = is_told.sum(axis=1)  # (R,)
        keys.append(strongest[is_told] + start)
        weights.append(whole[is_told])
        rest.append(np.stack([counts, np.maximum(_WHOLE - whole.sum(axis=1), 0)]))
    counts, left = np.concatenate(rest, axis=1)  # (T - start,) twice
    offsets = np.concatenate([[0], np.cumsum(counts)])  # (T - start + 1,)
    return SparseRows(offsets, np.concatenate(keys), np.concatenate(weights), left)


def _strongest(levels: Levels) -> tuple[Array, Array]:
    """The keys of the highest levels, of equal ones the earliest, and their levels, both (R, K); the highest first."""
    width = levels.shape[1]
    count = min(SPARSE_KEYS, width)
    ranked = levels.astype(np.uint32) << 24 | np.arange(width - 1, -1, -1, dtype=np.uint32)  # (R, T), value before key
    best = -np.sort(-np.partition(ranked, width - count, axis=1)[:, width - count :].astype(np.int64), axis=1)  # (R, K)
    return width - 1 - (best & 0xFFFFFF), best >> 24
