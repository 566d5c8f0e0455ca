"""The training loop: values that are not finite, micro batches that do not fit, and resumption."""

import math
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from model_core.config import ExperimentConfig, ModelConfig, TrainingConfig
from model_core.data.loader import LoaderConfig, TokenLoader
from model_core.errors import NonFiniteLoss, OutOfMemory
from model_core.gpt import GPT
from model_core.hardware.device import Machine, decide
from model_core.optim import make_optimizer
from model_core.tokenizer import train_bpe
from model_core.training.callbacks import Callback
from model_core.training.trainer import StepResult, TrainState, take_step, train

MODEL = ModelConfig(n_layer=2, n_embd=16, n_head_list=(4, 2), vocab_size=300, block_size=16)
TOKENS = torch.randint(0, 300, (2000,), generator=torch.Generator().manual_seed(1)).numpy().astype("uint16")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other, and differ in the last bits from one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def state(
    batch_size: int = 4, total: int = 64, *, on_oom: str = "fail", dropout: float = 0.0, dtype: str = "float32",
    max_steps: int = 100, init_scale: float = 2.0**16,
) -> TrainState:  # fmt: skip
    training = TrainingConfig.model_validate(
        {
            "batch_size": batch_size,
            "sequence_length": 16,
            "total_batch_size": total,
            "max_steps": max_steps,
            "warmup_steps": 0,
            "on_oom": on_oom,
        }
    )
    shape = MODEL.model_copy(update={"dropout": dropout})
    config = ExperimentConfig.model_validate({"model": shape, "training": training, "device": {"dtype": dtype}})
    runtime = decide(config, Machine("Linux", cores=1))
    torch.manual_seed(0)
    model = GPT(shape)
    return TrainState(
        config=config,
        runtime=runtime,
        model=model,
        tokenizer=train_bpe(["some text"], 300),
        optimizer=make_optimizer(model, training, fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=runtime.scaler, init_scale=init_scale),
        loader=TokenLoader(TOKENS, LoaderConfig(batch_size, 16, shuffle="block")),
        forward=model,
    )


def parameters(run: TrainState) -> list[Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Device:
    """Stands for one with little memory: a forward pass of more than `rows` rows fails. Remembers what it was given."""

    def __init__(self, model: GPT, rows: int, *, full_at: int | None = None) -> None:
        self._model, self._rows, self._full_at = model, rows, full_at
        self.seen: list[Tensor] = []
        self.calls = 0

    def __call__(self, idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        self.calls += 1
        if len(idx) > self._rows or self.calls == self._full_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.seen.append(idx)
        return self._model(idx, targets)


class Record(Callback):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.halved: list[tuple[int, int]] = []

    def on_halved(self, state: TrainState, before: int) -> None:
        self.halved.append((before, state.batch_size))

    def on_step(self, state: TrainState, result: StepResult) -> None:
        self.losses.append(result.loss)


def run_to_end(run: TrainState, stop: Callable[[], bool] = lambda: False) -> Record:
    record = Record()
    train(run, [record], stop)
    return record


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    broken = state()
    before = [p.detach().clone() for p in broken.model.parameters()]
    broken.model.transformer["ln_f"].weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(NonFiniteLoss) as caught:
        take_step(broken)
    assert caught.value.step == 1
    assert all(torch.equal(old, new) for old, new in zip(before, broken.model.parameters(), strict=True))
    assert (broken.step, broken.loader.position) == (0, 0)


def test_a_loss_that_is_not_a_number_stops_at_its_step_with_the_state_before_it() -> None:
    good, bad = state(max_steps=5), state(max_steps=5)
    take_step(good)
    take_step(good)
    calls = iter(range(100))

    def nan_in_the_third_step(idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, loss = bad.model(idx, targets)
        return logits, loss * (math.nan if next(calls) >= 2 else 1)

    bad.forward = nan_in_the_third_step
    with pytest.raises(NonFiniteLoss) as caught:
        run_to_end(bad)
    assert (caught.value.step, bad.step, bad.loader.position) == (3, 2, good.loader.position)
    assert math.isnan(caught.value.facts["grad_norm"])
    assert same(parameters(bad), parameters(good))
    assert bad.loss == good.loss


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_micro_batch_that_does_not_fit_is_halved_until_it_does(dropout: float) -> None:
    halved = state(8, total=128, on_oom="halve", dropout=dropout, max_steps=4)
    halved.forward = device = Device(halved.model, rows=2)
    record = run_to_end(halved)
    begun_small = state(2, total=128, dropout=dropout, max_steps=4)
    begun_small.forward = reference = Device(begun_small.model, rows=2)
    expected = run_to_end(begun_small)
    assert record.halved == [(8, 4), (4, 2)]
    assert record.losses == expected.losses
    assert same(parameters(halved), parameters(begun_small))
    assert torch.equal(torch.cat(device.seen), torch.cat(reference.seen))  # no window lost, none repeated
    assert (halved.batch_size, halved.accumulation, halved.loader.position) == (2, 4, 4 * 8)


def test_halving_is_only_another_way_to_compute_the_same_step() -> None:
    whole, halved = state(8, total=128, max_steps=4), state(8, total=128, on_oom="halve", max_steps=4)
    halved.forward = Device(halved.model, rows=1)
    assert run_to_end(halved).losses == pytest.approx(run_to_end(whole).losses, rel=1e-5)
    for one, two in zip(parameters(whole), parameters(halved), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_step_that_fails_half_way_leaves_no_gradient_behind() -> None:
    halved = state(4, total=128, on_oom="halve", dropout=0.1, max_steps=1)
    halved.forward = Device(halved.model, rows=4, full_at=2)  # the first micro batch of two went through
    losses = run_to_end(halved).losses
    begun_small = state(2, total=128, dropout=0.1, max_steps=1)
    assert run_to_end(begun_small).losses == losses
    assert same(parameters(halved), parameters(begun_small))


def test_memory_that_runs_out_with_one_row_ends_the_run_as_it_was() -> None:
    run = state(4, on_oom="halve")
    run.forward = Device(run.model, rows=0)
    before, record = parameters(run), Record()
    with pytest.raises(OutOfMemory) as caught:
        train(run, [record], lambda: False)
    assert record.halved == [(4, 2), (2, 1)]
    assert (caught.value.step, caught.value.facts["batch_size"]) == (1, 1)
    assert caught.value.facts["fitting_batch_size"] is None
    assert (run.step, run.loader.position) == (0, 0)
    assert same(before, parameters(run))


def test_memory_that_runs_out_ends_the_run_unless_configured_otherwise() -> None:
    run = state(4)
    run.forward = Device(run.model, rows=2)
    with pytest.raises(OutOfMemory) as caught:
        run_to_end(run)
    assert (caught.value.code, caught.value.step, run.batch_size) == ("cuda_oom", 1, 4)
    assert caught.value.facts["fitting_batch_size"] == 2
    assert caught.value.facts["peak_memory_bytes"] > 1 << 20


def test_an_error_that_is_none_of_memory_is_not_taken_for_one() -> None:
    run = state(4, on_oom="halve")

    def broken(idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        raise RuntimeError("shapes cannot be multiplied")

    run.forward = broken
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_to_end(run)
    assert run.batch_size == 4


def test_a_full_state_keeps_the_halved_size() -> None:
    halved = state(8, total=128, on_oom="halve", dropout=0.1, max_steps=4)
    halved.forward = Device(halved.model, rows=2)
    stops = iter([False, False, True])
    first, saved = run_to_end(halved, lambda: next(stops)).losses, halved.full()
    resumed = state(8, total=128, on_oom="halve", dropout=0.1, max_steps=4)
    resumed.restore(saved)
    resumed.forward = Device(resumed.model, rows=2)
    record = run_to_end(resumed)
    assert (record.halved, resumed.batch_size) == ([], 2)
    assert first + record.losses == run_to_end(state(2, total=128, dropout=0.1, max_steps=4)).losses


def test_a_state_without_a_size_takes_the_configured_one() -> None:
    run, saved = state(4), state(4).full()
    del saved["batch_size"]
    run.restore(saved)
    assert run.batch_size == 4


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_half_precision_gives_nearly_the_loss_of_float32(dtype: str, tolerance: float) -> None:
    expected = take_step(state())
    result = take_step(state(dtype=dtype))
    assert result.loss != expected.loss
    assert result.loss == pytest.approx(expected.loss, rel=tolerance)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=10 * tolerance)


def test_gradients_that_overflow_float16_skip_the_step_and_lower_the_scale() -> None:
    run = state(dtype="float16", init_scale=2.0**40)
    before = parameters(run)
    result = take_step(run)
    assert (result.overflowed_scale, run.scaler.get_scale()) == (2.0**40, 2.0**39)
    assert math.isfinite(result.loss)
    assert not math.isfinite(result.grad_norm)
    assert same(before, parameters(run))
    assert (run.step, run.loader.position) == (1, 4)
    assert all(float(moments["step"]) == 0 for moments in run.optimizer.state.values())


def test_gradients_that_do_not_overflow_update_with_the_scale_taken_out() -> None:
    small, large = state(dtype="float16", init_scale=1.0), state(dtype="float16", init_scale=2.0**10)
    one, two = take_step(small), take_step(large)
    assert (one.overflowed_scale, two.overflowed_scale) == (None, None)
    assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-2)
    assert not same(parameters(small), parameters(state()))


def test_gradients_that_overflow_at_any_scale_end_the_run() -> None:
    run = state(dtype="float16", init_scale=2.0)
    run.model.transformer["ln_f"].weight.register_hook(lambda grad: grad * math.inf)
    assert [take_step(run).overflowed_scale for _ in range(2)] == [2.0, 1.0]
    with pytest.raises(NonFiniteLoss) as caught:
        take_step(run)
    assert caught.value.step == 3


def test_the_scale_and_a_skipped_step_survive_a_resume() -> None:
    run, resumed = state(dtype="float16", init_scale=2.0**40), state(dtype="float16")
    take_step(run)
    resumed.restore(run.full())
    assert take_step(resumed).overflowed_scale == 2.0**39


def test_waiting_for_data_is_counted() -> None:
    class SlowLoader(TokenLoader):
        def next_batch(self) -> tuple[Tensor, Tensor]:
            time.sleep(0.02)
            return super().next_batch()

    run = state(1)
    run.loader = SlowLoader(TOKENS, LoaderConfig(1, 16))
    take_step(run)
    assert run.throughput.tokens == 64
    assert 4 * 0.02 <= run.throughput.waiting_s < run.throughput.seconds
