"""Sampling: each sequence has its own settings and generator."""

from collections import Counter

import pytest
import torch

from model_core.generation.sampler import NonFiniteLogits, Sampler, choice_generator, sample
from model_core.schemas import SamplingParams


def _sampler(seed: int = 0, **settings: object) -> Sampler:
    return Sampler(SamplingParams.model_validate(settings), choice_generator(seed, 0))


def _draws(logits: torch.Tensor, count: int = 2000, **settings: object) -> Counter[int]:
    sampler = _sampler(**settings)
    return Counter(sample(logits[None], [sampler])[0] for _ in range(count))


def test_temperature_zero_takes_the_best() -> None:
    assert set(_draws(torch.tensor([0.0, 2.0, 1.999]), temperature=0)) == {1}


def test_top_k_leaves_the_k_best() -> None:
    assert set(_draws(torch.tensor([0.0, 0.3, 0.1, 0.2]), top_k=2)) == {1, 3}


@pytest.mark.parametrize("top_k", [0, 3])
def test_top_p_leaves_the_fewest_that_reach_it(top_k: int) -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log()

    assert set(_draws(logits, top_p=0.59, top_k=top_k)) == {1}
    assert set(_draws(logits, top_p=0.61, top_k=top_k)) == {1, 2}


@pytest.mark.parametrize("top_k", [0, 3])
def test_draws_follow_the_probabilities(top_k: int) -> None:
    counts = _draws(torch.tensor([0.1, 0.6, 0.3]).log(), count=5000, top_k=top_k)

    assert [counts[i] / 5000 for i in range(3)] == pytest.approx([0.1, 0.6, 0.3], abs=0.03)


def test_temperature_sharpens() -> None:
    counts = _draws(torch.tensor([1.0, 2.0]), temperature=0.01)

    assert counts == {1: 2000}


def test_an_extreme_temperature_is_greedy_and_no_error() -> None:
    assert set(_draws(torch.tensor([1.0, 2.0, -50.0]), count=5, temperature=1e-300)) == {1}


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    settings = [{"top_k": 5}, {"top_k": 0, "top_p": 0.9}, {"top_k": 5, "temperature": 2.0}]

    together = sample(logits, [_sampler(seed, **s) for seed, s in enumerate(settings)])
    alone = [sample(logits[i : i + 1], [_sampler(i, **s)])[0] for i, s in enumerate(settings)]

    assert together == alone


def test_logits_that_are_not_numbers_fail_only_their_own_text() -> None:
    logits = torch.tensor([[0.0, float("nan")], [0.0, 9.0]])

    broken, fine = sample(logits, [_sampler(temperature=0), _sampler(temperature=0)])

    assert isinstance(broken, NonFiniteLogits)
    assert fine == 1


def test_the_first_choice_of_a_seed_is_the_same_however_many_there_are() -> None:
    first, second = (torch.rand(4, generator=choice_generator(7, index)) for index in (0, 1))

    assert torch.equal(first, torch.rand(4, generator=torch.Generator().manual_seed(7)))
    assert not torch.equal(first, second)
