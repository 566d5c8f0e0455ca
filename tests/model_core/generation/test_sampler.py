"""Sampling: each sequence has its own settings and generator."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.generation.sampler import NonFiniteLogits, Sampler, choice_generator, largest, sample, tokens_at
from model_core.schemas import SamplingParams

EOT, PROMPT = 0, (1,)


def _sampler(seed: int = 0, **settings: Any) -> Sampler:
    return Sampler(SamplingParams.model_validate(settings), choice_generator(seed, 0), PROMPT, EOT)


def _draws(logits: torch.Tensor, count: int = 500, **settings: Any) -> Counter[int]:
    sampler = _sampler(**settings)
    return Counter(sample(logits[None], [sampler])[0] for _ in range(count))


def test_temperature_zero_takes_the_best() -> None:
    assert set(_draws(torch.tensor([0.0, 2.0, 1.999]), temperature=0)) == {1}


def test_top_k_leaves_the_k_best() -> None:
    assert set(_draws(torch.tensor([0.0, 0.3, 0.1, 0.2]), top_k=2)) == {1, 3}


def test_temperature_sharpens() -> None:
    counts = _draws(torch.tensor([1.0, 2.0]), temperature=0.01)

    assert counts == {1: 500}


def test_an_extreme_temperature_is_greedy_and_no_error() -> None:
    assert set(_draws(torch.tensor([1.0, 2.0, -50.0]), count=5, temperature=1e-300)) == {1}


EVERY_KIND = [
    {"top_k": 5},
    {"top_k": 0},
    {"top_k": 0, "top_p": 0.9},
    {"top_k": 5, "temperature": 2.0},
    {"temperature": 0},
    {"top_k": 5, "repetition_penalty": 1.5, "logit_bias": {3: 2.0}},
    {"top_k": 0, "min_p": 0.05, "presence_penalty": 1.0, "frequency_penalty": 0.5, "min_new_tokens": 9},
]


def test_draws_do_not_depend_on_neighbours() -> None:
    logits = torch.randn(4, len(EVERY_KIND), 50_257, generator=torch.Generator().manual_seed(0)) * 3
    crowd = [_sampler(seed, **kind) for seed, kind in enumerate(EVERY_KIND)]
    alone = [_sampler(seed, **kind) for seed, kind in enumerate(EVERY_KIND)]
    before = logits.clone()

    together = [sample(step, crowd) for step in logits]
    apart = [[sample(step[row : row + 1], [alone[row]])[0] for row in range(len(alone))] for step in logits]

    assert together == apart
    assert torch.equal(logits, before)


def test_of_equal_logits_the_lowest_ids_are_kept_in_order_of_ids() -> None:
    logits = torch.zeros(300)
    logits[[7, 200]] = 1.0

    values, ids = largest([logits], 5)

    assert ids.tolist() == [[7, 200, 0, 1, 2]]
    assert values.tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0]]
    assert sample(torch.zeros(1, 300), [_sampler(temperature=0)]) == [0]


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 50, 99, 100, 300]), st.sampled_from([1.0, 3.0, 50.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_the_largest_are_those_of_a_whole_sort(seed: int, k: int, steps: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn(2, 3000, generator=generator) * steps).round() / steps  # the coarser, the more ties

    values, ids = largest(list(rows), k)

    wanted = rows.sort(dim=-1, descending=True, stable=True)
    assert ids.tolist() == wanted.indices[:, :k].tolist()
    assert values.tolist() == wanted.values[:, :k].tolist()


def test_a_nucleus_of_equal_logits_has_the_lowest_ids() -> None:
    assert set(_draws(torch.zeros(10), count=300, top_k=0, top_p=0.25)) == {0, 1, 2}


def test_places_at_both_ends_give_tokens_that_may_come() -> None:
    logits = torch.full((50,), -1000.0)
    logits[[20, 30]] = 0.0
    kinds = [_sampler(**kind, ignore_eos=True) for kind in EVERY_KIND[:5]]
    rows = logits.expand(len(kinds), -1)

    found = [tokens_at(rows, kinds, [place] * len(kinds)) for place in (0.0, 1 - 2**-53)]

    assert {token for tokens in found for token in tokens} == {20, 30}


def test_an_end_is_forbidden_until_there_are_enough_tokens() -> None:
    logits = torch.tensor([[9.0, 1.0, 8.0, 7.0]])
    sampler = _sampler(temperature=0, min_new_tokens=2, stop_token_ids=[2])

    assert [sample(logits, [sampler])[0] for _ in range(3)] == [3, 3, EOT]


def test_an_ignored_end_never_comes() -> None:
    assert set(_draws(torch.tensor([9.0, 1.0, 1.0]), count=50, ignore_eos=True, top_k=0)) == {1, 2}


def test_penalties_of_the_output_grow_with_it() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.5, 1.0]])
    by_count, once = (_sampler(temperature=0, **{f"{name}_penalty": 1.0}) for name in ("frequency", "presence"))

    assert [sample(logits, [by_count])[0] for _ in range(4)] == [1, 2, 1, 2]
    assert [sample(logits, [once])[0] for _ in range(4)] == [1, 2, 1, 1]


def test_a_small_repetition_penalty_makes_no_infinity() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.5, 1.0]])

    assert sample(logits, [_sampler(repetition_penalty=1e-300)]) == [1]


@pytest.mark.parametrize("kind", EVERY_KIND[:5], ids=lambda kind: "-".join(kind))
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_fail_only_their_own_text(kind: dict[str, Any], wrong: float) -> None:
    logits = torch.zeros(2, 40)
    logits[0, 3], logits[1, 5] = wrong, 900.0

    broken, fine = sample(logits, [_sampler(**kind), _sampler(**kind)])

    assert isinstance(broken, NonFiniteLogits)
    assert fine == 5


def test_the_first_choice_of_a_seed_is_the_same_however_many_there_are() -> None:
    first, second = (torch.rand(4, generator=choice_generator(7, index)) for index in (0, 1))

    assert torch.equal(first, torch.rand(4, generator=torch.Generator().manual_seed(7)))
    assert not torch.equal(first, second)
