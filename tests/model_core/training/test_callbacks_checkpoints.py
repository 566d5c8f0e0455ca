"""Which checkpoints a run keeps: best, newest periodic ones, final and rolling."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model_core.gpt import GPT
from model_core.storage.events import read_events, series
from model_core.storage.run import Run
from model_core.train import main

pytestmark = pytest.mark.usefixtures("signals")


@pytest.fixture
def trained(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Run]:
    def train(max_steps: int = 6, max_lr: float = 0.01, checkpoint: dict | None = None, **evaluation: int) -> Run:
        training = {"max_steps": max_steps, "max_lr": max_lr, "warmup_steps": 0, "total_batch_size": 32}
        watch = {"sample_num": 0, "val_loss_every": 1, "checkpoint_every": 1, **evaluation}
        assert main(["--config", str(tiny(training=training, evaluation=watch, checkpoint=checkpoint or {}))]) == 0
        return Run(tmp_path / "exp" / "tiny")

    return train


def names(run: Run) -> set[str]:
    return {path.name for path in run.path.glob("model_*.pt")}


def test_the_sixth_periodic_state_deletes_the_first_and_nothing_else(trained: Callable[..., Run]) -> None:
    run = trained(max_steps=6, max_checkpoints_to_keep=5)
    periodic = {f"model_{step:05d}.pt" for step in range(2, 7)}
    assert names(run) == periodic | {"model_best.pt", "model_final.pt", "model_latest.pt"}
    assert {path.with_suffix(".pt").name for path in run.path.glob("model_*.json")} == names(run)


def test_a_run_of_one_step_without_a_periodic_state_passes(trained: Callable[..., Run]) -> None:
    run = trained(max_steps=1, checkpoint_every=1000)
    assert names(run) == {"model_best.pt", "model_final.pt", "model_latest.pt"}
    assert {info.step for info in run.checkpoints()} == {1}


def test_the_start_says_how_many_parameters_decay(trained: Callable[..., Run]) -> None:
    run = trained(max_steps=1)
    (start,) = [event for event in read_events(run.events) if event["type"] == "start"]
    sizes = [(p.dim(), p.numel()) for p in GPT(run.config().model).parameters()]
    assert start["parameters"] == sum(size for _, size in sizes)
    assert start["parameters_decayed"] == sum(size for dim, size in sizes if dim == 2)


@pytest.mark.parametrize("word", ["best", "final"])
def test_what_is_not_to_be_saved_is_not(trained: Callable[..., Run], word: str) -> None:
    run = trained(max_steps=2, checkpoint={f"save_{word}": False})
    assert f"model_{word}.pt" not in names(run)
    assert len(names(run) & {"model_best.pt", "model_final.pt"}) == 1


def lower(losses: dict[int, float]) -> list[int]:
    """Steps whose loss is below that of every step before; the untrained model is none."""
    trained = {step: loss for step, loss in losses.items() if step}
    return [step for step in trained if all(trained[step] < trained[s] for s in trained if s < step)]


def test_the_best_changes_on_a_lower_validation_loss_alone(trained: Callable[..., Run]) -> None:
    run = trained(max_steps=12, max_lr=0.6)
    losses = series(read_events(run.events), "validation", "val_loss")
    lowest = lower(losses)
    saved = [e["step"] for e in read_events(run.events) if e["type"] == "checkpoint" and e["file"] == "model_best.pt"]
    assert saved == lowest
    assert len(lowest) < 12
    assert run.resolve("best").val_loss == losses[lowest[-1]]
