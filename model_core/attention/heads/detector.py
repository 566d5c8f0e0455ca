"""Labels of heads: previous token, self, sink, induction, duplicate.

A label needs four gates: the score is above that of keys shuffled in each row, it is the largest of its rivals (other
distances or keys), for patterns that need a repetition it is above the score where nothing repeats, and it is large.
Most heads have no label. A label describes what a head does on the probe, not whether the model needs it.

Shapes: S sequences, H heads of one layer, T tokens, R queries of one block, K keys that the block's last query sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
HeadType = Literal["previous", "self", "sink", "induction", "duplicate"]
Strength = Literal["weak", "strong"]

TYPES: tuple[HeadType, ...] = ("previous", "self", "sink", "induction", "duplicate")
SD = 3.0  # standard deviations above shuffled keys, and above the control
TIMES_CONTROL, TIMES_CHANCE = 2.0, 3.0
WEAK, STRONG = 0.1, 0.3  # least score; that of sinks in Gu et al. 2024, arXiv:2410.10781, is .3

_REACH = 32  # largest distance that competes with those to the token itself and the one before
_SHIFTS = 8  # largest shift from the earlier copy that competes with 0 and 1
_LEAST_SD = 1e-6  # of a shuffled score: what even attention has in float32 is rounding


@dataclass(frozen=True)
class Pattern:
    """Where a head of one type looks: at one distance, or at one key.

    Attributes:
        type: Its type.
        rows: Queries whose attention to the target is the score: first, and after the last.
        target: Distance from a query back to its target; with `is_key` the index of the target.
        rival_rows: Queries of the comparison with the rivals, each of which has all of them.
        rivals: Distances or keys of the comparison, the target among them.
        is_key: Whether target and rivals are keys instead of distances.
    """

    type: HeadType
    rows: tuple[int, int]
    target: int
    rival_rows: tuple[int, int]
    rivals: range
    is_key: bool = False

    @property
    def chance(self) -> float:
        """Score of even attention, and of keys shuffled in each row: the mean of 1 / (i + 1)."""
        return float((1 / (np.arange(*self.rows) + 1)).mean())


def natural_patterns(tokens: int) -> tuple[Pattern, ...]:
    """Describe the patterns of any text.

    Args:
        tokens: Number of tokens, T.

    Returns:
        Previous token and self among distances, and the first token among keys of the first half; none for one token.
    """
    if tokens < 2:
        return ()
    reach, half = min(_REACH, tokens // 2), tokens // 2
    rows, distances = (reach, tokens), range(reach + 1)
    return (
        Pattern("previous", rows, 1, rows, distances),
        Pattern("self", rows, 0, rows, distances),
        Pattern("sink", rows, 0, (half, tokens), range(half), is_key=True),
    )


def repeated_patterns(half: int) -> tuple[Pattern, ...]:
    """Describe the patterns of a text that consists of a sequence and its repetition.

    Args:
        half: Tokens of the sequence, at least 4.

    Returns:
        Induction, which looks at what came after the earlier copy, and duplicate, which looks at the copy; the rivals
        are shifts of -8 to 8 from the copy.
    """
    shifts = min(_SHIFTS, half // 4)
    rival_rows, distances = (half + shifts, 2 * half - shifts), range(half - shifts, half + shifts + 1)
    return (
        Pattern("induction", (half, 2 * half - 1), half - 1, rival_rows, distances),
        Pattern("duplicate", (half, 2 * half), half, rival_rows, distances),
    )


@dataclass(frozen=True, eq=False)
class PatternScore:
    """How far the heads of a layer follow a pattern.

    Attributes:
        each: Score of each sequence, (S, H).
        chance: Mean of the score with the keys of each row shuffled.
        sd: Its standard deviation, (H,).
        is_peak: Whether the pattern is strictly the largest of its rivals, (H,).
    """

    each: Array
    chance: float
    sd: Array
    is_peak: Array

    @property
    def score(self) -> Array:
        """Mean over the sequences, (H,)."""
        mean: Array = self.each.mean(axis=0)  # (H,)
        return mean

    @property
    def z(self) -> Array:
        """Standard deviations above shuffled keys, (H,)."""
        z: Array = (self.score - self.chance) / np.maximum(self.sd, _LEAST_SD)  # (H,)
        return z


class PatternAccumulator:
    """Scores the heads of one layer from blocks of queries; each query is given once.

    Args:
        patterns: The patterns of the texts.
        sequences: Number of sequences, S.
        n_head: Number of heads, H.
    """

    def __init__(self, patterns: Sequence[Pattern], sequences: int, n_head: int) -> None:
        self._patterns = patterns
        self._hits = np.zeros((len(patterns), sequences, n_head))  # sums over the rows
        self._variances = np.zeros((len(patterns), n_head))  # sums over sequences and rows
        self._rivals = [np.zeros((len(pattern.rivals), n_head)) for pattern in patterns]  # sums, (rivals, H) each

    def add(self, first: int, attention: Array) -> None:
        """Add a block of queries.

        Args:
            first: Index of its first query.
            attention: Its rows, each with sum 1 and zeros after the query itself, (S, H, R, K).
        """
        skipped = max(
            0, min((pattern.rows[0] for pattern in self._patterns), default=0) - first
        )  # rows that no pattern counts
        first, stop, attention = first + skipped, first + attention.shape[2], attention[:, :, skipped:]  # (S, H, R', K)
        if not attention.shape[2]:
            return
        squares = np.einsum("shrk,shrk->hr", attention, attention).astype(np.float64)  # (H, R')
        compared: dict[tuple[Any, ...], Array] = {}  # two patterns of the same rivals share their sums
        for place, pattern in enumerate(self._patterns):
            is_key, rows = pattern.is_key, _overlap(pattern.rows, first, stop)
            if rows.size:
                self._hits[place] += _sums(attention, rows, first, pattern.target, is_key=is_key)  # (S, H)
                seen = rows + 1.0  # (R'',)
                spread = squares[:, rows - first] / seen - len(attention) / seen**2  # (H, R'') of shuffled rows
                self._variances[place] += np.maximum(spread, 0).sum(axis=1)  # (H,)
            family = (pattern.rival_rows, pattern.rivals, is_key)
            if family not in compared:
                compared[family] = self._compare(pattern, first, attention)  # (rivals, H)
            self._rivals[place] += compared[family]

    def finish(self) -> dict[HeadType, PatternScore]:
        """Return the scores.

        Returns:
            By type.
        """
        found = {}
        for pattern, hits, variance, rivals in zip(
            self._patterns, self._hits, self._variances, self._rivals, strict=True
        ):
            rows = pattern.rows[1] - pattern.rows[0]
            place = pattern.rivals.index(pattern.target)
            others = np.delete(rivals, place, axis=0)  # (rivals - 1, H)
            found[pattern.type] = PatternScore(
                each=hits / rows,
                chance=pattern.chance,
                sd=np.sqrt(variance) / (rows * len(hits)),
                is_peak=rivals[place] > others.max(axis=0, initial=0),
            )
        return found

    def _compare(self, pattern: Pattern, first: int, attention: Array) -> Array:
        rows = _overlap(pattern.rival_rows, first, first + attention.shape[2])
        if not rows.size:
            return np.zeros((len(pattern.rivals), attention.shape[1]))  # (rivals, H)
        sums = [_sums(attention, rows, first, rival, is_key=pattern.is_key).sum(axis=0) for rival in pattern.rivals]
        return np.stack(sums)  # (rivals, H)


@dataclass(frozen=True)
class HeadLabel:
    """A type that a head has.

    Attributes:
        type: The type.
        strength: ``weak`` or ``strong``.
        score: Mean attention to the pattern's target, from 0 to 1.
        chance: The same of even attention.
        z: Standard deviations of the score above that of shuffled keys.
        control: Score at the same places where nothing repeats; None for types that need no repetition.
    """

    type: HeadType
    strength: Strength
    score: float
    chance: float
    z: float
    control: float | None


def label_heads(
    n_head: int, scores: Mapping[HeadType, PatternScore], controls: Mapping[HeadType, PatternScore]
) -> list[list[HeadLabel]]:
    """Label the heads of a layer.

    Args:
        n_head: Number of heads, H.
        scores: Scores of each type, from at least 2 sequences.
        controls: For types that need a repetition, their scores on texts without one.

    Returns:
        Labels of every head; of most none.
    """
    labels: list[list[HeadLabel]] = [[] for _ in range(n_head)]
    for name, found in scores.items():
        score, z, control = found.score, found.z, controls.get(name)  # 2 x (H,)
        surely = score - _sd(found.each) / np.sqrt(len(found.each))  # (H,) by one standard error
        passed = (z > SD) & found.is_peak & (surely >= max(WEAK, TIMES_CHANCE * found.chance))  # (H,)
        if control is not None:
            passed &= (score > control.score + SD * _sd(control.each)) & (score >= TIMES_CONTROL * control.score)
        for head in np.flatnonzero(passed).tolist():
            labels[head].append(
                HeadLabel(
                    type=name,
                    strength="strong" if surely[head] >= STRONG else "weak",
                    score=float(score[head]),
                    chance=found.chance,
                    z=float(z[head]),
                    control=None if control is None else float(control.score[head]),
                )
            )
    return labels


def _overlap(rows: tuple[int, int], first: int, stop: int) -> Array:
    return np.arange(max(rows[0], first), min(rows[1], stop))  # (R'',)


def _sums(attention: Array, rows: Array, first: int, target: int, *, is_key: bool) -> Array:
    """Attention of consecutive rows to their targets, summed over the rows, (S, H)."""
    low, high = int(rows[0]) - first, int(rows[-1]) + 1 - first
    if is_key:
        hits = attention[:, :, low:high, target]  # (S, H, R')
    else:
        whole = np.diagonal(attention[:, :, low:high], offset=low + first - target, axis1=2, axis2=3)
        hits = whole[:, :, : high - low]  # (S, H, R')
    sums: Array = hits.sum(axis=-1, dtype=np.float64)  # (S, H)
    return sums


def _sd(each: Array) -> Array:
    spread: Array = each.std(axis=0, ddof=1)  # (H,)
    return spread
