"""One step: accumulation, clipping and weight decay."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_core.config_loader import parse_config
from model_core.data.loader import LoaderConfig, TokenLoader
from model_core.gpt import GPT
from model_core.hardware.device import Machine, decide
from model_core.optim import clip_gradients, load_moments, make_optimizer
from model_core.tokenizer import train_bpe
from model_core.training.trainer import StepResult, TrainState, take_step

TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


def state_of(dtype: torch.dtype = torch.float32, **training: Any) -> TrainState:
    shape = {"n_layer": 2, "n_embd": 16, "n_head_list": [4, 2], "vocab_size": 300, "block_size": 16}
    section = {"batch_size": 8, "sequence_length": 16, "total_batch_size": 128, "warmup_steps": 0, **training}
    data = {"tokenizer": {"type": "bpe", "vocab_size": 300}}
    device = {"dtype": "float32", "threads": 1}
    config = parse_config({"model": shape, "training": section, "data": data, "device": device}).config
    torch.manual_seed(0)
    model = GPT(config.model).to(dtype)
    tokens = np.random.default_rng(1).integers(0, 300, 2000, np.uint16)
    return TrainState(
        config=config,
        runtime=decide(config, Machine("Linux", cores=1)),
        model=model,
        tokenizer=train_bpe(["some text"], 300),
        optimizer=make_optimizer(model, config.training, fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        loader=TokenLoader(tokens, LoaderConfig(config.training.batch_size, 16)),
        forward=model,
    )


def one_step(state: TrainState) -> tuple[StepResult, list[Tensor]]:
    """What a step measured, and the gradients that the optimizer was given."""
    given: list[Tensor] = []
    state.optimizer.register_step_pre_hook(lambda *_: given.extend(p.grad.clone() for p in state.model.parameters()))
    return take_step(state), given


@pytest.mark.parametrize("rows", [4, 2, 1])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
def test_accumulated_micro_batches_have_loss_and_gradients_of_the_large_batch(dtype: torch.dtype, rows: int) -> None:
    direct = state_of(dtype, batch_size=8)
    loss = direct.model(*direct.loader.next_batch())[1].item()
    whole, expected = one_step(state_of(dtype, batch_size=8))
    parts, gradients = one_step(state_of(dtype, batch_size=rows))
    assert [whole.loss, parts.loss] == pytest.approx([loss, loss], rel=TOLERANCE[dtype]["rtol"])
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=TOLERANCE[dtype]["rtol"])
    torch.testing.assert_close(gradients, expected, **TOLERANCE[dtype])


def norm(gradients: list[Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@pytest.mark.parametrize(("clip", "factor"), [(0.01, 0.01), (1e9, None), (0.0, None)])
def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported(clip: float, factor: float | None) -> None:
    free, _ = one_step(state_of(grad_clip=0.0))
    result, gradients = one_step(state_of(grad_clip=clip))
    assert result.grad_norm == free.grad_norm > 0.1
    assert norm(gradients) == pytest.approx(factor or result.grad_norm, rel=1e-4)


def test_the_norm_of_millions_of_gradients_keeps_the_digits_of_float32() -> None:
    matrix = torch.nn.Linear(2000, 3000)
    gradients = [torch.randn_like(p, generator=torch.Generator().manual_seed(0)) for p in matrix.parameters()]
    for parameter, gradient in zip(matrix.parameters(), gradients, strict=True):
        parameter.grad = gradient
    exact = torch.cat([gradient.double().flatten() for gradient in gradients]).norm().item()
    assert clip_gradients(matrix, 0.0) == pytest.approx(exact, rel=1e-6)


def test_the_rate_of_a_step_is_the_schedules() -> None:
    state = state_of(max_lr=0.5, min_lr=0.1, warmup_steps=2, max_steps=10)
    assert [take_step(state).lr for _ in range(3)] == [0.25, 0.5, 0.5]
    assert {group["lr"] for group in state.optimizer.param_groups} == {0.5}


def test_without_a_gradient_matrices_shrink_and_vectors_stay() -> None:
    state = state_of(weight_decay=0.5)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.fill_(1.0).grad = torch.zeros_like(parameter)
    state.optimizer.param_groups[0]["lr"] = state.optimizer.param_groups[1]["lr"] = 0.1
    state.optimizer.step()
    after = {p.dim(): {round(value, 6) for value in p.flatten().tolist()} for p in state.model.parameters()}
    assert after == {2: {0.95}, 1: {1.0}}


def test_moments_move_to_an_optimizer_that_keeps_its_settings() -> None:
    old, new = state_of(weight_decay=0.1), state_of(weight_decay=0.7)
    take_step(old)
    load_moments(new.optimizer, old.optimizer.state_dict())
    assert [group["weight_decay"] for group in new.optimizer.param_groups] == [0.7, 0.0]
    first, second = (state.optimizer.state_dict()["state"] for state in (old, new))
    assert all(torch.equal(first[i]["exp_avg"], second[i]["exp_avg"]) for i in first)
    assert {float(moments["step"]) for moments in second.values()} == {1.0}
