"""The training loop: take a step, tell the observers, stop when asked.

The loop knows nothing of files, logs or pictures. It changes a `TrainState` and hands it, with what the step
measured, to an ordered list of observers; losses are the same whichever of them listen. A step that fails, for lack
of memory, because its loss is not a number or because another process was lost, leaves the state as it was before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from model_core.budget import share_of
from model_core.errors import NonFiniteLoss, OutOfMemory, is_out_of_memory
from model_core.hardware.memory import fewer_rows, out_of_memory
from model_core.hardware.rng import restore_rng, rng_state
from model_core.optim import clip_gradients
from model_core.schedule import get_lr
from model_core.training.meeting import RankLost
from model_core.training.state import TrainState

_LEAST_SCALE = 1.0  # gradients that overflow float16 without being scaled up are not the scaler's doing


@dataclass(frozen=True)
class StepResult:
    """What one step measured.

    Attributes:
        overflowed_scale: With float16, the scale at which the gradients overflowed, so that nothing was updated.
    """

    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float
    overflowed_scale: float | None = None


class Observer(Protocol):
    """Listens to a run; may read the state, never what the next step computes."""

    def on_start(self, state: TrainState) -> None:
        """Called before the first step of the attempt."""

    def on_halved(self, state: TrainState, before: int) -> None:
        """Called when a step did not fit with `before` rows at once, before it is taken again with fewer."""

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
        should_stop: Asked between steps; all processes stop at the same one.

    Returns:
        Whether the run reached its last step.

    Raises:
        RankLost: Another process is gone; the observers were told that the run stops, so the state is saved.
        NonFiniteLoss: The loss is not a number; the state is that of the step before.
        OutOfMemory: A step does not fit, and may not or cannot be cut smaller; likewise.
    """
    try:
        for observer in observers:
            observer.on_start(state)
        stopped = state.ranks.any(should_stop())
        while not stopped and state.step < state.max_steps:
            result = _fitting_step(state, observers)
            for observer in observers:
                observer.on_step(state, result)
            stopped = state.ranks.any(should_stop()) and state.step < state.max_steps
        for observer in observers:
            observer.on_end(state, stopped=stopped)
    except RankLost:
        for observer in observers:
            observer.on_end(state, stopped=True)
        raise
    finally:
        for observer in observers:
            observer.close()
    return not stopped


def _fitting_step(state: TrainState, observers: Sequence[Observer]) -> StepResult:
    """Take a step, with fewer rows at once for as long as memory runs out and the configuration allows it."""
    while True:
        try:
            return take_step(state)
        except OutOfMemory:
            smaller = fewer_rows(share_of(state.config, state.ranks.world), state.batch_size)
            if state.config.training.on_oom == "fail" or smaller is None:
                raise
        before = state.batch_size  # only here, without the error, is its memory free
        state.resize(smaller)
        if state.runtime.device_type == "cuda":
            torch.cuda.empty_cache()
        for observer in observers:
            observer.on_halved(state, before)


def take_step(state: TrainState) -> StepResult:
    """Accumulate gradients over the micro batches of all processes and update once.

    With float16, gradients that overflow are no error: the scaler skips the update and lowers its scale.

    Raises:
        NonFiniteLoss: The loss, or the gradient, is not finite; the state is as before.
        OutOfMemory: The micro batch does not fit, here or in another process; the state is as before.
        RankLost: Another process is gone; the state is as before.
    """
    began, config = time.perf_counter(), state.config
    position, rng = state.loader.position, rng_state(state.runtime.device)
    lr = get_lr(state.step, config.training, state.max_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = lr

    try:
        loss, waiting_s, fits = _accumulate_together(state)
    except RankLost:
        _undo(state, position, rng)
        raise
    if not fits:
        _undo(state, position, rng)
        share = share_of(config, state.ranks.world)
        raise out_of_memory(share, state.runtime, step=state.step + 1, batch_size=state.batch_size)
    state.scaler.unscale_(state.optimizer)
    grad_norm, scale = clip_gradients(state.model, config.training.grad_clip), state.scaler.get_scale()
    is_skipped = state.runtime.scaler and not math.isfinite(grad_norm)
    if not math.isfinite(loss) or not (math.isfinite(grad_norm) or (is_skipped and scale >= _LEAST_SCALE)):
        _undo(state, position, rng)
        raise NonFiniteLoss(state.step + 1, loss, grad_norm)
    _update(state)

    state.step += 1
    state.loss, state.grad_norm = loss, grad_norm
    elapsed = time.perf_counter() - began
    state.seconds += elapsed
    state.pace.add(config.training.total_batch_size, elapsed, waiting_s)
    speed = config.training.total_batch_size / elapsed
    return StepResult(loss, lr, grad_norm, speed, scale if is_skipped else None)


def _accumulate_together(state: TrainState) -> tuple[float, float, bool]:
    """Average loss and gradients over all processes, if the rows of each fit in its memory.

    Returns:
        The loss, the seconds spent on waiting for data, and whether all fitted; if not, the gradients are of no use.
    """
    state.ranks.reseed(state.config.device.seed, state.step)
    try:
        loss, waiting_s, fits = *_accumulate(state), True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        loss, waiting_s, fits = 0.0, 0.0, False
    loss, fits = state.ranks.agree(loss, fits=fits)
    if fits:
        state.ranks.average(state.model)
    return loss, waiting_s, fits


def _accumulate(state: TrainState) -> tuple[float, float]:
    """Add up the gradients of a step's micro batches; returns the loss, and the seconds spent on waiting for data."""
    total, waiting_s = torch.zeros((), device=state.runtime.device), 0.0
    for _ in range(state.accumulation):
        asked = time.perf_counter()
        idx, targets = state.loader.next_batch()
        waiting_s += time.perf_counter() - asked
        with state.runtime.autocast(), state.runtime.attention():
            loss = state.forward(idx, targets)[1]
        assert loss is not None
        loss = loss / state.accumulation
        total = total + loss.detach()
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return total.item(), waiting_s


def _undo(state: TrainState, position: int, rng: dict[str, Any]) -> None:
    """Put back what a step that did not update has changed."""
    state.optimizer.zero_grad(set_to_none=True)
    state.loader.position = position
    restore_rng(rng, state.runtime.device)


def _update(state: TrainState) -> None:
    """Apply the gradients; with a scaler, a step whose gradients overflowed is skipped."""
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
