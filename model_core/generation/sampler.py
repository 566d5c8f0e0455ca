"""From logits to one token: every sequence with its own sampling parameters and its own generator.

The order is that of transformers' processors: logit_bias, end of text, repetition (Keskar et al., 2019), frequency and
presence, temperature, top k (Fan et al., 2018), nucleus of top_p (Holtzman et al., 2020), min_p (Nguyen et al., 2024).
A draw inverts the cumulative distribution with one uniform number per token. What is done for a row never depends on
the other rows, so neither does its token. Ids that only pad the vocabulary never arrive here: `ModelRunner` computes no
logits for them.

Shapes: A sequences, V ids of the tokenizer, K candidates.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
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
_LIKELY = (2.0**-6, 2.0**-9, 2.0**-12)  # probabilities, relative to the best, that usually bound a nucleus
_ROUNDING = 1e-5  # relative, of sums in float32
_BIN_BITS = 11  # of the mass: 2,048 bins, as narrow as the range of the masses allows
_COLUMNS_PER_CANDIDATE = 16  # of the vocabulary, to bound the largest logits by the maxima of its columns
_PART = 8192  # tokens whose copies stay in the cache
_BLOCK = 256  # ids of the vocabulary that are summed before one of them is looked for


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
        params = [samplers[row].params for row in rows]
        processed = [samplers[row].process(logits[row]) for row in rows]  # (V,) each
        if k == n_vocab:
            each = zip(processed, params, rows, strict=True)
            tokens = [_find_in_vocabulary(values, wanted, places[row]) for values, wanted, row in each]
        else:
            best, ids = largest(processed, k)  # 2 x (rows, K)
            tokens = _find(best, ids, params, np.array([places[row] for row in rows]))
        found |= zip(rows, tokens, strict=True)
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
        self._output: Counter[int] = Counter()  # kept for penalties only, like _seen
        self._seen = set(prompt) if params.repetition_penalty != 1 else set()
        self._has_penalties = (params.frequency_penalty, params.presence_penalty) != (0, 0)

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
            self._output[token] += 1
        if self.params.repetition_penalty != 1:
            self._seen.add(token)

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
            The changed logits, (V,); the given ones if nothing changes them.
        """
        forbidden = self._forbidden
        if not (forbidden or self.params.logit_bias or self._seen or self._output):
            return logits
        params, device, result = self.params, logits.device, logits.clone()
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=device)
            result[ids] += torch.tensor(list(params.logit_bias.values()), device=device)
        if self._seen:
            ids = torch.tensor(list(self._seen), device=device)
            values, penalty = result[ids].double(), params.repetition_penalty
            values = torch.where(values < 0, values * penalty, values / penalty)
            limit = torch.finfo(result.dtype).max  # a small penalty must not make infinity of a logit
            result[ids] = values.clamp(-limit, limit).to(result.dtype)
        if self._output:
            ids = torch.tensor(list(self._output), device=device)
            counts = torch.tensor(list(self._output.values()), device=device)
            result[ids] -= params.frequency_penalty * counts
            result[ids] -= params.presence_penalty
        if forbidden:  # last, which gives the same as before the penalties, but no product with infinity
            result[torch.tensor(forbidden, device=device)] = -math.inf
        return result

    @property
    def _forbidden(self) -> tuple[int, ...]:
        """Ids that must not come next."""
        if self._drawn < self.params.min_new_tokens:
            return (self._eot, *self.params.stop_token_ids)
        return (self._eot,) if self.params.ignore_eos else ()


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
    best = logits.max()
    if not np.isfinite(best):
        return np.full(k, best), np.zeros(k, dtype=np.int64)
    if k == 1:
        ids = np.array([logits.argmax()])
        return logits[ids], ids
    columns = k * _COLUMNS_PER_CANDIDATE
    height = len(logits) // columns
    maxima = logits[: columns * height].reshape(height, columns).max(axis=0)  # (columns,)
    ids = np.flatnonzero(logits >= np.partition(maxima, columns - k)[columns - k])  # at least k
    ids = ids[np.argsort(-logits[ids], kind="stable")[:k]]
    return logits[ids], ids


def _find(logits: Floats, ids: Ids, params: Sequence[SamplingParams], places: Floats) -> list[int | NonFiniteLogits]:
    """Find the tokens at places among candidates in order, logits and ids (R, K), places (R,)."""
    temperature = np.array([max(one.temperature, _LEAST_TEMPERATURE) for one in params])[:, None]  # (R, 1)
    top_p, min_p = (np.array([getattr(one, name) for one in params])[:, None] for name in ("top_p", "min_p"))  # (R, 1)
    finite = np.isfinite(logits.max(axis=1))  # (R,)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        exponents = (logits.astype(np.float64) - logits[:, :1]) / temperature  # (R, K)
    # probabilities without their common factor; row by row, because the last bit may depend on the place in an array
    mass = np.stack([np.exp(row) for row in exponents])  # (R, K)
    ends = mass.cumsum(axis=1)  # (R, K)
    is_kept = ((ends - mass < top_p * ends[:, -1:]) | (top_p == 1)) & (mass >= min_p)  # (R, K), a prefix of each row
    last = np.maximum(is_kept.sum(axis=1) - 1, 0)  # (R,)
    total = ends[np.arange(len(last)), last]  # (R,)
    target = np.minimum(places * total, np.nextafter(total, 0.0))  # (R,)
    index = (ends <= target[:, None]).sum(axis=1)  # (R,)
    return [
        int(row[at]) if is_finite else NonFiniteLogits() for row, at, is_finite in zip(ids, index, finite, strict=True)
    ]


def _find_in_vocabulary(logits: Tensor, params: SamplingParams, place: float) -> int | NonFiniteLogits:
    """Find the token at a place among all ids, (V,), without sorting them."""
    best = float(logits.max())
    if not math.isfinite(best):
        return NonFiniteLogits()
    exponents = logits - best  # (V,)
    if params.temperature != 1:
        exponents.div_(max(params.temperature, _LEAST_TEMPERATURE))
    mass = exponents.exp_().cpu().numpy()  # (V,), 1 for the best
    if params.top_p == 1 and params.min_p > 0:
        mass = np.where(mass >= params.min_p, mass, np.float32(0))  # (V,)
    ends = np.add.reduceat(mass, np.arange(0, len(mass), _BLOCK), dtype=np.float64).cumsum()  # (V / _BLOCK,)
    if params.top_p < 1:
        return _find_in_nucleus(logits.cpu().numpy(), mass, float(ends[-1]), params, place)
    block = _index(ends, place * ends[-1])
    within = mass[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)  # (_BLOCK,)
    return block * _BLOCK + _index(within, place * ends[-1] - (ends[block - 1] if block else 0.0))


def _find_in_nucleus(logits: Floats, mass: Floats, total: float, params: SamplingParams, place: float) -> int:
    """Find the token at a place of the nucleus; only the part where it ends and the part of the place are sorted.

    Tokens are binned by the leading bits of their mass, and the mass of the bins shows in which one the nucleus ends.
    """
    nucleus = params.top_p * total
    ids = _most_likely(mass, nucleus)
    if ids is not None:
        logits, mass = logits[ids], mass[ids]  # 2 x (C,)
    bits = mass.view(np.int32)  # in the order of the mass, which is not negative
    most = int(np.float32(1).view(np.int32))  # of the best
    bins = most - bits  # (C,)
    bins >>= max((most - int(bits.min())).bit_length() - _BIN_BITS, 0)
    ends = _mass_of_bins(bins, mass).cumsum()  # (bins,)
    last = int(np.searchsorted(ends, min(nucleus, ends[-1]), side="left"))
    if params.min_p > 0:
        last = min(last, int(bins[mass >= params.min_p].max()))
    before = ends[last - 1] if last else 0.0
    members = _bin_in_order(logits, bins, last)
    within = mass[members].cumsum(dtype=np.float64)  # (members,)
    within = within[(before + within - mass[members] < nucleus) & (mass[members] >= params.min_p)]  # (members kept,)
    target = place * (before + (within[-1] if len(within) else 0.0))
    if len(within) and target >= before:
        found = members[_index(within, target - before)]
    else:
        at = _index(ends[:last], target)
        members = _bin_in_order(logits, bins, at)
        within = mass[members].cumsum(dtype=np.float64)  # (members,)
        found = members[_index(within, target - (ends[at - 1] if at else 0.0))]
    return int(found if ids is None else ids[found])


def _most_likely(mass: Floats, needed: float) -> Ids | None:
    """Ids of the tokens with the most mass, which together have what is needed; None if these are not few."""
    for least in _LIKELY:
        is_likely = mass >= least
        if np.count_nonzero(is_likely) > len(mass) // 8:
            return None
        ids = np.flatnonzero(is_likely)  # (C,)
        if mass[ids].sum(dtype=np.float64) > needed * (1 + _ROUNDING):
            return ids
    return None


def _mass_of_bins(bins: NDArray[np.int32], mass: Floats) -> Floats:
    """Add up the mass of each bin, a part at a time, because bincount copies both to wider types."""
    sums = np.zeros(1 << _BIN_BITS)  # (bins,)
    for at in range(0, len(bins), _PART):
        sums += np.bincount(bins[at : at + _PART], weights=mass[at : at + _PART], minlength=len(sums))
    return sums


def _bin_in_order(logits: Floats, bins: NDArray[np.int32], number: int) -> Ids:
    """Members of a bin in order of logit, then id."""
    members = np.flatnonzero(bins == number)
    return members[np.argsort(-logits[members], kind="stable")]


def _index(cumulative: Floats, target: float) -> int:
    """Index of the first number above the target; rounding may have put the target at the end."""
    return int(np.searchsorted(cumulative, min(target, np.nextafter(cumulative[-1], 0.0)), side="right"))
