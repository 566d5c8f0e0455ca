"""What a head does, in numbers: the reading guide of attention pictures, computed.

Every number is a mean over the queries that can show it, so that short and long texts compare. `FORMULAS` says
in one line each what is measured; the same lines travel in statistics.json.

Shapes: H heads of one layer, T tokens. Query i is a row and sees the keys j <= i, so it has i + 1 of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LOCAL_REACH = 3  # keys at most this far back count as local
FAINT = 0.1  # of an even share: below it a key counts as ignored

FORMULAS = {
    "entropy": "bits: mean over queries i >= 1 of -sum_j p log2 p; 0 looks at one key, log2(i + 1) at all alike",
    "entropy_relative": "mean over queries i >= 1 of entropy_i / log2(i + 1): 0 focused, 1 spread evenly",
    "sparsity": f"mean over queries i >= 1 of the share of visible keys with p < {FAINT} / (i + 1)",
    "mean_distance": "tokens: mean over queries i >= 1 of sum_j p (i - j)",
    "diagonal": "mean over queries i >= 1 of p[i, i]: a token that looks at itself",
    "previous": "mean over queries i >= 1 of p[i, i - 1]: a token that looks at the one before",
    "vertical": "largest over keys j < T / 2 of the mean over queries i > j of p[i, j]: many look at one key",
    "vertical_key": "the key j of vertical",
    "horizontal": "largest over queries i >= T / 2 of 2 ** entropy_i / (i + 1): one token looks at many keys",
    "horizontal_query": "the query i of horizontal",
    "local": f"mean over queries i > {LOCAL_REACH} of the sum of p over keys at most {LOCAL_REACH} back",
    "long_range": "mean over queries i >= 1 of the sum of p over keys j < i / 2: the farther half of the past",
}


@dataclass(frozen=True)
class HeadStatistics:
    """Numbers of one head, each as `FORMULAS` says; None where the text is too short to show it."""

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


def head_statistics(weights: Array) -> HeadStatistics:
    """Measure one head.

    Args:
        weights: Rows that sum to 1 with zeros after the diagonal, (T, T).
    """
    tokens = weights.shape[0]
    if tokens < 2:
        return HeadStatistics(*(None for _ in fields(HeadStatistics)))
    rows = np.asarray(weights, dtype=np.float64)[1:]  # (T-1, T); the first query has nothing to choose
    seen = np.arange(2.0, tokens + 1)  # (T-1,) visible keys of each query
    entropy = _entropy(rows)  # (T-1,)
    back = np.arange(1, tokens)[:, None] - np.arange(tokens)  # (T-1, T) how far back a key lies
    visible = back >= 0
    key, vertical = _vertical(weights)
    query, horizontal = _horizontal(entropy, seen)
    local = np.where(visible & (back <= LOCAL_REACH), rows, 0).sum(axis=1)[LOCAL_REACH:]  # (T-1-reach,)
    far = np.arange(tokens) < np.arange(1, tokens)[:, None] / 2  # (T-1, T)
    return HeadStatistics(
        entropy=float(entropy.mean()),
        entropy_relative=float((entropy / np.log2(seen)).mean()),
        sparsity=float(((visible & (rows < FAINT / seen[:, None])).sum(axis=1) / seen).mean()),
        mean_distance=float((rows * back * visible).sum(axis=1).mean()),
        diagonal=float(np.diagonal(weights)[1:].mean()),
        previous=float(np.diagonal(weights, offset=-1).mean()),
        vertical=vertical,
        vertical_key=key,
        horizontal=horizontal,
        horizontal_query=query,
        local=float(local.mean()) if local.size else None,
        long_range=float(np.where(far, rows, 0).sum(axis=1).mean()),
    )


def layer_statistics(layer: int, weights: Array) -> dict[str, Any]:
    """Measure every head of a layer.

    Args:
        layer: Its number.
        weights: (H, T, T).

    Returns:
        ``{layer, heads: [{head, ...}], mean: {...}}``; the mean leaves out what names a token.
    """
    heads = [head_statistics(one) for one in weights]
    return {
        "layer": layer,
        "mean": _mean(heads),
        "heads": [{"head": number, **asdict(head)} for number, head in enumerate(heads)],
    }


def model_statistics(layers: Iterable[Array]) -> dict[str, Any]:
    """Measure a whole model, one (H, T, T) a layer: the content of statistics.json."""
    return statistics_record([layer_statistics(number, weights) for number, weights in enumerate(layers)])


def statistics_record(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put measured layers together with what the numbers mean."""
    return {"schema_version": 1, "formulas": FORMULAS, "layers": list(layers)}


def _entropy(rows: Array) -> Array:
    logs = np.zeros_like(rows)
    np.log2(rows, out=logs, where=rows > 0)
    entropy: Array = -(rows * logs).sum(axis=1)  # (T-1,)
    return entropy


def _vertical(weights: Array) -> tuple[int, float]:
    tokens = weights.shape[0]
    keys = np.arange((tokens + 1) // 2)  # the later half has too few queries below it to make a line
    below = np.tril(weights, k=-1).sum(axis=0, dtype=np.float64)[keys] / (tokens - 1 - keys)  # (T/2,)
    key = int(below.argmax())
    return key, float(below[key])


def _horizontal(entropy: Array, seen: Array) -> tuple[int, float]:
    tokens = entropy.size + 1
    first = max(1, tokens // 2)  # an early query sees so few keys that it always looks at many of them
    spread = (2**entropy / seen)[first - 1 :]
    row = int(spread.argmax())
    return first + row, float(spread[row])


def _mean(heads: Sequence[HeadStatistics]) -> dict[str, float | None]:
    names = [field.name for field in fields(HeadStatistics) if field.name not in {"vertical_key", "horizontal_query"}]
    values = {name: [getattr(head, name) for head in heads] for name in names}
    return {name: None if None in column else sum(column) / len(column) for name, column in values.items()}
