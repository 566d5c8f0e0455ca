"""Distribution of what heads do over many texts, which one text hides: accumulators that are filled in one pass.

Four parts: the statistics of every head on every text; how far heads look, by distance; which key tokens receive more
weight than even attention gives the same places (their lift); which query tokens look elsewhere than at the first key
and at themselves. Memory is bounded before the first pass by `distribution_bytes`.

Shapes: N texts, B texts of one batch, H heads of one layer, S heads of all layers, T tokens of the longest text, R
queries of a block, K keys that they see, M metrics, V token ids that occur in the texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.attention.head_metrics import FORMULAS, INDEX_METRICS
from model_core.attention.statistics import HeadAccumulator, even_statistics
from model_core.errors import AttentionTooLarge, FieldProblem

Array = NDArray[Any]

MAX_DISTRIBUTION_BYTES = 2**30
BATCH_TOKENS = 2**11  # of texts that are read together
SHORTEST = 2  # tokens: the only query of a shorter text sees a single key
DECILES = np.linspace(0, 1, 11)
HIGHEST = 5  # texts with the highest values that are named
TEXT_METRICS = tuple(name for name in FORMULAS if name not in INDEX_METRICS)  # those with a mean over texts

DISTRIBUTION_FORMULAS = {
    "distances": "share of the weight of queries i >= 1 by i - j; even: of p = 1 / (i + 1) on the same queries",
    "key_tokens": "lift: weight that a token's places j >= 1 receive, over what even attention gives the same places",
    "query_tokens": "share: mean over queries i >= 2 of 1 - p[i, 0] - p[i, i]; even: mean of (i - 1) / (i + 1)",
}


@dataclass(frozen=True)
class TextSample:
    """Test examples over which a distribution is measured.

    Attributes:
        examples: Number of each example in its dataset.
        texts: Token ids of each example, cut to the wanted length, at least `SHORTEST`.
    """

    examples: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, examples: Sequence[int], texts: Iterable[Sequence[int]], max_tokens: int) -> TextSample:
        """Cut texts, and leave out those that are too short.

        Args:
            examples: Number of each example.
            texts: Token ids of each example.
            max_tokens: Most tokens of a text.

        Returns:
            The sample, which may be empty.
        """
        cut = [(number, tuple(ids[:max_tokens])) for number, ids in zip(examples, texts, strict=True)]
        kept = [(number, ids) for number, ids in cut if len(ids) >= SHORTEST]
        return cls(tuple(number for number, _ in kept), tuple(ids for _, ids in kept))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each text, (N,)."""
        return np.array([len(ids) for ids in self.texts], np.int64)

    @cached_property
    def vocabulary(self) -> NDArray[np.int64]:
        """Token ids that occur, ascending, (V,)."""
        return np.unique(np.concatenate([np.asarray(ids, np.int64) for ids in self.texts]))

    @property
    def sha256(self) -> str:
        """Hash of the token ids, each text preceded by its length, as little-endian uint32."""
        digest = hashlib.sha256()
        for ids in self.texts:
            digest.update(np.array([len(ids), *ids], "<u4").tobytes())
        return digest.hexdigest()

    def batches(self) -> Iterator[list[int]]:
        """Group texts of one length, so that they are read together without padding.

        Yields:
            Indices into `texts`, (B,); B T is at most `BATCH_TOKENS`, unless a single text has more.
        """
        order = np.argsort(self.lengths, kind="stable")
        borders = np.flatnonzero(np.diff(self.lengths[order])) + 1
        for group in np.split(order, borders):
            size = max(1, BATCH_TOKENS // int(self.lengths[group[0]]))
            yield from (group[start : start + size].tolist() for start in range(0, len(group), size))


def spread_examples(available: int, wanted: int) -> list[int]:
    """Choose examples at even places of a dataset.

    Args:
        available: Number of examples of the dataset.
        wanted: Number of examples to choose.

    Returns:
        Their numbers, ascending; all if there are no more than wanted.
    """
    count = min(available, wanted)
    return [place * available // count for place in range(count)]


def distribution_bytes(n_heads: int, examples: int, tokens: int, vocabulary: int) -> int:
    """Compute the memory of the accumulators.

    Args:
        n_heads: Heads of all layers, S.
        examples: Number of texts, N.
        tokens: Tokens of the longest text, T.
        vocabulary: Different token ids of the texts, V, or more.

    Returns:
        Bytes: values, distances, key tokens and query tokens.
    """
    values = 4 * examples * len(TEXT_METRICS)
    return n_heads * (values + 8 * tokens + 16 * min(vocabulary, examples * tokens))


def check_distribution(n_heads: int, examples: int, tokens: int, vocabulary: int, *, pointer: str) -> None:
    """Check the size of a distribution before anything is computed.

    Args:
        n_heads: Heads of all layers, S.
        examples: Number of texts, N.
        tokens: Most tokens of a text, T.
        vocabulary: Size of the model's vocabulary.
        pointer: JSON pointer to the number of examples in the request.

    Raises:
        AttentionTooLarge: It would take more than `MAX_DISTRIBUTION_BYTES`; `nearest` is the largest number of
            examples that fits.
    """

    def needed(count: int) -> int:
        return distribution_bytes(n_heads, count, tokens, vocabulary)

    if needed(examples) <= MAX_DISTRIBUTION_BYTES:
        return
    most, over = 0, examples
    while over - most > 1:  # the need grows with the number
        middle = (most + over) // 2
        most, over = (middle, over) if needed(middle) <= MAX_DISTRIBUTION_BYTES else (most, middle)
    detail = (
        f"{examples} examples of {tokens} tokens under {n_heads} heads take {needed(examples):,} bytes; the bound is "
        f"{MAX_DISTRIBUTION_BYTES:,}" + (f": {most} examples fit" if most else ", which one example of them exceeds")
    )
    raise AttentionTooLarge(detail, (FieldProblem(pointer, detail, examples, (most,) if most else ()),))


@dataclass(frozen=True)
class Distribution:
    """What was measured; the first axis of each is a head, layer after layer, except of `values`.

    Attributes:
        values: The `TEXT_METRICS` of every text, (N, S, M) float32; NaN where a text is too short.
        distances: Summed weight of queries i >= 1 at each distance i - j, (S, T) float64.
        received: Summed weight that each token id receives at places j >= 1, (S, V) float64.
        elsewhere: Summed weight that queries i >= 2 of each token id give to others than the first key and itself,
            (S, V) float64.
    """

    values: NDArray[np.float32]
    distances: NDArray[np.float64]
    received: NDArray[np.float64]
    elsewhere: NDArray[np.float64]


class DistributionAccumulator:
    """Collects a distribution, one layer of one batch at a time.

    Args:
        sample: The texts.
        heads: Head count of every layer.
    """

    def __init__(self, sample: TextSample, heads: Sequence[int]) -> None:
        n_heads, tokens, ids = sum(heads), int(sample.lengths.max()), len(sample.vocabulary)
        self._sample, self._ends = sample, np.cumsum([0, *heads])
        self._values = np.full((len(sample.texts), n_heads, len(TEXT_METRICS)), np.nan, np.float32)  # (N, S, M)
        self._distances = np.zeros((n_heads, tokens))  # (S, T)
        self._received = np.zeros((ids, n_heads))  # (V, S)
        self._elsewhere = np.zeros((ids, n_heads))  # (V, S)

    def layer(self, texts: Sequence[int], layer: int) -> LayerAccumulator:
        """Begin a layer of a batch.

        Args:
            texts: Indices of the batch's texts in the sample, (B,), all of one length.
            layer: Index of the layer.

        Returns:
            Takes the blocks of its attention; its `finish` is followed by `add`.
        """
        tokens = int(self._sample.lengths[texts[0]])
        return LayerAccumulator(tokens, len(texts), int(self._ends[layer + 1] - self._ends[layer]))

    def add(self, texts: Sequence[int], layer: int, part: LayerAccumulator) -> None:
        """Add a layer of a batch, all of whose blocks were added.

        Args:
            texts: As in `layer`.
            layer: As in `layer`.
            part: What `layer` returned.
        """
        heads = slice(int(self._ends[layer]), int(self._ends[layer + 1]))
        self._values[texts, heads] = part.values()
        for place, text in enumerate(texts):
            ids = np.searchsorted(self._sample.vocabulary, self._sample.texts[text])  # (T,)
            np.add.at(self._received[:, heads], ids[1:], part.received[place, :, 1:].T)
            np.add.at(self._elsewhere[:, heads], ids[2:], part.elsewhere[place, :, 2:].T)
        self._distances[heads, : part.distances.shape[1]] += part.distances

    def finish(self) -> Distribution:
        """Return what was measured.

        Returns:
            The distribution.
        """
        return Distribution(
            self._values,
            self._distances,
            np.ascontiguousarray(self._received.T),
            np.ascontiguousarray(self._elsewhere.T),
        )


class LayerAccumulator:
    """Sums over one layer's attention on texts of one length, in blocks of queries.

    Args:
        tokens: Tokens of each text, T.
        n_text: Number of texts, B.
        n_head: Heads of the layer, H.

    Attributes:
        received: Weight that each key receives from all queries, (B, H, T).
        elsewhere: Weight that each query gives to others than the first key and itself, (B, H, T).
        distances: Weight of queries i >= 1 at each distance, summed over the texts, (H, T).
    """

    def __init__(self, tokens: int, n_text: int, n_head: int) -> None:
        self._statistics = HeadAccumulator(tokens, n_text * n_head)
        self._shape = (n_text, n_head)
        self.received = np.zeros((n_text, n_head, tokens))  # (B, H, T)
        self.elsewhere = np.zeros((n_text, n_head, tokens))  # (B, H, T)
        self.distances = np.zeros((n_head, tokens))  # (H, T)

    def add(
        self,
        first: int,
        attention: NDArray[np.float32],
        *,
        value_norms: Array | None = None,
        output_norms: Array | None = None,
    ) -> None:
        """Add the next block of queries.

        Args:
            first: Index of its first query.
            attention: Attention, (B, H, R, K) with K = `first` + R.
            value_norms: Norms of what each key contributes, (B, H, K), if they are known.
            output_norms: Norms of what each query receives, (B, H, R), if they are known.
        """
        rows, keys = attention.shape[2:]
        self._statistics.add(
            first,
            attention.reshape(-1, rows, keys),  # (B H, R, K)
            value_norms=None if value_norms is None else value_norms.reshape(-1, keys),  # (B H, K)
            output_norms=None if output_norms is None else output_norms.reshape(-1, rows),  # (B H, R)
        )
        itself = np.arange(rows), np.arange(first, keys)
        self.elsewhere[:, :, first:keys] = 1.0 - attention[..., 0] - attention[..., *itself]  # (B, H, R)
        self.received[:, :, :keys] += attention.sum(axis=2)  # (B, H, K)
        self.distances[:, :keys] += by_distance(attention.sum(axis=0))  # (H, K)
        if first == 0:  # the first query has no choice: all its weight has distance 0
            self.distances[:, 0] -= attention[:, :, 0, 0].sum(axis=0)  # (H,)

    def values(self) -> NDArray[np.float32]:
        """Finish the statistics.

        Returns:
            The `TEXT_METRICS` of every text and head, (B, H, M); NaN where the texts are too short.
        """
        values = np.full((*self._shape, len(TEXT_METRICS)), np.nan, np.float32)  # (B, H, M)
        columns = self._statistics.columns()
        for metric, name in enumerate(TEXT_METRICS):
            if (column := columns[name]) is not None:
                values[..., metric] = column.reshape(self._shape)  # (B, H)
        return values


def by_distance(attention: Array) -> Array:
    """Sum attention along its diagonals.

    Args:
        attention: Attention of R queries, the last of which is also the last key, (H, R, K).

    Returns:
        Weight at each distance from query back to key, (H, K).
    """
    heads, rows, keys = attention.shape
    width = keys + rows - 1
    padded = np.zeros((heads, rows, width), attention.dtype)  # (H, R, K + R - 1)
    padded[..., :keys] = attention[..., ::-1]  # row r has distance d at column d + R - 1 - r
    step = padded.strides[-1]
    aligned = np.lib.stride_tricks.as_strided(
        padded[..., rows - 1 :], (heads, rows, keys), (padded.strides[0], (width - 1) * step, step), writeable=False
    )  # (H, R, K) column d has distance d
    summed: Array = aligned.sum(axis=1, dtype=np.float64)  # (H, K)
    return summed


@dataclass(frozen=True)
class EvenSums:
    """The sums that even attention, p = 1 / (i + 1), has on the same texts.

    Attributes:
        queries: Queries i >= 1 of all texts.
        distances: Summed weight at each distance, (T,).
        received: Summed weight that each token id receives at places j >= 1, (V,).
        received_count: Places j >= 1 of each token id, (V,).
        elsewhere: Summed weight of queries i >= 2 on others than the first key and itself, by token id, (V,).
        elsewhere_count: Queries i >= 2 of each token id, (V,).
    """

    queries: int
    distances: NDArray[np.float64]
    received: NDArray[np.float64]
    received_count: NDArray[np.int64]
    elsewhere: NDArray[np.float64]
    elsewhere_count: NDArray[np.int64]

    @classmethod
    def of(cls, sample: TextSample) -> EvenSums:
        """Compute them in closed form.

        Args:
            sample: The texts.

        Returns:
            The sums.
        """
        longest = int(sample.lengths.max())
        n_keys = np.arange(1.0, longest + 1)  # (T,) keys that each query sees
        texts = (sample.lengths[:, None] > np.arange(longest)).sum(axis=0)  # (T,) texts that have query i
        weights = np.where(n_keys > 1, texts / n_keys, 0.0)  # (T,) of one key, for all queries i >= 1
        sums = cls(
            queries=int((sample.lengths - 1).sum()),
            distances=np.cumsum(weights[::-1])[::-1],  # (T,) a query i has every distance up to i
            received=np.zeros(len(sample.vocabulary)),
            received_count=np.zeros(len(sample.vocabulary), np.int64),
            elsewhere=np.zeros(len(sample.vocabulary)),
            elsewhere_count=np.zeros(len(sample.vocabulary), np.int64),
        )
        others = (n_keys - 2) / n_keys  # (T,)
        harmonic = np.cumsum(np.append(0.0, 1 / n_keys))  # (T + 1,)
        for ids in map(np.asarray, sample.texts):
            index = np.searchsorted(sample.vocabulary, ids)
            received = harmonic[len(ids)] - harmonic[: len(ids)]  # (T,) from the queries i >= j
            np.add.at(sums.received, index[1:], received[1:])
            np.add.at(sums.received_count, index[1:], 1)
            np.add.at(sums.elsewhere, index[2:], others[2 : len(ids)])
            np.add.at(sums.elsewhere_count, index[2:], 1)
        return sums


def even_means(sample: TextSample) -> dict[str, float | None]:
    """Average the statistics of even attention over the texts.

    Args:
        sample: The texts.

    Returns:
        For each of the `TEXT_METRICS` its mean over the texts that are long enough for it; None where even attention
        has no value.
    """
    lengths, counts = np.unique(sample.lengths, return_counts=True)
    found = [even_statistics(int(length)) for length in lengths]
    means: dict[str, float | None] = {}
    for name in TEXT_METRICS:
        known = [(even[name], int(count)) for even, count in zip(found, counts, strict=True) if even[name] is not None]
        total = sum(count for _, count in known)
        means[name] = sum((value or 0.0) * count for value, count in known) / total if total else None
    return means


def distance_bins(tokens: int) -> list[tuple[int, int]]:
    """Divide distances into bins that double: 0, 1, 2, 3-4, 5-8 and so on.

    Args:
        tokens: Tokens of the longest text, T.

    Returns:
        First and last distance of each bin; the last bin ends at T - 1.
    """
    bins, start, last = [(0, 0)], 1, 1
    while start < tokens:
        bins.append((start, min(last, tokens - 1)))
        start, last = last + 1, last * 2
    return bins


@dataclass(frozen=True)
class Quantiles:
    """One statistic of every head over the texts.

    Attributes:
        mean: Mean, (S,).
        sd: Standard deviation of the texts, (S,).
        deciles: Smallest value, the nine deciles, largest value, (11, S); exact, with linear interpolation.
        at_decile: Index of the text whose value is nearest to each decile, (11, S).
        highest: Indices of the texts with the highest values, the highest first, (`HIGHEST` or fewer, S).
    """

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    deciles: NDArray[np.float64]
    at_decile: NDArray[np.int64]
    highest: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Quantiles | None:
        """Compute them.

        Args:
            values: Values of one statistic, (N, S); a text that is too short for it has NaN for every head.

        Returns:
            The quantiles; None if no text has a value.
        """
        texts = np.flatnonzero(~np.isnan(values).any(axis=1))
        if not texts.size:
            return None
        kept = values[texts].astype(np.float64)  # (N', S)
        deciles = np.quantile(kept, DECILES, axis=0)  # (11, S)
        nearest = [np.abs(kept - decile).argmin(axis=0) for decile in deciles]
        order = np.argsort(-kept, axis=0, kind="stable")[:HIGHEST]  # (5, S)
        return cls(kept.mean(axis=0), kept.std(axis=0), deciles, texts[np.array(nearest)], texts[order])
