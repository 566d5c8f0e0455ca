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
_BINS, _BINNED_NATS = 2048, 30.0  # bins of the logits below the largest; further down, bins as wide
_MOST_NATS = 100.0  # what is further below the largest has no mass in float32
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
    changed = {row: sampler.process(logits[row]) for row, sampler in enumerate(samplers) if sampler.changes_logits}
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row, sampler in enumerate(samplers):
        groups[sampler.candidates(n_vocab)].append(row)
    found: dict[int, int | NonFiniteLogits] = {}
    for k, rows in groups.items():
        if k == n_vocab:
            for row in rows:
                found[row] = _find_in_vocabulary(changed.get(row, logits[row]), samplers[row].params, places[row])
            continue
        whole = len(rows) == len(samplers) and not changed
        part = logits if whole else torch.stack([changed.get(row, logits[row]) for row in rows])  # (rows, V)
        values, ids = largest(part, k)  # 2 x (rows, K): one transfer per group
        for row, best, tokens in zip(rows, values, ids, strict=True):
            found[row] = _find(best, tokens, samplers[row].params, places[row])
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

    @property
    def changes_logits(self) -> bool:
        """Whether `process` changes the logits of the next token."""
        return bool(self._forbidden or self.params.logit_bias or self._seen or self._output)

    def process(self, logits: Tensor) -> Tensor:
        """Apply biases and penalties, and forbid tokens.

        Args:
            logits: Logits of the next token, (V,); they are not changed.

        Returns:
            The changed logits, (V,).
        """
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
        if self._forbidden:  # last, which gives the same as before the penalties, but no product with infinity
            result[torch.tensor(self._forbidden, device=device)] = -math.inf
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


def largest(logits: Tensor, k: int) -> tuple[Floats, Ids]:
    """Find the k largest numbers of each row, in order of number, then id; of equal ones the lowest ids.

    Args:
        logits: Numbers, (R, V), on any device.
        k: How many, at most V.

    Returns:
        The numbers and their ids on the CPU, both (R, k). A row with NaN has NaN among them.
    """
    if k == 1:
        top = logits.max(dim=-1, keepdim=True)  # the first of equal ones
        return top.values.cpu().numpy(), top.indices.cpu().numpy()
    n_vocab = logits.size(1)
    best = logits.topk(min(k + 1, n_vocab))  # one more shows whether ties are cut
    values, ids = best.values.cpu().numpy(), best.indices.cpu().numpy()  # 2 x (R, k + 1)
    if k < n_vocab:
        cut = np.flatnonzero(values[:, k - 1] == values[:, k])
        values, ids = values[:, :k], ids[:, :k]
        for row in cut:
            every = logits[row].cpu().numpy()  # (V,)
            ids[row] = _with_lowest_ties(every, ids[row], values[row, -1])
            values[row] = every[ids[row]]
    order = np.lexsort((ids, -values))  # (R, k)
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _with_lowest_ties(logits: Floats, chosen: Ids, least: float) -> Ids:
    """Replace the chosen ids whose logit is the least by the lowest ids with that logit."""
    above = chosen[logits[chosen] != least]
    return np.concatenate([above, np.flatnonzero(logits == least)[: len(chosen) - len(above)]])


def _find(logits: Floats, ids: Ids, params: SamplingParams, place: float) -> int | NonFiniteLogits:
    """Find the token at a place among candidates in order, (K,)."""
    if not np.isfinite(logits.max()):
        return NonFiniteLogits()
    # probabilities without their common factor
    temperature = max(params.temperature, _LEAST_TEMPERATURE)
    mass = np.exp((logits.astype(np.float64) - float(logits[0])) / temperature)  # (K,)
    cumulative = mass.cumsum()  # (K,)
    kept = len(mass)
    if params.top_p < 1:
        kept = int(np.count_nonzero(cumulative - mass < params.top_p * cumulative[-1]))
    if params.min_p > 0:
        kept = min(kept, int(np.count_nonzero(mass >= params.min_p)))
    return int(ids[_index(cumulative[:kept], place * cumulative[kept - 1])])


def _find_in_vocabulary(logits: Tensor, params: SamplingParams, place: float) -> int | NonFiniteLogits:
    """Find the token at a place among all ids, (V,), without sorting them."""
    best = logits.max()  # ()
    if not torch.isfinite(best):
        return NonFiniteLogits()
    exponents = (logits - best).div_(max(params.temperature, _LEAST_TEMPERATURE)).cpu()  # (V,)
    mass = exponents.exp().numpy()  # (V,), 1 for the best
    if params.top_p < 1:
        return _find_in_nucleus(logits.cpu().numpy(), exponents, mass, params, place)
    if params.min_p > 0:
        mass = np.where(mass >= params.min_p, mass, np.float32(0))  # (V,)
    ends = np.add.reduceat(mass, np.arange(0, len(mass), _BLOCK), dtype=np.float64).cumsum()  # (V / _BLOCK,)
    block = _index(ends, place * ends[-1])
    within = mass[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)  # (_BLOCK,)
    return block * _BLOCK + _index(within, place * ends[-1] - (ends[block - 1] if block else 0.0))


def _find_in_nucleus(logits: Floats, exponents: Tensor, mass: Floats, params: SamplingParams, place: float) -> int:
    """Find the token at a place of the nucleus, sorting only the bin where it ends and that of the place.

    The bins of the exponents are in order, so that the mass of the bins shows in which one the nucleus ends.
    """
    span = -float(exponents.min())
    scale = (_BINS - 1) / min(max(span, _LEAST_TEMPERATURE), _BINNED_NATS)
    limited = exponents if span <= _MOST_NATS else exponents.clamp(min=-_MOST_NATS)
    bins = limited.mul(-scale).long().numpy()  # (V,)
    ends = np.bincount(bins, weights=mass).cumsum()  # (bins,)
    nucleus = params.top_p * ends[-1]
    last = int(np.searchsorted(ends, nucleus, side="left"))
    if params.min_p > 0:
        last = min(last, int(-math.log(params.min_p) * scale))
    before = ends[last - 1] if last else 0.0
    ids = _bin_in_order(logits, bins, last)
    within = mass[ids].cumsum(dtype=np.float64)  # (ids of the bin,)
    is_kept = (before + within - mass[ids] < nucleus) & (mass[ids] >= params.min_p)
    within = within[is_kept]  # (ids kept,)
    target = place * (before + (within[-1] if len(within) else 0.0))
    if len(within) and target >= before:
        return int(ids[_index(within, target - before)])
    found = _index(ends[:last], target)
    ids = _bin_in_order(logits, bins, found)
    return int(ids[_index(mass[ids].cumsum(dtype=np.float64), target - (ends[found - 1] if found else 0.0))])


def _bin_in_order(logits: Floats, bins: Ids, number: int) -> Ids:
    """Ids of a bin in order of logit, then id."""
    ids = np.flatnonzero(bins == number)
    return ids[np.argsort(-logits[ids], kind="stable")]


def _index(cumulative: Floats, target: float) -> int:
    """Index of the first number above the target; rounding may have put the target at the end."""
    return int(np.searchsorted(cumulative, min(target, np.nextafter(cumulative[-1], 0.0)), side="right"))
