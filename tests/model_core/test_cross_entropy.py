"""Chunked head and cross entropy, compared with the two functions of PyTorch."""

import contextlib
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model_core.budget import CHUNK_BYTES
from model_core.config import ModelConfig
from model_core.cross_entropy import SOFTMAX_ROWS, linear_cross_entropy
from model_core.gpt import GPT

CHUNK_ROWS = {torch.float32: CHUNK_BYTES // 4, torch.bfloat16: CHUNK_BYTES // 2}
N, C, V = CHUNK_ROWS[torch.bfloat16] + 88, 24, 130
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=-1)


def plain_64(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=-1)


def inputs(ignored: float = 0.2, rows: int = N, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """What a head reads, its weights, and targets of which some do not count."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(rows, C, generator=generator), torch.randn(V, C, generator=generator) / 10
    targets = torch.randint(V, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = -1
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def outcome(
    loss_of: Loss, *tensors: Tensor, scale: float = 1.0, autocast: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """The loss, and the gradients of a multiple of it."""
    hidden, weight, targets = tensors
    context: Any = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
    with context:
        loss = loss_of(hidden, weight, targets)
    return loss.detach(), *torch.autograd.grad(loss * scale, (hidden, weight))


def apart(a: Tensor, b: Tensor) -> float:
    """Relative distance (L2)."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_in_float64_it_is_the_plain_one() -> None:
    tensors = inputs(dtype=torch.float64)
    torch.testing.assert_close(
        outcome(linear_cross_entropy, *tensors), outcome(plain_64, *tensors), rtol=1e-9, atol=1e-12
    )


def test_its_gradients_are_those_of_its_differences() -> None:
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (6, 5))
    targets = torch.tensor([0, -1, 4, 2, 2, -1])
    assert torch.autograd.gradcheck(lambda *ab: linear_cross_entropy(*ab, targets), (hidden, weight))


@given(ignored=st.sampled_from([0.0, 0.2, 0.999]), rows=st.integers(1, N), scale=st.sampled_from([1.0, 0.125, 2.0**16]))
@settings(max_examples=25, deadline=None)
def test_in_float32_it_is_the_plain_one_whatever_comes_from_above(ignored: float, rows: int, scale: float) -> None:
    tensors = inputs(ignored, rows)
    tensors[2][0] = 7  # one counts
    (loss, *gradients), (expected, *others) = (outcome(f, *tensors, scale=scale) for f in (linear_cross_entropy, plain))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert max(map(apart, gradients, others)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_under_autocast_its_gradients_stay_near_those_of_float32(dtype: torch.dtype) -> None:
    tensors = inputs()
    loss, *gradients = outcome(linear_cross_entropy, *tensors, autocast=dtype)
    exact, *expected = outcome(plain, *tensors)
    assert loss.dtype == gradients[0].dtype == gradients[1].dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)  # a softmax in `dtype` would be ten times as far
    assert max(map(apart, gradients, expected)) < 5e-3


def test_small_gradients_survive_float16_because_scaling_comes_after_the_matmuls() -> None:
    tensors = inputs(0.0)
    _, *gradients = outcome(linear_cross_entropy, *tensors, scale=2.0**-20, autocast=torch.float16)
    _, *expected = outcome(plain, *tensors, scale=2.0**-20)
    assert max(map(apart, gradients, expected)) < 5e-3


def test_logits_far_apart_have_a_finite_loss() -> None:
    hidden, weight, targets = inputs(0.0, rows=5)
    far = (hidden * 200).detach().requires_grad_()
    (loss, *gradients), (expected, *others) = (outcome(f, far, weight, targets) for f in (linear_cross_entropy, plain))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert max(map(apart, gradients, others)) < 1e-6


def test_where_no_target_counts_the_loss_is_nan_and_the_gradients_are_zero_as_in_pytorch() -> None:
    tensors = inputs(1.0)
    results = [outcome(f, *tensors) for f in (linear_cross_entropy, plain)]
    assert all(loss.isnan() and not hidden.any() and not weight.any() for loss, hidden, weight in results)


def test_a_row_that_does_not_count_may_hold_anything() -> None:
    hidden, weight, targets = inputs(0.0, rows=4)
    targets[1] = -1
    filled = hidden.detach().clone()
    filled[1] = torch.nan
    loss, for_hidden, for_weight = outcome(linear_cross_entropy, filled.requires_grad_(), weight, targets)
    expected = outcome(plain, hidden, weight, targets)
    torch.testing.assert_close((loss, for_hidden, for_weight), expected)


@pytest.mark.parametrize("wrong", [V, -2])
def test_an_id_that_is_none_is_refused(wrong: int) -> None:
    hidden, weight, targets = inputs(0.0, rows=4)
    targets[2] = wrong
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        linear_cross_entropy(hidden, weight, targets)


def test_without_gradients_the_loss_has_the_same_bits() -> None:
    hidden, weight, targets = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert torch.equal(loss, linear_cross_entropy(hidden, weight, targets).detach())


class Scores(TorchDispatchMode):
    """Watches tensors with a score for each id: how many rows of them stood there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._there = 0, WeakValueDictionary[int, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape[-1:] == (V,) and result.shape[0] != C:  # not the head, turned
            self._there.setdefault(result.untyped_storage().data_ptr(), result)  # views are no more memory
            self.most = max(self.most, sum(len(rows) for rows in self._there.values()))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learns", [False, True])
def test_a_chunk_needs_its_logits_and_at_most_one_softmax_of_memory(learns: bool, dtype: torch.dtype) -> None:
    hidden, weight, targets = inputs(rows=2 * CHUNK_ROWS[dtype])
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.set_grad_enabled(learns), Scores() as scores, autocast:
        linear_cross_entropy(hidden, weight, targets)
    more = SOFTMAX_ROWS if dtype == torch.bfloat16 else 0
    assert scores.most == CHUNK_ROWS[dtype] + more


def test_only_the_gradients_that_are_wanted_are_formed() -> None:
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden.detach(), weight, targets)
    loss.backward()
    assert hidden.grad is None
    torch.testing.assert_close(weight.grad, outcome(plain, *inputs())[2])


def test_a_tied_weight_collects_what_embedding_and_head_want_over_all_micro_batches() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=50, block_size=8))
    batches = torch.randint(50, (2, 3, 9))  # 2 x (B, T+1)

    def gradients(loss_of: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        model.zero_grad()
        for batch in batches:
            (loss_of(batch[:, :-1], batch[:, 1:]) / 2).backward()
        return [p.grad for p in model.parameters()]

    ours = gradients(lambda idx, targets: model(idx, targets)[1])
    written_out = gradients(lambda idx, targets: F.cross_entropy(model(idx)[0].flatten(0, 1), targets.flatten()))
    assert max(map(apart, ours, written_out)) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own doing
def test_a_compiler_takes_it_in_one_piece() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=20, block_size=4))
    idx = torch.randint(20, (CHUNK_ROWS[torch.float32] // 4 + 1, 4))  # (B, T)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    (loss, *gradients), (expected, *others) = (
        (f(idx, idx)[1], *torch.autograd.grad(f(idx, idx)[1], list(model.parameters()))) for f in (compiled, model)
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, others)
