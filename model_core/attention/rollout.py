"""Attention rollout: how much of each token arrives at each place of a layer, if heads only moved tokens.

R_l = (mean over heads of p_l + I) / 2 · R_{l-1}: the residual stream carries one half (Abnar and Zuidema, "Quantifying
Attention Flow in Transformers", 2020). It counts the heads of a layer alike, whatever they write, so a head of a layer
with one head weighs as much as all of a layer with eight; and even heads alone give the first token much more than an
even share. Therefore it is read as a ratio to the rollout of even heads of the same depth.

Shapes: H heads of one layer, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.attention.statistics import scaled

Array = NDArray[Any]

CAVEAT = (
    "the heads of a layer count alike, whatever they write: one head of a layer with one head weighs as much as all of "
    "a layer with eight; compare with the rollout of even heads"
)
_BLOCK = 128  # rows of a head that are restored from their levels at a time


def rollout(layers: Iterable[Array]) -> NDArray[np.float32]:
    """Multiply the attention of layers.

    Args:
        layers: Attention of each layer from the first one on, (H, T, T) with its own H: values with rows that sum to 1,
            or uint8 levels of a record.

    Returns:
        Share of every token (column) in every place (row) after the last of these layers, (T, T); rows sum to 1.

    Raises:
        ValueError: There is no layer.
    """
    total: NDArray[np.float32] | None = None
    for attention in layers:
        step = _with_stream(_mean_head(attention))  # (T, T)
        total = step if total is None else step @ total  # (T, T)
    if total is None:
        raise ValueError("a rollout needs at least one layer")
    return total


def even_rollout(n_layer: int, tokens: int) -> NDArray[np.float32]:
    """Compute the rollout of heads that attend evenly, p = 1 / (i + 1).

    Args:
        n_layer: Number of layers, at least 1.
        tokens: Number of tokens, T.

    Returns:
        The rollout after the last layer, (T, T).
    """
    even = np.tril(np.ones((tokens, tokens), np.float32))  # (T, T)
    even /= np.arange(1, tokens + 1, dtype=np.float32)[:, None]
    powered: NDArray[np.float32] = np.linalg.matrix_power(_with_stream(even), n_layer)  # (T, T)
    return powered


def ratio_to_even(shares: Array, even: Array) -> NDArray[np.float32]:
    """Divide a rollout by that of even heads.

    Args:
        shares: Rollout of a model, (T, T).
        even: Rollout of even heads after as many layers, (T, T).

    Returns:
        The ratio, (T, T): 1 where the model moves as much as even heads would; 0 after the diagonal.
    """
    ratio = np.zeros(shares.shape, np.float32)  # (T, T)
    np.divide(shares, even, out=ratio, where=even > 0)
    return ratio


def _mean_head(attention: Array) -> NDArray[np.float32]:
    if attention.dtype != np.uint8:
        exact: NDArray[np.float32] = attention.mean(axis=0, dtype=np.float32)  # (T, T)
        return exact
    tokens = attention.shape[1]
    mean = np.zeros((tokens, tokens), np.float32)  # (T, T)
    for head in attention:
        for low in range(0, tokens, _BLOCK):
            mean[low : low + _BLOCK] += scaled(head[low : low + _BLOCK])
    return mean / np.float32(len(attention))


def _with_stream(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    step: NDArray[np.float32] = attention / np.float32(2)  # (T, T)
    step[np.diag_indices_from(step)] += np.float32(0.5)
    return step
