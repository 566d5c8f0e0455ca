"""Heads that are replaced, against transformers on the exported folder and against hooks on the whole model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from model_core.attention.heads.ablation import SampleInModel, ablate, plan_chunks, replace_reads
from model_core.attention.heads.ablation_record import AblationOptions, Part, parts
from model_core.gpt import GPT
from model_core.hf.custom.modeling_headcount import HeadcountForCausalLM
from model_core.hf.export import export_run
from model_core.storage.files import Layout
from tests.model_core.attention.heads.ablation_fixtures import SHAPES, TOKENS, N, T, make_run, random_ids, random_model

each_shape = pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
each_baseline = pytest.mark.parametrize("baseline", ["zero", "mean", "resample"])

Place = tuple[int, slice]


@pytest.fixture(scope="module")
def ids() -> Any:
    """Windows of random tokens, (N, T + 1)."""
    return random_ids(N, T + 1)


def places_of(model: GPT) -> dict[Part, Place]:
    """Channels of every head and of every layer, by what replaces them."""
    shapes = [*enumerate(zip(model.config.heads, model.config.head_dims, strict=True))]
    heads = {
        Part("head", layer, head): (layer, slice(head * size, (head + 1) * size))
        for layer, (count, size) in shapes
        for head in range(count)
    }
    return heads | {Part("layer", layer): (layer, slice(None)) for layer, (count, _) in shapes if count > 1}


def changes_by_hook(modules: list[Any], logits_of: Any, ids: Any, places: dict[Part, Place], baseline: str) -> Any:
    """Change of each window's loss and KL by part, each (N,): the whole model runs with a hook before W_O."""
    idx, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:, None])  # (N, T), (N, T, 1)
    replaced = {
        "zero": torch.zeros_like,
        "mean": lambda y: y.mean((0, 1), keepdim=True).expand_as(y),
        "resample": lambda y: y.roll(-1, 0),
    }[baseline]

    def log_probabilities(place: Place | None) -> torch.Tensor:
        handles = []
        if place is not None:

            def replace(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
                y = inputs[0].clone()
                y[..., place[1]] = replaced(inputs[0])[..., place[1]]
                return (y,)

            handles.append(modules[place[0]].register_forward_pre_hook(replace))
        with torch.no_grad():
            found: torch.Tensor = logits_of(idx).double().log_softmax(-1)  # (N, T, V)
        for handle in handles:
            handle.remove()
        return found

    clean = log_probabilities(None)
    changes = {}
    for part, place in places.items():
        without = log_probabilities(place)
        loss = (clean - without).gather(-1, targets)[..., 0].mean(1)  # (N,)
        kl = (clean.exp() * (clean - without)).sum(-1).mean(1)  # (N,)
        changes[part] = (loss.numpy(), kl.numpy())
    return changes


def measured(model: GPT, ids: Any, baseline: str = "mean", **options: Any) -> dict[Part, Any]:
    chosen = AblationOptions.model_validate({"tokens": TOKENS, "baseline": baseline, "draws": 2})
    return {
        one.part: (np.array(one.loss), np.array(one.kl))
        for one in ablate(model, ids, chosen, **options)
        if one.part.draw == 0
    }


@each_shape
@each_baseline
def test_every_head_and_layer_changes_the_loss_as_in_transformers(
    heads: tuple[int, ...], baseline: str, ids: Any, tmp_path: Path
) -> None:
    run = make_run(Layout.under(tmp_path), heads)
    export_run(run, tmp_path / "folder")
    kind = GPT2LMHeadModel if len(set(heads)) == 1 else HeadcountForCausalLM
    theirs = kind.from_pretrained(tmp_path / "folder", attn_implementation="eager").eval()
    model = random_model(heads)
    modules = [block.attn.c_proj for block in theirs.transformer.h]
    expected = changes_by_hook(modules, lambda idx: theirs(idx).logits, ids, places_of(model), baseline)
    found = measured(model, ids, baseline)
    assert max(np.abs(found[part][0] - expected[part][0]).max() for part in expected) < 1e-5
    assert max(np.abs(found[part][1] - expected[part][1]).max() for part in expected) < 1e-5
    assert min(np.abs(expected[part][0]).max() for part in expected) > 1e-3


@each_shape
def test_zeroing_all_heads_leaves_the_bias_alone(heads: tuple[int, ...], ids: Any) -> None:
    model = random_model(heads)
    sample = SampleInModel(model, torch.from_numpy(ids))
    for layer, block in enumerate(model.blocks):
        part, size = Part("layer", layer), model.config.head_dims[layer]
        reads = replace_reads(sample.reads, part, head_dim=size, baseline="zero", measured=N)
        out = block.attn.c_proj(reads)
        assert torch.equal(out, block.attn.c_proj.bias.expand_as(out))


@each_shape
def test_a_head_that_is_replaced_by_itself_changes_nothing(heads: tuple[int, ...], ids: Any) -> None:
    sample = SampleInModel(random_model(heads), torch.from_numpy(ids))
    found = [sample.change(sample.reads)]
    while sample.layer + 1 < len(heads):
        sample.advance()
        found.append(sample.change(sample.reads))
    assert not np.any(found)


def test_the_clean_loss_is_that_of_the_model(ids: Any) -> None:
    model = random_model((4, 2))
    sample = SampleInModel(model, torch.from_numpy(ids))
    _, loss = model(torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:]))
    assert loss is not None
    assert sample.loss.mean() == pytest.approx(loss.item(), abs=1e-6)


@each_baseline
def test_chunks_that_fit_in_memory_give_the_same_numbers(baseline: str, ids: Any) -> None:
    model, most = random_model((4, 1, 2)), 25_000
    assert len(plan_chunks(model, ids.shape, max_bytes=most)) > 3
    whole, chunked = {}, {}
    options = AblationOptions.model_validate({"tokens": TOKENS, "baseline": baseline, "draws": 2})
    for one in ablate(model, ids, options):
        whole[one.part] = one.loss
    for one in ablate(model, ids, options, max_bytes=most):
        chunked[one.part] = chunked.get(one.part, ()) + one.loss
    assert chunked.keys() == whole.keys() == {Part("clean"), *parts(model.config.heads, options)}
    np.testing.assert_allclose([chunked[part] for part in whole], list(whole.values()), atol=2e-6)


def test_finished_passes_are_not_repeated(ids: Any) -> None:
    options = AblationOptions(tokens=TOKENS, draws=2)
    every = list(ablate(random_model((4, 2)), ids, options))
    rest = list(ablate(random_model((4, 2)), ids, options, done={one.key for one in every[:5]}))
    assert [(one.key, one.loss, one.kl) for one in rest] == [(one.key, one.loss, one.kl) for one in every[5:]]
    assert not list(ablate(random_model((4, 2)), ids, options, done={one.key for one in every}))


@each_baseline
def test_a_null_replaces_as_many_directions_as_a_head_has(baseline: Any, ids: Any) -> None:
    sample = SampleInModel(random_model((4, 2)), torch.from_numpy(ids))
    null = replace_reads(sample.reads, Part("null", 0, draw=1), head_dim=4, baseline=baseline, measured=N)
    whole = replace_reads(sample.reads, Part("layer", 0, draw=1), head_dim=4, baseline=baseline, measured=N)
    lost = (sample.reads - null).flatten(0, 1)  # (N T, H D)
    assert torch.linalg.matrix_rank(lost, rtol=1e-4) == 4
    left = (whole - sample.reads).flatten(0, 1) + lost  # what the subspace does not reach
    torch.testing.assert_close((lost * left).sum(-1), torch.zeros(len(lost)), atol=1e-4, rtol=0)


def test_the_random_numbers_of_the_process_are_untouched(ids: Any) -> None:
    model = random_model((4, 2))
    before = torch.get_rng_state()
    measured(model, ids)
    assert torch.equal(before, torch.get_rng_state())
