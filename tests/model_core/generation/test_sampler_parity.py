"""The sampler keeps and weighs tokens as the processors of transformers do, in the documented order."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from model_core.generation.sampler import Sampler, choice_generator, tokens_at
from model_core.schemas import SamplingParams

EOT = 0  # the end of text need not be the last id
DRAWS = 20_000
TOLERANCE = 1e-6  # of both ends of a token in the cumulative distribution
CHECKED = 40  # tokens of a scene
SIZES = [20, 300, 3000]  # the last has nuclei that are sorted, and others that are binned

# All that the schema allows, except what gives ties or NaN in float64. Biases are float32, as in their tensor.
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.3]) | st.floats(1e-6, 1000.0),
    "top_k": st.integers(1, max(SIZES) + 1),
    "top_p": st.sampled_from([0.5, 0.9, 0.999]) | st.floats(0.0, 1.0, exclude_min=True),
    "min_p": st.floats(0.001, 0.6) | st.floats(0.0, 1.0, exclude_max=True),
    "repetition_penalty": st.floats(0.1, 3.0) | st.floats(1e-6, 10.0),
    "presence_penalty": st.floats(-2.0, 2.0),
    "frequency_penalty": st.floats(-2.0, 2.0),
    "logit_bias": st.dictionaries(st.integers(0, 19), st.floats(-100, 100, width=32), min_size=1, max_size=5),
    "min_new_tokens": st.integers(1, 8),
    "ignore_eos": st.just(True),
    "stop_token_ids": st.just((3, 5)),
}


class OutputPenalties(theirs.LogitsProcessor):
    """Penalties of vLLM, which transformers lacks: subtracted by count, and once."""

    def __init__(self, params: SamplingParams, read: int) -> None:
        self._params, self._read = params, read

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self._read :], minlength=scores.size(1))
        return scores - self._params.frequency_penalty * counts - self._params.presence_penalty * (counts > 0)


def processors(params: SamplingParams, read: int) -> Iterator[theirs.LogitsProcessor]:
    """What transformers applies, in its order."""
    if params.logit_bias:
        yield theirs.SequenceBiasLogitsProcessor({(token,): bias for token, bias in params.logit_bias.items()})
    if params.min_new_tokens:
        ends = [EOT, *params.stop_token_ids]
        yield theirs.MinNewTokensLengthLogitsProcessor(read, params.min_new_tokens, ends, device="cpu")
    if params.ignore_eos:
        yield theirs.SuppressTokensLogitsProcessor([EOT], device="cpu")
    if params.repetition_penalty != 1:
        yield theirs.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
    yield OutputPenalties(params, read)
    if params.temperature == 0:
        yield theirs.TopKLogitsWarper(1)
        return
    yield theirs.TemperatureLogitsWarper(params.temperature)
    if params.top_k:
        yield theirs.TopKLogitsWarper(params.top_k)
    if params.top_p < 1:
        yield theirs.TopPLogitsWarper(params.top_p)
    if params.min_p:
        yield theirs.MinPLogitsWarper(params.min_p)


def expected(logits: torch.Tensor, params: SamplingParams, prompt: list[int], output: list[int]) -> np.ndarray:
    """Probabilities of transformers for the same logits, all of it in float64, (V,)."""
    ids = torch.tensor([prompt + output])
    scores = theirs.LogitsProcessorList(processors(params, len(prompt)))(ids, logits[None].double())
    return scores[0].softmax(dim=-1).numpy()


def sampler_of(params: SamplingParams, prompt: list[int], output: list[int]) -> Sampler:
    sampler = Sampler(params, choice_generator(0, 0), prompt, EOT)
    for token in output:
        sampler.count(token)
    return sampler


def assert_same(logits: torch.Tensor, params: SamplingParams, prompt: list[int], output: list[int]) -> None:
    """Tokens begin and end where the cumulative distribution of transformers says, from the first to the last kept."""
    wanted = expected(logits, params, prompt, output)
    kept = np.flatnonzero(wanted)
    if 0 < params.top_k < len(logits) or params.top_p < 1 or params.temperature == 0:
        kept = kept[np.argsort(-wanted[kept], kind="stable")]
    ends = wanted[kept].cumsum()
    starts = np.append(0.0, ends[:-1])
    wide = np.flatnonzero(ends - starts > 2 * TOLERANCE)
    wide = wide[np.unique(np.linspace(0, len(wide) - 1, CHECKED).astype(int))]  # the first and the last are among them
    places = [*(starts[wide] + TOLERANCE), *(ends[wide] - TOLERANCE), 0.0, np.nextafter(1.0, 0.0)]
    found = tokens_at(logits.expand(len(places), -1), [sampler_of(params, prompt, output)] * len(places), places)
    assert found[:-2] == [*kept[wide], *kept[wide]]
    assert set(found[-2:]) <= set(kept.tolist())


@st.composite
def scenes(draw: st.DrawFn, options: dict[str, st.SearchStrategy[Any]]) -> tuple[Any, ...]:
    """Logits without ties, parameters, a prompt and an output."""
    size = draw(st.sampled_from(SIZES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    steps = torch.rand(size, generator=generator) + 0.01  # distances between neighbours in order
    logits = (steps.cumsum(0) - steps.sum() * draw(st.floats(0.1, 0.9))) * (draw(st.floats(2.0, 20.0)) / steps.sum())
    logits = logits[torch.randperm(size, generator=generator)]
    params = SamplingParams.model_validate({"top_k": 0, **{name: draw(kind) for name, kind in options.items()}})
    prompt = draw(st.lists(st.integers(0, 19), min_size=1, max_size=8))
    return logits, params, prompt, draw(st.lists(st.integers(0, 19), max_size=8))


@pytest.mark.parametrize("name", OPTIONS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_each_parameter_alone_keeps_and_weighs_as_theirs(name: str, data: st.DataObject) -> None:
    assert_same(*data.draw(scenes({name: OPTIONS[name]})))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_parameters_together_keep_and_weigh_as_theirs(data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(OPTIONS)), min_size=2))
    assert_same(*data.draw(scenes({name: OPTIONS[name] for name in sorted(names)})))


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 0, "top_p": 0.9},
        {"top_k": 0, "min_p": 0.1, "temperature": 1.5},
        {"top_k": 10, "top_p": 0.9, "min_p": 0.02, "temperature": 1.5},
    ],
    ids=lambda options: "-".join(options),
)
def test_draws_are_as_frequent_as_theirs(options: dict[str, Any]) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 2
    sampler = sampler_of(SamplingParams.model_validate(options), [2, 3], [])
    wanted = expected(logits, sampler.params, [2, 3], []) * DRAWS
    rows = logits.expand(DRAWS // 20, -1)

    counts = Counter(
        token
        for _ in range(20)
        for token in tokens_at(rows, [sampler] * len(rows), [sampler.uniform() for _ in range(len(rows))])
    )

    often = np.flatnonzero(wanted >= 5)
    observed = np.array([counts[token] for token in often.tolist()])
    distance = ((observed - wanted[often]) ** 2 / wanted[often]).sum()
    assert set(counts) <= set(np.flatnonzero(wanted).tolist())
    assert torch.special.gammaincc(torch.tensor(len(often) / 2), torch.tensor(distance / 2)) > 1e-3  # chi-square
