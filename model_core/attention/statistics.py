"""Statistics of a head's attention: entropy, sparsity, distance, and the diagonal, vertical and horizontal patterns.

Every number is a mean over the queries that can show it, so that texts of different lengths compare. `FORMULAS` defines
each in one line, and is stored in statistics.json. The patterns are those of Vig and Belinkov, "Analyzing the
Structure of Attention in a Transformer Language Model", 2019, and Clark et al., "What Does BERT Look At?", 2019.

Shapes: H heads of one layer, T tokens. Query i is a row and sees the i + 1 keys j <= i.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LOCAL_REACH = 3  # keys at most this far back count as local
FAINT = 0.1  # of uniform attention: below it a key counts as ignored

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
    """Statistics of one head, as defined in `FORMULAS`; None where the text is too short."""

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


def head_statistics(attention: Array) -> HeadStatistics:
    """Measure one head.

    Args:
        attention: Rows that sum to 1, with zeros after the diagonal, (T, T).

    Returns:
        Its statistics.
    """
    tokens = attention.shape[0]
    if tokens < 2:
        return HeadStatistics(*(None for _ in fields(HeadStatistics)))
    rows = np.asarray(attention, dtype=np.float64)[1:]  # (T-1, T); the first query sees one key
    n_keys = np.arange(2.0, tokens + 1)  # (T-1,) visible keys of each query
    entropy = _entropy(rows)  # (T-1,)
    distance = np.arange(1, tokens)[:, None] - np.arange(tokens)  # (T-1, T) from query back to key
    visible = distance >= 0  # (T-1, T)
    key, vertical = _vertical(attention)
    query, horizontal = _horizontal(entropy, n_keys)
    local = np.where(visible & (distance <= LOCAL_REACH), rows, 0).sum(axis=1)[LOCAL_REACH:]  # (T-1-reach,)
    is_far = np.arange(tokens) < np.arange(1, tokens)[:, None] / 2  # (T-1, T)
    return HeadStatistics(
        entropy=float(entropy.mean()),
        entropy_relative=float((entropy / np.log2(n_keys)).mean()),
        sparsity=float(((visible & (rows < FAINT / n_keys[:, None])).sum(axis=1) / n_keys).mean()),
        mean_distance=float((rows * distance * visible).sum(axis=1).mean()),
        diagonal=float(np.diagonal(attention)[1:].mean()),
        previous=float(np.diagonal(attention, offset=-1).mean()),
        vertical=vertical,
        vertical_key=key,
        horizontal=horizontal,
        horizontal_query=query,
        local=float(local.mean()) if local.size else None,
        long_range=float(np.where(is_far, rows, 0).sum(axis=1).mean()),
    )


def layer_statistics(layer: int, attention: Array) -> dict[str, Any]:
    """Measure every head of a layer.

    Args:
        layer: Index of the layer.
        attention: Attention of the layer, (H, T, T).

    Returns:
        ``{layer, mean: {...}, heads: [{head, ...}]}``; the mean has no `vertical_key` and no `horizontal_query`.
    """
    heads = [head_statistics(head) for head in attention]
    return {
        "layer": layer,
        "mean": _mean(heads),
        "heads": [{"head": number, **asdict(head)} for number, head in enumerate(heads)],
    }


def model_statistics(layers: Iterable[Array]) -> dict[str, Any]:
    """Measure a whole model.

    Args:
        layers: Attention of each layer, (H, T, T) with its own H.

    Returns:
        As `statistics_record`.
    """
    return statistics_record([layer_statistics(layer, attention) for layer, attention in enumerate(layers)])


def statistics_record(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Build the content of statistics.json.

    Args:
        layers: Statistics of each layer, as `layer_statistics` returns them.

    Returns:
        ``{schema_version, formulas, layers}``.
    """
    return {"schema_version": 1, "formulas": FORMULAS, "layers": list(layers)}


def _entropy(rows: Array) -> Array:
    logs = np.zeros_like(rows)  # (T-1, T)
    np.log2(rows, out=logs, where=rows > 0)
    entropy: Array = -(rows * logs).sum(axis=1)  # (T-1,)
    return entropy


def _vertical(attention: Array) -> tuple[int, float]:
    tokens = attention.shape[0]
    keys = np.arange((tokens + 1) // 2)  # (T/2,); later keys have too few queries below them to make a line
    below = np.tril(attention, k=-1).sum(axis=0, dtype=np.float64)[keys] / (tokens - 1 - keys)  # (T/2,)
    key = int(below.argmax())
    return key, float(below[key])


def _horizontal(entropy: Array, n_keys: Array) -> tuple[int, float]:
    tokens = entropy.size + 1
    first = max(1, tokens // 2)  # an earlier query sees so few keys that it always attends to many of them
    spread = (2**entropy / n_keys)[first - 1 :]  # (T - first,)
    row = int(spread.argmax())
    return first + row, float(spread[row])


def _mean(heads: Sequence[HeadStatistics]) -> dict[str, float | None]:
    names = [field.name for field in fields(HeadStatistics) if field.name not in {"vertical_key", "horizontal_query"}]
    values = {name: [getattr(head, name) for head in heads] for name in names}
    return {name: None if None in column else sum(column) / len(column) for name, column in values.items()}
