"""One step: accumulation, clipping and weight decay."""

import pytest
import torch
from torch import Tensor

from model_core.optim import clip_gradients, load_moments
from model_core.training.trainer import StepResult, TrainState, take_step
from tests.model_core.factories import tiny_state

TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


def one_step(state: TrainState) -> tuple[StepResult, list[Tensor]]:
    """What a step measured, and the gradients that the optimizer was given."""
    given: list[Tensor] = []
    state.optimizer.register_step_pre_hook(lambda *_: given.extend(p.grad.clone() for p in state.model.parameters()))
    return take_step(state), given


@pytest.mark.parametrize("rows", [4, 2, 1])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
def test_accumulated_micro_batches_have_loss_and_gradients_of_the_large_batch(dtype: torch.dtype, rows: int) -> None:
    direct = tiny_state(dtype=dtype, batch_size=8)
    loss = direct.model(*direct.loader.next_batch())[1].item()
    whole, expected = one_step(tiny_state(dtype=dtype, batch_size=8))
    parts, gradients = one_step(tiny_state(dtype=dtype, batch_size=rows))
    assert [whole.loss, parts.loss] == pytest.approx([loss, loss], rel=TOLERANCE[dtype]["rtol"])
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=TOLERANCE[dtype]["rtol"])
    torch.testing.assert_close(gradients, expected, **TOLERANCE[dtype])


def norm(gradients: list[Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@pytest.mark.parametrize(("clip", "factor"), [(0.01, 0.01), (1e9, None), (0.0, None)])
def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported(clip: float, factor: float | None) -> None:
    free, _ = one_step(tiny_state(grad_clip=0.0))
    result, gradients = one_step(tiny_state(grad_clip=clip))
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
    state = tiny_state(max_lr=0.5, min_lr=0.1, warmup_steps=2, max_steps=10)
    assert [take_step(state).lr for _ in range(3)] == [0.25, 0.5, 0.5]
    assert {group["lr"] for group in state.optimizer.param_groups} == {0.5}


def test_without_a_gradient_matrices_shrink_and_vectors_stay() -> None:
    state = tiny_state(weight_decay=0.5)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.fill_(1.0).grad = torch.zeros_like(parameter)
    state.optimizer.param_groups[0]["lr"] = state.optimizer.param_groups[1]["lr"] = 0.1
    state.optimizer.step()
    after = {p.dim(): {round(value, 6) for value in p.flatten().tolist()} for p in state.model.parameters()}
    assert after == {2: {0.95}, 1: {1.0}}


def test_moments_move_to_an_optimizer_that_keeps_its_settings() -> None:
    old, new = tiny_state(weight_decay=0.1), tiny_state(weight_decay=0.7)
    take_step(old)
    load_moments(new.optimizer, old.optimizer.state_dict())
    assert [group["weight_decay"] for group in new.optimizer.param_groups] == [0.7, 0.0]
    first, second = (state.optimizer.state_dict()["state"] for state in (old, new))
    assert all(torch.equal(first[i]["exp_avg"], second[i]["exp_avg"]) for i in first)
    assert {float(moments["step"]) for moments in second.values()} == {1.0}
