"""From logits to one token: each text by its own settings and its own generator.

Candidates are cut to the top k before any softmax. A draw inverts the cumulative distribution with one uniform
number a token, so rounding differences of a larger batch change nothing but at the edge of two candidates. Ids
that only pad the vocabulary never arrive here: `Decoder` makes no logits for them.

Shapes: A texts, V ids, K candidates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.errors import ModelCoreError
from model_core.schemas import SamplingParams

_GOLDEN = 0x9E3779B97F4A7C15  # spreads the seeds of one request's choices over the whole range


class NonFiniteLogits(ModelCoreError):
    """The model's logits are not numbers; its training diverged."""

    code = "checkpoint_damaged"

    def __init__(self) -> None:
        super().__init__("the model's logits are not finite: its training diverged, or its parameters are damaged")


def generator_of(seed: int, index: int) -> torch.Generator:
    """The generator of one choice; choice 0 of a seed draws the same however many choices there are."""
    return torch.Generator().manual_seed((seed + index * _GOLDEN) % 2**63)


class Sampler:
    """Draws the tokens of one text."""

    def __init__(self, settings: SamplingParams, generator: torch.Generator) -> None:
        self._settings, self._generator = settings, generator

    def candidates(self, n_vocab: int) -> int:
        """How many of the best logits `draw` needs to see."""
        if self._settings.temperature == 0:
            return 1
        return min(self._settings.top_k or n_vocab, n_vocab)

    def draw(self, logits: Tensor, ids: Tensor) -> int:
        """Draw the next token.

        Args:
            logits: Of the candidates, (K,), on the CPU.
            ids: Which tokens they are, (K,).

        Raises:
            NonFiniteLogits: There is no best one.
        """
        best = logits.max().double()
        if not torch.isfinite(best):
            raise NonFiniteLogits
        if self._settings.top_p < 1:
            logits, order = logits.sort(descending=True, stable=True)
            ids = ids[order]
        weights = ((logits.double() - best) / (self._settings.temperature or 1.0)).exp()  # (K,)
        mass = weights.cumsum(0)  # (K,)
        if self._settings.top_p < 1:
            mass = mass[: int((mass - weights < self._settings.top_p * mass[-1]).sum())]
        uniform = torch.rand((), generator=self._generator, dtype=torch.float64)
        rank = int(torch.searchsorted(mass, uniform * mass[-1], right=True))
        return int(ids[min(rank, len(mass) - 1)])


def sample(logits: Tensor, samplers: Sequence[Sampler]) -> list[int | NonFiniteLogits]:
    """Draw the next token of every text.

    Args:
        logits: (A, V), float32, on any device.
        samplers: A of them.

    Returns:
        A ids; an error stands where a text has no logits to draw from.
    """
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row, sampler in enumerate(samplers):
        groups[sampler.candidates(logits.size(1))].append(row)
    drawn: dict[int, int | NonFiniteLogits] = {}
    for k, rows in groups.items():  # texts of equal k are cut together: one transfer a group
        best, ids = _best(logits[rows], k)  # 2 x (rows, K)
        for row, values, tokens in zip(rows, best, ids, strict=True):
            try:
                drawn[row] = samplers[row].draw(values, tokens)
            except NonFiniteLogits as error:
                drawn[row] = error
    return [drawn[row] for row in range(len(samplers))]


def _best(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best logits of each row and their ids, on the CPU; all of them unsorted, for sorting is dear."""
    if k == logits.size(1):
        return logits.cpu(), torch.arange(k).expand_as(logits)
    values, ids = logits.topk(k)
    return values.cpu(), ids.cpu()
