"""Which head of one model does what a head of another does: assignment by the Hellinger distance of their attention.

Both models read the same windows. The distance of two heads is d, with d^2 = 1 - mean over queries i >= 1 of
sum_j sqrt(p q): 0 for equal attention, 1 for attention that never meets. Heads are paired by the assignment of least
sum (Kuhn, "The Hungarian Method for the Assignment Problem", 1955; Crouse, "On implementing 2D rectangular assignment
algorithms", 2016). An assignment pairs any two models, also untrained ones; whether a head was found again is decided
by nulls: the same heads with the keys of each row shuffled, and the pairs that were not assigned.

Shapes: A heads of the first model, B heads of the second, W windows, T tokens, P weights of a window.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_core.attention.heads.patterns import HeadPatterns, row_starts

Array = NDArray[Any]
HeadName = tuple[int, int]  # layer and head

FLAT = 0.95  # relative entropy above which a head is flat: flat heads all look alike
SIMILAR_RATIO = 0.5
SIMILAR_SDS = 3.0  # standard deviations below the mean of the pairs that are not assigned

_LEAST = 1e-3  # a smaller distance of shuffled heads is that of two even ones, which have no other order of keys


class Affinities(NamedTuple):
    """How much all pairs of heads have in common: mean over queries of sum_j sqrt(p q).

    Attributes:
        kept: Of the heads as they are, (A, B).
        shuffled: Expected with the keys of each row shuffled, (A, B): mean of (sum_j sqrt p)(sum_j sqrt q) / n.
    """

    kept: Array
    shuffled: Array


@dataclass(frozen=True)
class HeadPair:
    """Two heads that an assignment put together.

    Attributes:
        a: Layer and head in the first model.
        b: Layer and head in the second model.
        overlap: Mean over queries of sum_j min(p, q), the share of attention that they have in common: 0 to 1.
        distance: Hellinger distance, 0 to 1.
        ratio: The distance / that with the keys of each row shuffled; None where both heads are even.
        mutual: Whether each is the nearest head of the other model.
        similar: Whether the head was found again: mutual, a ratio of at most `SIMILAR_RATIO` and below the pairs that
            were not assigned. None where that cannot be told: a head is flat, or too few pairs remain to compare.
    """

    a: HeadName
    b: HeadName
    overlap: float
    distance: float
    ratio: float | None
    mutual: bool
    similar: bool | None


@dataclass(frozen=True)
class Matching:
    """An assignment between the heads of two models.

    Attributes:
        pairs: The pairs, by layer and head of the first model.
        unmatched_a: Heads of the first model that are left over.
        unmatched_b: Heads of the second model that are left over.
        mean: Mean overlap of the pairs.
        others: Mean and standard deviation of `ratio` over pairs that were not assigned, without flat heads; None where
            they are fewer than two.
        flat_a: Heads of the first model whose relative entropy is above `FLAT`.
        flat_b: Heads of the second model whose relative entropy is above `FLAT`.
    """

    pairs: tuple[HeadPair, ...]
    unmatched_a: tuple[HeadName, ...]
    unmatched_b: tuple[HeadName, ...]
    mean: float
    others: tuple[float, float] | None
    flat_a: tuple[HeadName, ...]
    flat_b: tuple[HeadName, ...]


def match_heads(a: HeadPatterns, b: HeadPatterns) -> Matching:
    """Pair the heads of two models.

    Args:
        a: Attention of the first model.
        b: Attention of the second model to the same windows.

    Returns:
        The assignment of least sum of distances.
    """
    affinities = head_affinities(a, b)
    distance = hellinger(affinities.kept)  # (A, B)
    shuffled = hellinger(affinities.shuffled)  # (A, B)
    ratio = np.divide(distance, shuffled, out=np.full_like(distance, np.nan), where=shuffled > _LEAST)  # (A, B)
    rows, columns = assign(distance)
    flat_a, flat_b = (model.values["entropy_relative"] > FLAT for model in (a, b))  # (A,), (B,)
    flat = flat_a[:, None] | flat_b  # (A, B)
    others = _others(ratio, flat, rows, columns)
    is_mutual = _mutual_nearest(distance)[rows, columns]
    overlap = pair_overlaps(a, b, rows, columns)
    names_a, names_b = a.names, b.names
    pairs = tuple(
        HeadPair(
            names_a[row], names_b[column], float(shared), float(distance[row, column]), _number(ratio[row, column]),
            bool(mutual), _is_similar(ratio[row, column], others, mutual=bool(mutual), flat=bool(flat[row, column])),
        )
        for row, column, shared, mutual in zip(rows, columns, overlap, is_mutual, strict=True)
    )  # fmt: skip
    return Matching(
        pairs=pairs,
        unmatched_a=_left_over(names_a, rows),
        unmatched_b=_left_over(names_b, columns),
        mean=float(overlap.mean()),
        others=others,
        flat_a=tuple(itertools.compress(names_a, flat_a)),
        flat_b=tuple(itertools.compress(names_b, flat_b)),
    )


def head_affinities(a: HeadPatterns, b: HeadPatterns) -> Affinities:
    """Compare all pairs of heads.

    Args:
        a: Attention of the first model.
        b: Attention of the second model to the same windows.

    Returns:
        What each pair has in common.
    """
    starts, n_keys = row_starts(a.tokens)[:-1], np.arange(2, a.tokens + 1)  # (T-1,), (T-1,)
    windows = a.levels.shape[1]
    kept = np.zeros((len(a.levels), len(b.levels)))  # (A, B)
    shuffled = np.zeros_like(kept)  # (A, B)
    for window in range(windows):
        roots_a, roots_b = a.roots(window), b.roots(window)  # (A, P), (B, P)
        kept += roots_a @ roots_b.T  # (A, B)
        sums_a = np.add.reduceat(roots_a, starts, axis=-1) / n_keys  # (A, T-1)
        sums_b = np.add.reduceat(roots_b, starts, axis=-1)  # (B, T-1)
        shuffled += sums_a @ sums_b.T  # (A, B)
    queries = windows * len(starts)
    return Affinities(kept / queries, shuffled / queries)


def hellinger(affinity: Array) -> Array:
    """Turn what two heads have in common into their distance.

    Args:
        affinity: Mean of sum_j sqrt(p q), of any shape.

    Returns:
        Hellinger distance, 0 to 1.
    """
    distance: Array = np.sqrt(np.clip(1 - affinity, 0, 1))
    return distance


def pair_overlaps(a: HeadPatterns, b: HeadPatterns, rows: Array, columns: Array) -> Array:
    """Compute the share of attention that pairs of heads have in common.

    Args:
        a: Attention of the first model.
        b: Attention of the second model to the same windows.
        rows: Heads of the first model, one a pair.
        columns: Heads of the second model, one a pair.

    Returns:
        Mean over queries of sum_j min(p, q), one a pair.
    """
    windows = a.levels.shape[1]
    total = np.zeros(len(rows))
    for window in range(windows):
        nearer = np.minimum(a.roots(window)[rows], b.roots(window)[columns])  # (pairs, P)
        total += np.square(nearer).sum(axis=-1, dtype=np.float64)
    overlaps: Array = total / (windows * (a.tokens - 1))
    return overlaps


def assign(cost: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the assignment of least sum.

    Args:
        cost: Cost of each pair, (A, B).

    Returns:
        Row and column of each pair, min(A, B) each, by row.
    """
    from scipy.optimize import linear_sum_assignment  # 0.3 s and 49 MiB, which other requests need not spend

    rows, columns = linear_sum_assignment(cost)
    return rows, columns


def _mutual_nearest(distance: Array) -> NDArray[np.bool_]:
    nearest: NDArray[np.bool_] = (distance <= distance.min(axis=1, keepdims=True)) & (
        distance <= distance.min(axis=0, keepdims=True)
    )
    return nearest


def _others(ratio: Array, flat: Array, rows: Array, columns: Array) -> tuple[float, float] | None:
    is_other = ~flat & np.isfinite(ratio)
    is_other[rows, columns] = False
    values = ratio[is_other]
    return (float(values.mean()), float(values.std(ddof=1))) if values.size > 1 else None


def _is_similar(ratio: float, others: tuple[float, float] | None, *, mutual: bool, flat: bool) -> bool | None:
    if flat or others is None or np.isnan(ratio):
        return None
    return bool(mutual and ratio <= SIMILAR_RATIO and ratio < others[0] - SIMILAR_SDS * others[1])


def _left_over(names: list[HeadName], taken: Array) -> tuple[HeadName, ...]:
    used = set(taken.tolist())
    return tuple(name for number, name in enumerate(names) if number not in used)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
