"""From scores to one token: each text by its own settings and its own generator.

Candidates are cut to the top k before any softmax. A draw inverts the cumulative distribution with one uniform
number a token, so rounding differences of a larger batch change nothing but at the edge of two candidates. Ids
that only pad the vocabulary never arrive here: `Decoder` makes no scores for them.

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


class NonFiniteScores(ModelCoreError):
    """The model's scores are not numbers; its training diverged."""

    code = "checkpoint_damaged"

    def __init__(self) -> None:
        super().__init__("the model's scores are not finite: its training diverged, or its weights are damaged")


def generator_of(seed: int, index: int) -> torch.Generator:
    """The generator of one choice; choice 0 of a seed draws the same however many choices there are."""
    return torch.Generator().manual_seed((seed + index * _GOLDEN) % 2**63)


class Sampler:
    """Draws the tokens of one text."""

    def __init__(self, settings: SamplingParams, generator: torch.Generator) -> None:
        self._settings, self._generator = settings, generator

    def candidates(self, n_vocab: int) -> int:
        """How many of the best scores `draw` needs to see."""
        if self._settings.temperature == 0:
            return 1
        return min(self._settings.top_k or n_vocab, n_vocab)

    def draw(self, scores: Tensor, ids: Tensor) -> int:
        """Draw the next token.

        Args:
            scores: Of the candidates, (K,), on the CPU.
            ids: Which tokens they are, (K,).

        Raises:
            NonFiniteScores: There is no best one.
        """
        best = scores.max().double()
        if not torch.isfinite(best):
            raise NonFiniteScores
        if self._settings.top_p < 1:
            scores, order = scores.sort(descending=True, stable=True)
            ids = ids[order]
        weights = ((scores.double() - best) / (self._settings.temperature or 1.0)).exp()  # (K,)
        mass = weights.cumsum(0)  # (K,)
        if self._settings.top_p < 1:
            mass = mass[: int((mass - weights < self._settings.top_p * mass[-1]).sum())]
        uniform = torch.rand((), generator=self._generator, dtype=torch.float64)
        rank = int(torch.searchsorted(mass, uniform * mass[-1], right=True))
        return int(ids[min(rank, len(mass) - 1)])


def sample(scores: Tensor, samplers: Sequence[Sampler]) -> list[int | NonFiniteScores]:
    """Draw the next token of every text.

    Args:
        scores: (A, V), float32, on any device.
        samplers: A of them.

    Returns:
        A ids; an error stands where a text has no scores to draw from.
    """
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row, sampler in enumerate(samplers):
        groups[sampler.candidates(scores.size(1))].append(row)
    drawn: dict[int, int | NonFiniteScores] = {}
    for k, rows in groups.items():  # texts of equal k are cut together: one transfer a group
        best, ids = _best(scores[rows], k)  # 2 x (rows, K)
        for row, values, tokens in zip(rows, best, ids, strict=True):
            try:
                drawn[row] = samplers[row].draw(values, tokens)
            except NonFiniteScores as error:
                drawn[row] = error
    return [drawn[row] for row in range(len(samplers))]


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores of each row and their ids, on the CPU; all of them unsorted, for sorting is dear."""
    if k == scores.size(1):
        return scores.cpu(), torch.arange(k).expand_as(scores)
    values, ids = scores.topk(k)
    return values.cpu(), ids.cpu()
