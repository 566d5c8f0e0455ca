"""The loop itself: what is not finite changes nothing, and accumulation is only a way to compute."""

import math

import pytest
import torch

from model_core.assemble import differences
from model_core.config import ExperimentConfig, ModelConfig, TrainingConfig
from model_core.data.loader import LoaderConfig, TokenLoader
from model_core.device import Machine, decide
from model_core.errors import NonFiniteLoss
from model_core.gpt import GPT
from model_core.optim import make_optimizer, parameter_counts
from model_core.tokenizer import train_bpe
from model_core.trainer import TrainState, take_step

MODEL = ModelConfig(n_layer=2, n_embd=16, n_head_list=(4, 2), vocab_size=300, block_size=16)


def state(batch_size: int = 4, total: int = 64) -> TrainState:
    training = TrainingConfig(
        batch_size=batch_size, sequence_length=16, total_batch_size=total, max_steps=100, warmup_steps=0
    )
    config = ExperimentConfig.model_validate({"model": MODEL, "training": training, "device": {"dtype": "float32"}})
    runtime = decide(config, Machine("Linux", cores=1))
    torch.manual_seed(0)
    model = GPT(MODEL)
    tokens = torch.randint(0, 300, (2000,), generator=torch.Generator().manual_seed(1)).numpy().astype("uint16")
    return TrainState(
        config=config,
        runtime=runtime,
        model=model,
        tokenizer=train_bpe(["some text"], 300),
        optimizer=make_optimizer(model, training, fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        loader=TokenLoader(tokens, LoaderConfig(batch_size, 16)),
        forward=model,
    )


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    broken = state()
    before = [p.detach().clone() for p in broken.model.parameters()]
    broken.model.transformer["ln_f"].weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(NonFiniteLoss, match="at step 1"):
        take_step(broken)
    assert all(torch.equal(old, new) for old, new in zip(before, broken.model.parameters(), strict=True))
    assert (broken.step, broken.loader.position) == (0, 0)


def test_accumulated_micro_batches_are_the_large_batch() -> None:
    results = []
    for batch_size in (8, 4, 1):
        run = state(batch_size, total=128)
        results.append((take_step(run), [p.detach().clone() for p in run.model.parameters()]))
    (whole, parameters), *others = results
    for result, other in others:
        assert result.loss == pytest.approx(whole.loss, rel=1e-5)
        assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
        for one, two in zip(parameters, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = GPT(MODEL)
    decayed, kept = make_optimizer(model, TrainingConfig(weight_decay=0.3), fused=True).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    counts = parameter_counts(model)
    assert counts["parameters"] == sum(p.numel() for p in model.parameters())
    assert counts["parameters_decayed"] == sum(p.numel() for p in model.parameters() if p.dim() == 2)


def test_differences_name_the_place_and_both_values() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c is 2 there and 3 here"]
