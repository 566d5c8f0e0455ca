"""From logits to one token: every sequence with its own sampling parameters and its own generator.

Candidates are cut to the top k (Fan et al., 2018) before any softmax, and to the nucleus of probability top_p (Holtzman
et al., 2020) after it. A draw inverts the cumulative distribution with one uniform number per token, so the rounding
differences of a larger batch only matter at the border between two candidates. Ids that only pad the vocabulary never
arrive here: `ModelRunner` computes no logits for them.

Shapes: A sequences, V ids of the tokenizer, K candidates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.errors import ModelCoreError
from model_core.schemas import SamplingParams

_GOLDEN = 0x9E3779B97F4A7C15  # golden ratio of 64 bits: spreads the seeds of one request's choices over the whole range


class NonFiniteLogits(ModelCoreError):
    """The model's logits are NaN or infinite."""

    code = "checkpoint_damaged"

    def __init__(self) -> None:
        super().__init__("the model's logits are not finite: its training diverged, or its parameters are damaged")


def sample(logits: Tensor, samplers: Sequence[Sampler]) -> list[int | NonFiniteLogits]:
    """Draw the next token of every sequence.

    Args:
        logits: Logits of the next tokens, (A, V), float32, on any device.
        samplers: Sampler of each sequence, A of them.

    Returns:
        A token ids, with an error in place of the id where the logits are not finite.
    """
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row, sampler in enumerate(samplers):
        groups[sampler.candidates(logits.size(1))].append(row)
    drawn: dict[int, int | NonFiniteLogits] = {}
    for k, rows in groups.items():  # rows of equal k are cut together: one transfer per group
        best, ids = _best(logits[rows], k)  # 2 x (rows, K)
        for row, values, tokens in zip(rows, best, ids, strict=True):
            try:
                drawn[row] = samplers[row].draw(values, tokens)
            except NonFiniteLogits as error:
                drawn[row] = error
    return [drawn[row] for row in range(len(samplers))]


class Sampler:
    """Draws the tokens of one sequence.

    Args:
        params: Temperature, top_k and top_p.
        generator: Generator of this sequence, on the CPU.
    """

    def __init__(self, params: SamplingParams, generator: torch.Generator) -> None:
        self._params, self._generator = params, generator

    def candidates(self, n_vocab: int) -> int:
        """Return how many of the largest logits `draw` needs.

        Args:
            n_vocab: Ids of the tokenizer, V.

        Returns:
            K, at most V.
        """
        if self._params.temperature == 0:
            return 1
        return min(self._params.top_k or n_vocab, n_vocab)

    def draw(self, logits: Tensor, ids: Tensor) -> int:
        """Draw the next token.

        Args:
            logits: Logits of the candidates, (K,), on the CPU.
            ids: Their token ids, (K,).

        Returns:
            The id of the drawn token.

        Raises:
            NonFiniteLogits: The largest logit is not finite.
        """
        best = logits.max().double()  # ()
        if not torch.isfinite(best):
            raise NonFiniteLogits
        if self._params.top_p < 1:
            logits, order = logits.sort(descending=True, stable=True)  # 2 x (K,)
            ids = ids[order]  # (K,)
        # probabilities without their common factor
        mass = ((logits.double() - best) / (self._params.temperature or 1.0)).exp()  # (K,)
        cumulative = mass.cumsum(0)  # (K,)
        if self._params.top_p < 1:
            nucleus = int((cumulative - mass < self._params.top_p * cumulative[-1]).sum())
            cumulative = cumulative[:nucleus]  # (nucleus,)
        uniform = torch.rand((), generator=self._generator, dtype=torch.float64)  # ()
        index = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
        return int(ids[min(index, len(cumulative) - 1)])


def choice_generator(seed: int, index: int) -> torch.Generator:
    """Create the generator of one choice of a request; choice 0 draws the same however many choices there are.

    Args:
        seed: Seed of the request.
        index: Index of the choice.

    Returns:
        A seeded generator on the CPU.
    """
    return torch.Generator().manual_seed((seed + index * _GOLDEN) % 2**63)


def _best(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest logits of each row and their ids on the CPU; all V unsorted, because sorting is slow."""
    if k == logits.size(1):
        return logits.cpu(), torch.arange(k).expand_as(logits)  # 2 x (rows, V)
    values, ids = logits.topk(k)  # 2 x (rows, K)
    return values.cpu(), ids.cpu()
