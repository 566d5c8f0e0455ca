"""The training loop: take a step, tell the observers, stop when asked.

The loop knows nothing of files, logs or pictures. It changes a `TrainState` and hands it, with what the step
measured, to an ordered list of observers; losses are the same whichever of them listen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from model_core.checkpoint import State, clean, weights_state
from model_core.config import ExperimentConfig
from model_core.data.loader import TokenLoader
from model_core.device import Runtime
from model_core.errors import NonFiniteLoss
from model_core.gpt import GPT
from model_core.schedule import get_lr
from model_core.tokenizer import Tokenizer

Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


@dataclass
class TrainState:
    """Everything that a step changes, or that the next one depends on.

    Attributes:
        step: Optimizer updates done.
        loss: Training loss of the last step.
        val_loss: Last validation loss, and `val_step` when it was measured.
        best_val_loss: Lowest so far, and `best_step` when it was measured.
    """

    config: ExperimentConfig
    runtime: Runtime
    model: GPT
    tokenizer: Tokenizer
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: TokenLoader
    forward: Forward
    step: int = 0
    loss: float | None = None
    grad_norm: float | None = None
    val_loss: float | None = None
    val_step: int = -1
    best_val_loss: float = math.inf
    best_step: int = -1
    seconds: float = field(default=0.0)

    @property
    def max_steps(self) -> int:
        """Where the run ends: resolved before step 0."""
        return self.config.training.max_steps

    def full(self) -> State:
        """Everything needed to go on exactly."""
        return {
            **weights_state(self.model, self.config, self.tokenizer, self.step),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": _rng_state(self.runtime.device),
            "position": self.loader.position,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "val_loss": self.val_loss,
            "val_step": self.val_step,
            "best_val_loss": self.best_val_loss,
            "best_step": self.best_step,
            "seconds": self.seconds,
        }

    def restore(self, state: State) -> None:
        """Go on from a full state."""
        self.model.load_state_dict(clean(state["model"]))
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        _restore_rng(state["rng"], self.runtime.device)
        self.loader.position = state["position"]
        self.step, self.loss, self.grad_norm = state["step"], state["loss"], state["grad_norm"]
        self.val_loss, self.val_step = state["val_loss"], state["val_step"]
        self.best_val_loss, self.best_step = state["best_val_loss"], state["best_step"]
        self.seconds = state["seconds"]


@dataclass(frozen=True)
class StepResult:
    """What one step measured."""

    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float


class Observer(Protocol):
    """Listens to a run; may read the state, never what the next step computes."""

    def on_start(self, state: TrainState) -> None:
        """Called before the first step of the attempt."""

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Called after every step."""

    def on_end(self, state: TrainState, *, stopped: bool) -> None:
        """Called after the last step, or when the run was asked to stop."""

    def close(self) -> None:
        """Called last, also after an error."""


def train(state: TrainState, observers: Sequence[Observer], should_stop: Callable[[], bool]) -> bool:
    """Run the loop.

    Args:
        state: Where to begin; it is changed.
        observers: Told in this order.
        should_stop: Asked between steps.

    Returns:
        Whether the run reached its last step.

    Raises:
        NonFiniteLoss: The loss is not a number; the state is that of the step before.
    """
    try:
        for observer in observers:
            observer.on_start(state)
        stopped = should_stop()
        while not stopped and state.step < state.max_steps:
            result = take_step(state)
            for observer in observers:
                observer.on_step(state, result)
            stopped = should_stop() and state.step < state.max_steps
        for observer in observers:
            observer.on_end(state, stopped=stopped)
    finally:
        for observer in observers:
            observer.close()
    return not stopped


def take_step(state: TrainState) -> StepResult:
    """Accumulate gradients over the micro batches and update once.

    Raises:
        NonFiniteLoss: The loss, or the gradient, is not finite; nothing was updated.
    """
    began, position = time.perf_counter(), state.loader.position
    config, runtime = state.config, state.runtime
    lr = get_lr(state.step, config.training, state.max_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = lr

    total = torch.zeros((), device=runtime.device)
    for _ in range(config.accumulation):
        idx, targets = state.loader.next_batch()
        with runtime.autocast(), runtime.attention():
            _, loss = state.forward(idx, targets)
        assert loss is not None
        loss = loss / config.accumulation
        total += loss.detach()
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    loss_value = total.item()
    grad_norm = _clip_gradients(state)
    if not math.isfinite(loss_value) or not (math.isfinite(grad_norm) or state.runtime.scaler):
        state.loader.position = position
        raise NonFiniteLoss(state.step + 1, loss_value, grad_norm)
    _update(state)

    state.step += 1
    state.loss, state.grad_norm = loss_value, grad_norm
    elapsed = time.perf_counter() - began
    state.seconds += elapsed
    return StepResult(loss_value, lr, grad_norm, config.training.total_batch_size / elapsed)


def _clip_gradients(state: TrainState) -> float:
    """Clip the gradients; returns what their norm was."""
    clip = state.config.training.grad_clip
    state.scaler.unscale_(state.optimizer)
    return float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip or math.inf))


def _update(state: TrainState) -> None:
    """Apply the gradients; with a scaler, a step whose gradients overflowed is skipped."""
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


def _rng_state(device: str) -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state(device) if device.startswith("cuda") else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _restore_rng(state: dict[str, Any], device: str) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.startswith("cuda"):
        torch.cuda.set_rng_state(state["cuda"], device)
