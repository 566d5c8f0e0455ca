"""Callbacks change no loss, check the disk before they write, and adapt to less memory."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from model_core.checkpoint import newest_full_state, parameters_state
from model_core.errors import DiskFull, OutOfMemory
from model_core.training.callbacks import ProgressBar, Validation, size_bytes
from model_core.training.trainer import train
from tests.model_core.training.workbench import Bench, run_with

Tiny = Callable[..., Path]


def less_memory(model: torch.nn.Module, rows: int) -> None:
    """Let an evaluation of more than `rows` rows run out of memory."""

    def check(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not module.training and len(arguments[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(check)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_losses_are_the_same_bits_with_all_that_listen_and_with_nobody(bench: Callable[..., Bench], dtype: str) -> None:
    often = {"val_loss_every": 2, "sample_every": 3, "checkpoint_every": 2}
    changes = {"model": {"dropout": 0.1}, "device": {"dtype": dtype}, "evaluation": often, "training": {"max_steps": 8}}
    changes["checkpoint"] = {"resume_every_minutes": 1e-9}
    loud = bench("loud", **changes)
    loud_losses = run_with(loud.state, *loud.listeners(), ProgressBar())
    quiet = bench("quiet", **changes)
    assert run_with(quiet.state) == loud_losses
    assert [len(loud.of(kind)) for kind in ("step", "validation", "sample")] == [8, 5, 3]
    assert len(loud.of("checkpoint")) >= 8 + 4
    ours, theirs = (tuple(b.state.model.state_dict().values()) for b in (loud, quiet))
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))
    assert loud.state.loader.position == quiet.state.loader.position


def test_activations_are_recomputed_when_the_configuration_says_so(bench: Callable[..., Bench]) -> None:
    kept, recomputed = bench("kept"), bench("recomputed", training={"gradient_checkpointing": True})
    flags = [one.state.model.gradient_checkpointing for one in (kept, recomputed)]
    assert flags == [False, True]
    assert run_with(kept.state) == run_with(recomputed.state)


def test_a_halved_micro_batch_is_reported_before_its_step_and_at_every_resume(bench: Callable[..., Bench]) -> None:
    small = bench(training={"on_oom": "halve", "max_steps": 4, "batch_size": 4})
    model = small.state.model

    def forward(idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if small.state.step == 2 and len(idx) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return model(idx, targets)

    small.state.forward = forward
    train(small.state, small.listeners(), lambda: False)
    steps_and_warnings = [e.get("code", e["step"]) for e in small.events if e["type"] in {"step", "warning"}]
    assert steps_and_warnings == [1, 2, "batch_halved", "batch_halved", 3, 4]
    assert [(e["step"], e["old"], e["new"]) for e in small.of("warning")] == [(2, 4, 2), (2, 2, 1)]

    again = Bench(small.state, small.run, small.dataset)
    train(again.state, again.listeners(), lambda: False)
    (warning,) = again.of("warning")
    assert (warning["code"], warning["old"], warning["new"]) == ("batch_halved", 4, 1)


def test_validation_takes_the_same_windows_with_fewer_rows(bench: Callable[..., Bench]) -> None:
    whole, cut = bench("whole"), bench("cut", training={"on_oom": "halve"})
    less_memory(cut.state.model, rows=1)
    for one in (whole, cut):
        Validation(one.dataset, one.emit).on_start(one.state)
    assert cut.state.val_loss == pytest.approx(whole.state.val_loss, rel=1e-5)
    assert cut.state.val_loss != whole.state.val_loss
    assert (cut.state.batch_size, cut.state.model.training) == (2, True)


def test_a_halved_training_validates_with_as_few_rows(bench: Callable[..., Bench]) -> None:
    cut = bench()
    less_memory(cut.state.model, rows=1)
    cut.state.resize(1)
    Validation(cut.dataset, cut.emit).on_start(cut.state)
    assert cut.state.val_loss is not None


def test_validation_without_memory_ends_the_run_unless_configured_otherwise(bench: Callable[..., Bench]) -> None:
    full = bench()
    less_memory(full.state.model, rows=1)
    with pytest.raises(OutOfMemory) as refused:
        train(full.state, full.listeners(), lambda: False)
    assert (refused.value.step, refused.value.facts["batch_size"]) == (0, 2)


def test_a_skipped_step_is_warned_about(bench: Callable[..., Bench]) -> None:
    half = bench(device={"dtype": "float16"}, training={"max_steps": 3})
    half.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    train(half.state, half.listeners(), lambda: False)
    assert [(event["code"], event["step"]) for event in half.of("warning")] == [("step_skipped", n) for n in (1, 2, 3)]
    assert not any(math.isfinite(event["grad_norm"]) for event in half.of("step"))


def test_the_size_of_a_checkpoint_is_known_before_it_is_written(bench: Callable[..., Bench]) -> None:
    short = bench(training={"max_steps": 4})
    train(short.state, short.listeners(), lambda: False)
    sizes = {info.file: info.size_bytes for info in short.run.checkpoints()}
    state = short.state
    weights = parameters_state(state.model, state.config, state.tokenizer, state.step)
    assert 0 <= size_bytes(state.full()) - sizes["model_latest.pt"] < 1 << 16
    assert 0 <= size_bytes(weights) - sizes["model_final.pt"] < 1 << 16


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_not_begun(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = bench(training={"max_steps": 10})
    free = iter([10**9, 1000])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    with pytest.raises(DiskFull, match=r"'model_best\.pt'.* 1000"):
        train(short.state, short.listeners(), lambda: False)
    assert not list(short.run.path.glob(".*.tmp"))
    (info,) = short.run.full_states()
    found = newest_full_state(short.run, pytest.fail)
    assert found is not None
    assert (info.file, found[1]["step"]) == ("model_00005.pt", 5)
