"""Statistics of a head's attention: entropy, distance, sinks, and the diagonal, vertical and horizontal patterns.

Every number is a mean over the queries that can show it, so that texts of different lengths compare, and has the value
of even attention (p = 1 / (i + 1)) beside it. `head_metrics.METRICS` defines each. A layer is measured in blocks of
queries, so that its whole attention need not be in memory.

Shapes: H heads of one layer, T tokens, R queries of one block, K keys that the block's last query sees. Query i is a
row and sees the i + 1 keys j <= i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.attention.head_metrics import FAINT, FORMULAS, INDEX_METRICS, LOCAL_REACH

Array = NDArray[Any]

SCHEMA_VERSION = 2
BLOCK = 128  # queries of a block

NO_NORMS, TOO_FEW_TOKENS, OLDER_RECORD = "norms_unknown", "too_few_tokens", "older_record"  # reasons for null

_CHUNK = 2**18  # weights measured at a time: a megabyte, which stays in the processor's cache
_LANE = 32  # keys that are summed in float32 before float64 takes over
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics of one head (`head_metrics.METRICS`); None where the text is too short or norms are unknown."""

    entropy: float | None
    entropy_relative: float | None
    sparsity: float | None
    mean_distance: float | None
    diagonal: float | None
    previous: float | None
    vertical: float | None
    vertical_key: int | None
    horizontal: float | None
    horizontal_query: int | None
    local: float | None
    long_range: float | None
    distance_variance: float | None
    sink: float | None
    sink_norm: float | None
    output_norm: float | None


class HeadAccumulator:
    """Measures the heads of one layer from blocks of queries, in any order; each query is given once.

    Args:
        tokens: Number of tokens, T.
        n_head: Number of heads, H.
        start: First query that counts; with ``start`` above 0 the queries from there to T - 1 are measured, each with
            all keys that it sees.
        value_norms: Norm of each value after the output projection, (H, T), where it is known beforehand.
    """

    def __init__(self, tokens: int, n_head: int, *, start: int = 0, value_norms: Array | None = None) -> None:
        self._tokens, self._n_head, self._start = tokens, n_head, start
        self._value_norms = value_norms
        self._rows: dict[str, Array] = {}  # a number of every query, (H, T) float64
        self._columns = np.zeros((n_head, (tokens + start + 1) // 2))  # (H, T/2) sums over the queries below each key

    def add(
        self, first: int, attention: Array, *, value_norms: Array | None = None, output_norms: Array | None = None
    ) -> None:
        """Add a block of queries.

        Args:
            first: Index of its first query.
            attention: Its rows, each with sum 1 and zeros after the query itself, (H, R, K) with K at least first + R.
            value_norms: Norm of each value after the output projection, (H, K).
            output_norms: Norm of the head's output over the norm of the layer's input, (H, R).
        """
        if value_norms is None and self._value_norms is not None:
            value_norms = self._value_norms[:, : attention.shape[2]]  # (H, K)
        heads = max(1, _CHUNK // max(1, attention[0].size))
        for low in range(0, self._n_head, heads):
            part = slice(low, low + heads)
            self._add(first, part, attention[part], None if value_norms is None else value_norms[part])
        if output_norms is not None:
            self._store("output_norm", slice(None), first, output_norms)

    def columns(self) -> dict[str, Array | None]:
        """Return the statistics of all heads by name.

        Returns:
            For each name of `HeadStatistics` the numbers of all heads, (H,); None where there is none.
        """
        counted = slice(max(1, self._start), self._tokens)  # the first query sees one key
        queries = np.arange(self._tokens)[counted]  # (N,)
        found: dict[str, Array | None] = {field.name: None for field in fields(HeadStatistics)}
        if not queries.size:
            return found
        for name in self._rows.keys() - {"entropy"}:
            found[name] = self._rows[name][:, counted].mean(axis=1)  # (H,)
        entropy = self._rows["entropy"][:, counted]  # (H, N)
        found["entropy"] = entropy.mean(axis=1)  # (H,)
        found["entropy_relative"] = (entropy / np.log2(queries + 1)).mean(axis=1)  # (H,)
        is_local = queries > LOCAL_REACH  # (N,)
        found["local"] = self._rows["local"][:, counted][:, is_local].mean(axis=1) if is_local.any() else None  # (H,)
        found["vertical_key"], found["vertical"] = self._vertical()
        found["horizontal_query"], found["horizontal"] = _horizontal(entropy, queries, self._tokens)
        return found

    def finish(self) -> list[HeadStatistics]:
        """Return the statistics.

        Returns:
            Those of every head.
        """
        columns = self.columns()
        values = {
            name: [None] * self._n_head if column is None else column.tolist() for name, column in columns.items()
        }
        return [
            HeadStatistics(**{name: column[head] for name, column in values.items()}) for head in range(self._n_head)
        ]

    def _add(self, first: int, heads: slice, attention: Array, value_norms: Array | None) -> None:
        block = attention.astype(np.float32, copy=False)  # (H, R, K)
        queries = np.arange(first, first + block.shape[1])  # (R,)
        rows = np.arange(block.shape[1])  # (R,)
        logs = np.maximum(block, _TINY)  # (H, R, K)
        np.log(logs, out=logs)
        future = block.shape[2] - 1 - queries  # (R,) keys after the query, all 0
        is_faint = block < (FAINT / (queries + 1)).astype(np.float32)[:, None]  # (H, R, K)
        distance, variance = _moments(block, queries)
        back = [block[:, rows, np.maximum(queries - distance, 0)] for distance in range(LOCAL_REACH + 1)]  # 4 x (H, R)
        is_far = np.arange(block.shape[2]) < queries[:, None] / 2  # (R, K)
        measured = {
            "entropy": np.einsum("hrk,hrk->hr", block, logs) / -math.log(2),  # (H, R)
            "sparsity": (_count(is_faint) - future) / (queries + 1),  # (H, R)
            "mean_distance": distance,
            "distance_variance": variance,
            "diagonal": back[0],
            "previous": back[1],
            "local": sum(back),
            "long_range": np.einsum("hrk,rk->hr", block, is_far.astype(np.float32)),  # (H, R)
            "sink": block[:, :, 0],
        }
        if value_norms is not None:
            norms = value_norms.astype(np.float32, copy=False)  # (H, K)
            total = (block @ norms[:, :, None])[..., 0]  # (H, R)
            share = np.zeros(total.shape)  # (H, R); a head whose values are all 0 carries nothing
            np.divide(block[:, :, 0] * norms[:, :1], total, out=share, where=total > 0)
            measured["sink_norm"] = share
        for name, values in measured.items():
            self._store(name, heads, first, values)
        self._add_columns(heads, block[:, queries >= self._start], queries[queries >= self._start])

    def _store(self, name: str, heads: slice, first: int, values: Any) -> None:
        if name not in self._rows:
            self._rows[name] = np.zeros((self._n_head, self._tokens))  # (H, T)
        self._rows[name][heads, first : first + values.shape[1]] = values

    def _add_columns(self, heads: slice, block: Array, queries: Array) -> None:
        keys = min(self._columns.shape[1], block.shape[2])
        sums = block[:, :, :keys].sum(axis=1, dtype=np.float32).astype(np.float64)  # (H, keys)
        inside = queries < keys
        sums[:, queries[inside]] -= block[:, inside, queries[inside]]  # a query is not below itself
        self._columns[heads, :keys] += sums

    def _vertical(self) -> tuple[Array, Array]:
        keys = np.arange(self._columns.shape[1])  # (T/2,); later keys have too few queries below them to make a line
        below = self._tokens - np.maximum(keys + 1, self._start)  # (T/2,) counted queries after each key
        means = np.where(below > 0, self._columns / np.maximum(below, 1), 0)  # (H, T/2)
        best = means.argmax(axis=1)  # (H,)
        return best, means[np.arange(len(means)), best]  # (H,), (H,)


def head_statistics(
    attention: Array, *, value_norms: Array | None = None, output_norms: Array | None = None
) -> list[HeadStatistics]:
    """Measure the heads of a layer.

    Args:
        attention: Rows that sum to 1, with zeros after the diagonal, (H, T, T).
        value_norms: Norm of each value after the output projection, (H, T).
        output_norms: Norm of the head's output over the norm of the layer's input, (H, T).

    Returns:
        Statistics of every head.
    """
    n_head, tokens, _ = attention.shape
    heads = HeadAccumulator(tokens, n_head, value_norms=value_norms)
    for part in _blocks(0, tokens):
        norms = None if output_norms is None else output_norms[:, part]  # (H, R)
        heads.add(part.start, attention[:, part, : part.stop], output_norms=norms)
    return heads.finish()


def range_statistics(
    levels: NDArray[np.uint8], start: int, stop: int, *,
    value_norms: Array | None = None, output_norms: Array | None = None,
) -> list[HeadStatistics]:  # fmt: skip
    """Measure the queries of a part of a text from what a record stores.

    The errors are those of the levels: at most .001 bit of entropy, .014 tokens of distance and .002 of a share.

    Args:
        levels: Levels of a layer from the beginning of the text, (H, T, T); see `record.quantize`.
        start: First query of the part; each query counts with all keys that it sees, also those before the part.
        stop: Query after the last one, at most T.
        value_norms: Norm of each value after the output projection, (H, T) or longer.
        output_norms: Norm of the head's output over the norm of the layer's input, (H, T) or longer.

    Returns:
        Statistics of every head.
    """
    heads = HeadAccumulator(stop, len(levels), start=start, value_norms=value_norms)
    for part in _blocks(start, stop):
        norms = None if output_norms is None else output_norms[:, part]  # (H, R)
        heads.add(part.start, scaled(levels[:, part, : part.stop]), output_norms=norms)
    return heads.finish()


def share_before(levels: NDArray[np.uint8], start: int, stop: int) -> list[float]:
    """Measure how much of the attention of a part of a text lies on keys before the part.

    Args:
        levels: Levels of a layer from the beginning of the text, (H, T, T); see `record.quantize`.
        start: First query of the part.
        stop: Query after the last one, at most T.

    Returns:
        For every head the mean over the part's queries, from 0 to 1.
    """
    total = np.zeros(len(levels))  # (H,)
    for part in _blocks(start, stop):
        total += scaled(levels[:, part, : part.stop])[:, :, :start].sum(axis=(1, 2), dtype=np.float64)  # (H,)
    shares: list[float] = (total / max(1, stop - start)).tolist()
    return shares


def scaled(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Restore attention from its levels, with rows that sum to 1.

    Args:
        levels: Levels of whole rows, (..., K); see `record.quantize`.

    Returns:
        Attention, (..., K).
    """
    attention = np.square(levels, dtype=np.float32)  # (..., K)
    total = attention.sum(axis=-1, keepdims=True)  # (..., 1)
    np.divide(attention, total, out=attention, where=total > 0)
    return attention


def even_statistics(tokens: int, *, start: int = 0) -> dict[str, float | None]:
    """Compute the statistics of even attention, p = 1 / (i + 1), in closed form.

    Args:
        tokens: Number of tokens, T.
        start: First query that counts.

    Returns:
        The value of every metric of a text; None where even attention says nothing: keys and queries, and what depends
        on norms.
    """
    even: dict[str, float | None] = dict.fromkeys(FORMULAS)
    queries = np.arange(max(1, start), tokens, dtype=np.float64)  # (N,)
    if not queries.size:
        return even
    seen = queries + 1  # (N,)
    share = float((1 / seen).mean())
    local = (LOCAL_REACH + 1) / seen[queries > LOCAL_REACH]  # (N',)
    return even | {
        "entropy": float(np.log2(seen).mean()),
        "entropy_relative": 1.0,
        "sparsity": 0.0,
        "mean_distance": float(queries.mean() / 2),
        "diagonal": share,
        "previous": share,
        "vertical": share,  # of the first key, which the most queries see
        "horizontal": 1.0,
        "local": float(local.mean()) if local.size else None,
        "long_range": float((np.ceil(queries / 2) / seen).mean()),
        "distance_variance": float(((seen**2 - 1) / 12).mean()),
        "sink": share,
    }


def layer_statistics(layer: int, heads: Sequence[HeadStatistics]) -> dict[str, Any]:
    """Build the statistics of a layer as they are stored.

    Args:
        layer: Index of the layer.
        heads: Statistics of its heads.

    Returns:
        ``{layer, mean: {...}, heads: [{head, ...}]}``; the mean has no `vertical_key` and no `horizontal_query`.
    """
    return {
        "layer": layer,
        "mean": mean_statistics([asdict(head) for head in heads]),
        "heads": [{"head": number, **asdict(head)} for number, head in enumerate(heads)],
    }


def mean_statistics(heads: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Average heads.

    Args:
        heads: Statistics of each by name.

    Returns:
        The mean of every metric of a text but keys and queries; None where a head has none.
    """
    values = {name: [head[name] for head in heads] for name in FORMULAS if name not in INDEX_METRICS}
    return {name: None if None in column else sum(column) / len(column) for name, column in values.items()}


def statistics_record(layers: Sequence[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """Build the content of statistics.json.

    Args:
        layers: Statistics of each layer, as `layer_statistics` returns them.
        tokens: Number of tokens, T.

    Returns:
        ``{schema_version, tokens, formulas, even, reasons, layers}``; `reasons` has why a metric is null.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "tokens": tokens,
        "formulas": dict(FORMULAS),
        "even": even_statistics(tokens),
        "reasons": null_reasons(layers, tokens),
        "layers": list(layers),
    }


def upgrade_record(content: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Read the content of statistics.json of any version.

    Args:
        content: The content.
        tokens: Number of tokens, T.

    Returns:
        The content in the present version; what an older record does not have is None, and `reasons` says so.
    """
    if content["schema_version"] >= SCHEMA_VERSION:
        return content
    blank = dict.fromkeys(FORMULAS)
    layers = [
        {
            "layer": layer["layer"],
            "mean": {name: None for name in FORMULAS if name not in INDEX_METRICS} | layer["mean"],
            "heads": [{"head": head["head"], **(blank | head)} for head in layer["heads"]],
        }
        for layer in content["layers"]
    ]
    absent = dict.fromkeys(FORMULAS.keys() - content["formulas"].keys(), OLDER_RECORD)
    record = statistics_record(layers, tokens)
    return record | {"reasons": record["reasons"] | absent}


def null_reasons(layers: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, str]:
    """Explain the metrics that are null.

    Args:
        layers: Statistics of each layer, as `layer_statistics` returns them.
        tokens: Number of tokens, T.

    Returns:
        For each metric that is null in some head ``too_few_tokens`` or ``norms_unknown``.
    """
    heads = [head for layer in layers for head in layer["heads"]]
    absent = [name for name in FORMULAS if any(head[name] is None for head in heads)]
    needs_norms = {"sink_norm", "output_norm"} if tokens > 1 else frozenset()
    return {name: NO_NORMS if name in needs_norms else TOO_FEW_TOKENS for name in absent}


def _blocks(start: int, stop: int) -> Iterator[slice]:
    return (slice(low, min(low + BLOCK, stop)) for low in range(start, stop, BLOCK))


def _count(mask: Array) -> Array:
    """How many keys of each row are set, (H, R); `np.count_nonzero` with an axis takes twice as long."""
    return np.asarray(np.add.reduce(mask.view(np.int8), axis=-1, dtype=np.int32))


def _moments(block: Array, queries: Array) -> tuple[Array, Array]:
    """Mean and variance of the distance from each query back to its keys, 2 x (H, R) float64.

    Lanes of a few keys are summed in float32, and lanes in float64 around the mean: squares of distances in float32
    alone would leave the variance of a sharp head to rounding.
    """
    H, R, K = block.shape  # noqa: N806 - the letters of the shape legend
    lanes = -(-K // _LANE)
    if lanes * _LANE > K:
        block = np.pad(block, ((0, 0), (0, 0), (0, lanes * _LANE - K)))  # (H, R, lanes * LANE)
    inside = np.arange(_LANE, dtype=np.float32)  # (LANE,)
    basis = np.stack([np.ones_like(inside), inside, inside**2], axis=1)  # (LANE, 3)
    sums = (block.reshape(H * R * lanes, _LANE) @ basis).reshape(H, R, lanes, 3).astype(np.float64)  # (H, R, lanes, 3)
    mass, first, second = np.moveaxis(sums, -1, 0)  # 3 x (H, R, lanes)
    origins = np.arange(lanes) * float(_LANE)  # (lanes,)
    total = np.maximum(mass.sum(axis=-1), _TINY)  # (H, R)
    key = (mass * origins + first).sum(axis=-1) / total  # (H, R) mean key
    offset = origins - key[..., None]  # (H, R, lanes)
    variance = (mass * offset**2 + 2 * first * offset + second).sum(axis=-1) / total  # (H, R)
    return queries - key, np.maximum(variance, 0)


def _horizontal(entropy: Array, queries: Array, tokens: int) -> tuple[Array, Array]:
    late = queries >= max(1, tokens // 2)  # (N,); an earlier query sees so few keys that it always attends to many
    spread = 2 ** entropy[:, late] / (queries[late] + 1)  # (H, N')
    row = spread.argmax(axis=1)  # (H,)
    return queries[late][row], spread[np.arange(len(spread)), row]  # (H,), (H,)
