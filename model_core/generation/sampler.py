"""From logits to one token: every sequence with its own sampling parameters and its own generator.

The order is that of transformers' processors: logit_bias, end of text, repetition (Keskar et al., 2019), frequency and
presence, temperature, top k (Fan et al., 2018), nucleus of top_p (Holtzman et al., 2020), min_p (Nguyen et al., 2024).
A draw inverts the cumulative distribution with one uniform number per token. What is done for a row never depends on
the other rows, so neither does its token. Ids that only pad the vocabulary never arrive here: `ModelRunner` computes no
logits for them.

Logits that a bias or penalty changes are computed in float64: float32 rounds a logit of 20 by 1e-6, and a small
temperature multiplies that. Nothing sorts the vocabulary: the few best tokens are found as the largest numbers of a
matrix by the maxima of its columns, and a wide nucleus by bins of probability, two of which are sorted.

Shapes: A sequences, V ids of the tokenizer, K candidates, E tokens whose logits change, C tokens that may be drawn.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_core.errors import ModelCoreError
from model_core.schemas import SamplingParams

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15  # golden ratio of 64 bits: spreads the seeds of one request's choices over the whole range
_LEAST_TEMPERATURE = 1e-30  # float32 has no quotient by less; already greedy, except between equal logits
_LEAST_PENALTY = 1e-250  # float64 has no quotient of a float32 logit by less
_COLUMNS_PER_CANDIDATE = 16  # of the vocabulary as a matrix: few of the candidates meet in a column
_HEIGHT = 64  # of its columns where the number of candidates is not known before
_FEW = 512  # candidates that are sorted faster than the vocabulary is binned
_BIN_BITS = 12  # of the mass: 4,096 bins, as narrow as the range of the masses allows
_BLOCK = 256  # ids of the vocabulary that are summed before one of them is looked for
_ROUNDING = 1e-6  # relative, of sums and bounds in float32


class NonFiniteLogits(ModelCoreError):
    """The model's logits are NaN or infinite."""

    code = "checkpoint_damaged"

    def __init__(self) -> None:
        super().__init__("the model's logits are not finite: its training diverged, or its parameters are damaged")


def sample(logits: Tensor, samplers: Sequence[Sampler]) -> list[int | NonFiniteLogits]:
    """Draw the next token of every sequence.

    Args:
        logits: Logits of the next tokens, (A, V), float32, on any device; they are not changed.
        samplers: Sampler of each sequence, A of them; each counts its token.

    Returns:
        A token ids, with an error in place of the id where the logits are not finite.
    """
    tokens = tokens_at(logits, samplers, [sampler.uniform() for sampler in samplers])
    for sampler, token in zip(samplers, tokens, strict=True):
        if isinstance(token, int):
            sampler.count(token)
    return tokens


def tokens_at(logits: Tensor, samplers: Sequence[Sampler], places: Sequence[float]) -> list[int | NonFiniteLogits]:
    """Find the token at a place of each sequence's cumulative distribution.

    The distribution is ordered by logit, then id; where neither top_k nor top_p cuts it, by id.

    Args:
        logits: Logits of the next tokens, (A, V), float32, on any device; they are not changed.
        samplers: Sampler of each sequence, A of them.
        places: Numbers of [0, 1), A of them.

    Returns:
        A token ids, with an error in place of the id where the logits are not finite.
    """
    n_vocab = logits.size(1)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row, sampler in enumerate(samplers):
        groups[sampler.candidates(n_vocab)].append(row)
    found: dict[int, int | NonFiniteLogits] = {}
    for k, rows in groups.items():
        processed = [samplers[row].process(logits[row]) for row in rows]  # (V,) each
        if k == n_vocab:
            for row, values in zip(rows, processed, strict=True):
                found[row] = _find_in_vocabulary(values.cpu().numpy(), samplers[row].params, places[row])
        else:
            for row, best, ids in zip(rows, *largest(processed, k), strict=True):  # (K,) each
                found[row] = _find(best, ids, samplers[row].params, places[row])
    return [found[row] for row in range(len(samplers))]


class Sampler:
    """The sampling state of one sequence.

    Args:
        params: Sampling parameters.
        generator: Generator of this sequence, on the CPU.
        prompt: Token ids of the prompt.
        eot: Id of the end of text.

    Attributes:
        params: Sampling parameters.
    """

    def __init__(self, params: SamplingParams, generator: torch.Generator, prompt: Sequence[int], eot: int) -> None:
        self.params, self._generator, self._eot = params, generator, eot
        self._drawn = 0
        self._repetition = max(params.repetition_penalty, _LEAST_PENALTY)
        self._has_penalties = (params.frequency_penalty, params.presence_penalty, self._repetition) != (0, 0, 1)
        self._changed = _ChangedTokens(params.logit_bias, prompt if self._repetition != 1 else ())

    def uniform(self) -> float:
        """Draw the random number of the next token.

        Returns:
            A number of [0, 1).
        """
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def count(self, token: int) -> None:
        """Record a drawn token.

        Args:
            token: Its id.
        """
        self._drawn += 1
        if self._has_penalties:
            self._changed.count(token)

    def candidates(self, n_vocab: int) -> int:
        """Return how many of the largest logits decide the next token.

        Args:
            n_vocab: Ids of the tokenizer, V.

        Returns:
            K, at most V.
        """
        if self.params.temperature == 0:
            return 1
        return min(self.params.top_k or n_vocab, n_vocab)

    def process(self, logits: Tensor) -> Tensor:
        """Apply biases and penalties, and forbid tokens.

        Args:
            logits: Logits of the next token, (V,); they are not changed.

        Returns:
            The changed logits, (V,), float64; the given ones if nothing changes them.
        """
        forbidden = self._forbidden
        if not (forbidden or self._changed):
            return logits
        params, result = self.params, logits.to(torch.float64, copy=True)
        if self._changed:
            ids, bias, is_seen, counts = self._changed.tensors(logits.device)  # (E,) each
            values = result[ids] + bias  # (E,)
            if self._repetition != 1:
                repeated = torch.where(values < 0, values * self._repetition, values / self._repetition)
                values = torch.where(is_seen, repeated, values)
            values -= params.frequency_penalty * counts
            values -= params.presence_penalty * (counts > 0)
            result[ids] = values
        if forbidden:  # last, which gives the same as before the penalties
            result[torch.tensor(forbidden, device=logits.device)] = -math.inf
        return result

    @property
    def _forbidden(self) -> tuple[int, ...]:
        """Ids that must not come next."""
        if self._drawn < self.params.min_new_tokens:
            return (self._eot, *self.params.stop_token_ids)
        return (self._eot,) if self.params.ignore_eos else ()


class _ChangedTokens:
    """Tokens whose logits biases and penalties change; each has one place in all columns.

    Args:
        bias: Bias of each biased token.
        prompt: Token ids that repetition is penalized of.
    """

    def __init__(self, bias: Mapping[int, float], prompt: Sequence[int]) -> None:
        tokens, seen = dict.fromkeys([*bias, *prompt]), set(prompt)
        self._places = {token: place for place, token in enumerate(tokens)}
        self._ids, self._bias = array("q", tokens), array("d", [bias.get(token, 0.0) for token in tokens])
        self._is_seen, self._counts = array("b", [token in seen for token in tokens]), array("d", [0.0] * len(tokens))

    def __len__(self) -> int:
        return len(self._ids)

    def count(self, token: int) -> None:
        """Record a token of the output."""
        place = self._places.setdefault(token, len(self._ids))
        if place == len(self._ids):
            for column in (self._ids, self._bias, self._is_seen, self._counts):
                column.append(0)
            self._ids[place] = token
        self._is_seen[place] = True
        self._counts[place] += 1

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids, biases, whether prompt or output have the token, and how often the output has it, (E,) each."""
        columns = np.array(self._ids), np.array(self._bias), np.array(self._is_seen, dtype=bool), np.array(self._counts)
        ids, bias, is_seen, counts = (torch.from_numpy(column).to(device) for column in columns)
        return ids, bias, is_seen, counts


def choice_generator(seed: int, index: int) -> torch.Generator:
    """Create the generator of one choice of a request; choice 0 draws the same however many choices there are.

    Args:
        seed: Seed of the request.
        index: Index of the choice.

    Returns:
        A seeded generator on the CPU.
    """
    return torch.Generator().manual_seed((seed + index * _GOLDEN) % 2**63)


def largest(rows: Sequence[Tensor], k: int) -> tuple[Floats, Ids]:
    """Find the k largest numbers of each row, in order of number, then id; of equal ones those with the lowest ids.

    Args:
        rows: Numbers, (V,) each, on any device.
        k: How many, at most V.

    Returns:
        The numbers and their ids on the CPU, both (R, k). A row with NaN has NaN among them.
    """
    n_vocab = len(rows[0])
    if rows[0].device.type == "cpu" and 2 * k * _COLUMNS_PER_CANDIDATE <= n_vocab:
        found = [_largest_of_row(row.numpy(), k) for row in rows]
        return np.stack([values for values, _ in found]), np.stack([ids for _, ids in found])
    best = torch.stack(list(rows)).topk(min(k + 1, n_vocab))  # one more shows whether ties are cut
    values, ids = best.values.cpu().numpy(), best.indices.cpu().numpy()  # 2 x (R, k + 1), or (R, k) for k = V
    cut = np.flatnonzero((values[:, k - 1 : k] == values[:, k:]).any(axis=1))
    values, ids = values[:, :k], ids[:, :k]
    for number in cut.tolist():
        above = ids[number][values[number] != values[number, -1]]
        tied = np.flatnonzero(rows[number].cpu().numpy() == values[number, -1])
        ids[number] = np.concatenate([above, tied[: k - len(above)]])
    order = np.lexsort((ids, -values))  # (R, k)
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _largest_of_row(logits: Floats, k: int) -> tuple[Floats, Ids]:
    """As `largest`, of one row, (V,): at least k numbers reach the k-th largest maximum of columns."""
    if k == 1:
        ids = np.array([logits.argmax()])  # of the first NaN, where there is one
        return logits[ids], ids
    best = logits.max()
    if not np.isfinite(best):
        return np.full(k, best), np.zeros(k, dtype=np.int64)
    maxima = _column_maxima(logits, k * _COLUMNS_PER_CANDIDATE)
    ids = np.flatnonzero(logits >= np.partition(maxima, len(maxima) - k)[len(maxima) - k])  # (C,), at least k
    ids = _in_order(logits, ids)[:k]
    return logits[ids], ids


def _column_maxima(numbers: Floats, columns: int) -> Floats:
    """Maxima of the columns of numbers, (V,), as a matrix; the last V % columns numbers are left out."""
    height = len(numbers) // columns
    maxima: Floats = numbers[: height * columns].reshape(height, columns).max(axis=0)  # (columns,)
    return maxima


def _in_order(logits: Floats, ids: Ids) -> Ids:
    """Ascending ids in order of logit, then id."""
    return ids[np.argsort(-logits[ids], kind="stable")]


def _find(
    logits: Floats, ids: Ids, params: SamplingParams, place: float, total: float | None = None
) -> int | NonFiniteLogits:
    """Find the token at a place among candidates in order.

    Args:
        logits: Logits of the candidates, (K,).
        ids: Their ids, (K,).
        params: Sampling parameters.
        place: A number of [0, 1).
        total: Sum of exp((logit - best) / temperature) of which a nucleus has top_p; None for that of the candidates.

    Returns:
        A token id, or an error if the logits are not finite.
    """
    best = float(logits.max())
    if not math.isfinite(best):
        return NonFiniteLogits()
    if len(ids) == 1:
        return int(ids[0])
    with np.errstate(over="ignore"):  # quotients by little
        mass = np.exp((logits.astype(np.float64) - best) / max(params.temperature, _LEAST_TEMPERATURE))  # (K,)
    ends = mass.cumsum()  # (K,)
    nucleus = params.top_p * (float(ends[-1]) if total is None else total) if params.top_p < 1 else math.inf
    kept = _count_kept(mass, ends, nucleus, params.min_p)
    return int(ids[_index(ends[:kept], place * float(ends[kept - 1]))])


def _count_kept(mass: Floats, ends: Floats, nucleus: float, min_p: float) -> int:
    """Count the tokens, (C,) in order, that begin before the nucleus ends and have min_p of the mass of the best."""
    return min(len(ends), int(np.searchsorted(ends, nucleus)) + 1, int(np.count_nonzero(mass >= min_p)))


def _find_in_vocabulary(logits: Floats, params: SamplingParams, place: float) -> int | NonFiniteLogits:
    """Find the token at a place among all ids, (V,), without sorting them."""
    best = float(logits.max())
    if not math.isfinite(best):
        return NonFiniteLogits()
    temperature = max(params.temperature, _LEAST_TEMPERATURE)
    if params.top_p < 1:
        return _find_in_nucleus(logits, _mass(logits, best, temperature), params, place)
    if params.min_p == 0:
        return _index_in_blocks(_mass(logits, best, temperature), place)
    least = best + temperature * math.log(params.min_p)
    least -= _ROUNDING * (abs(best) + abs(least))
    ids = np.flatnonzero(logits >= least)  # (C,)
    mass = _mass(logits[ids], best, temperature)  # (C,)
    return int(ids[_index_in_blocks(mass * (mass >= params.min_p), place)])


def _mass(logits: Floats, best: float, temperature: float) -> Floats:
    """Probabilities without their common factor, (V,), float32: 1 for the best."""
    with np.errstate(over="ignore"):  # quotients by little
        exponents = logits - best  # (V,)
        if temperature != 1:
            exponents /= temperature
        exponents = exponents.astype(np.float32, copy=False)
    return torch.from_numpy(exponents).exp_().numpy()  # faster than numpy's


def _index_in_blocks(mass: Floats, place: float) -> int:
    """Index at a place of the cumulative mass, (V,)."""
    ends = np.add.reduceat(mass, np.arange(0, len(mass), _BLOCK), dtype=np.float64).cumsum()  # (V / _BLOCK,)
    target = place * ends[-1]
    block = _index(ends, target)
    within = mass[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)  # (_BLOCK,)
    return block * _BLOCK + _index(within, target - (ends[block - 1] if block else 0.0))


def _find_in_nucleus(logits: Floats, mass: Floats, params: SamplingParams, place: float) -> int | NonFiniteLogits:
    """Find the token at a place of the nucleus of all ids, (V,)."""
    total = float(torch.from_numpy(mass).sum())
    ids = _few_with(mass, params.top_p * total)
    if ids is None:
        return _find_in_bins(logits, mass, total, params, place)
    ids = _in_order(logits, ids)  # (C,)
    return _find(logits[ids], ids, params, place, total)


def _few_with(mass: Floats, needed: float) -> Ids | None:
    """Ids of the tokens with the most mass, which together have what is needed; None if these are not few."""
    if len(mass) <= _FEW:
        return np.arange(len(mass))
    maxima = _column_maxima(mass, len(mass) // _HEIGHT)
    best = np.sort(maxima)[: -_FEW - 1 : -1]  # (_FEW,), descending
    at = int(np.searchsorted(best.cumsum(dtype=np.float64), needed * (1 + _ROUNDING)))
    if at == len(best):
        return None
    ids = np.flatnonzero(mass >= best[at])
    return ids if len(ids) <= 2 * _FEW else None  # many may be equal


def _find_in_bins(logits: Floats, mass: Floats, total: float, params: SamplingParams, place: float) -> int:
    """Find the token at a place of a wide nucleus; only the bin where it ends and the bin of the place are sorted.

    Tokens are binned by the leading bits of their mass, and the mass of the bins shows in which one the nucleus ends.
    """
    # all tokens below this have less together than what the nucleus leaves, so it does not end among them
    least = np.float32((1 - params.top_p) * total / len(mass) / 2)
    bits = mass.view(np.int32)  # (V,), in the order of the mass, which is not negative
    most, lowest = int(np.float32(1).view(np.int32)), max(int(bits.min()), int(least.view(np.int32)))
    bins = most - np.maximum(bits, lowest)  # (V,)
    bins >>= max((most - lowest).bit_length() - _BIN_BITS, 0)
    ends = np.bincount(bins, weights=mass).cumsum()  # (bins,)
    nucleus = params.top_p * float(ends[-1])
    last = int(np.searchsorted(ends, nucleus))
    if params.min_p > 0:
        last = min(last, int((bins * (mass >= params.min_p)).max()))
    before = ends[last - 1] if last else 0.0
    members = _in_order(logits, np.flatnonzero(bins == last))  # (C,)
    within = mass[members].cumsum(dtype=np.float64)  # (C,)
    within = within[: _count_kept(mass[members], before + within, nucleus, params.min_p)]
    target = place * (before + within[-1])
    if target < before:
        at = _index(ends[:last], target)
        before = ends[at - 1] if at else 0.0
        members = _in_order(logits, np.flatnonzero(bins == at))  # (C,)
        within = mass[members].cumsum(dtype=np.float64)  # (C,)
    return int(members[_index(within, target - before)])


def _index(cumulative: Floats, target: float) -> int:
    """Index of the first number above the target; rounding may have put the target at the end."""
    return int(np.searchsorted(cumulative, min(target, np.nextafter(cumulative[-1], 0.0)), side="right"))
