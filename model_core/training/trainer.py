"""The training loop: take a step, call the callbacks, stop when asked.

The loop knows nothing of files, logs or pictures. `TrainState` holds everything that a step changes or the next one
depends on, so a full state continues exactly. After each step an ordered list of callbacks gets the state and the
measured result; losses do not depend on them. A step that fails, for lack of memory, because its loss is not finite
or because another process was lost, leaves the state as it was before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from model_core.budget import per_process_config
from model_core.checkpoint import State, clean, parameters_state
from model_core.config import ExperimentConfig
from model_core.data.loader import TokenLoader
from model_core.errors import NonFiniteLoss, OutOfMemory, is_out_of_memory
from model_core.gpt import GPT, Forward
from model_core.hardware.device import Runtime
from model_core.hardware.memory import fewer_rows, out_of_memory
from model_core.hardware.throughput import ThroughputMeter
from model_core.optim import clip_gradients, load_moments
from model_core.schedule import get_lr
from model_core.tokenizer import Tokenizer
from model_core.training.distributed import ProcessGroup, RankLost

_LEAST_SCALE = 1.0  # gradients that overflow float16 at a smaller scale do not overflow because they were scaled


@dataclass
class TrainState:
    """Everything that a step changes, or that the next one depends on.

    Attributes:
        config: Resolved configuration of the run.
        runtime: Hardware of this process.
        model: The model.
        tokenizer: Tokenizer of the dataset.
        optimizer: AdamW with its moments.
        scaler: Gradient scaler, which is disabled unless the number format is float16.
        loader: Batches of the training split, with their position.
        forward: Forward pass of a micro batch: the model, or its compiled version.
        step: Optimizer updates done.
        loss: Training loss of the last step.
        grad_norm: Norm of the last step's gradients, before clipping.
        val_loss: Last validation loss, measured at `val_step`.
        val_step: -1 before the first validation.
        best_val_loss: Lowest validation loss, measured at `best_step`.
        best_step: -1 before the first validation.
        seconds: Duration of all steps, over all attempts.
        throughput: Speed of the steps of this process.
        process_group: Processes that take each step together.
        data_sha256: Identity of the dataset.
        batch_size: Rows of a micro batch; smaller than configured after memory ran out.
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
    seconds: float = 0.0
    throughput: ThroughputMeter = field(default_factory=ThroughputMeter)
    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    data_sha256: str | None = None
    batch_size: int = field(init=False)

    def __post_init__(self) -> None:
        self.batch_size = self.config.training.batch_size

    @property
    def max_steps(self) -> int:
        """Number of steps of the run, which is resolved before step 0."""
        return self.config.training.max_steps

    @property
    def accumulation(self) -> int:
        """Micro batches that each process computes in one step."""
        training = self.config.training
        return training.total_batch_size // (self.batch_size * training.sequence_length * self.process_group.world_size)

    def resize(self, batch_size: int) -> None:
        """Change the size of micro batches; a step has as many rows as before.

        Args:
            batch_size: Rows of a micro batch.
        """
        self.batch_size = batch_size
        self.loader.resize(batch_size)

    def full(self) -> State:
        """Collect everything that is needed to continue exactly.

        Returns:
            The full state, whose tensors are those of the model and the optimizer.
        """
        return {
            **parameters_state(self.model, self.config, self.tokenizer, self.step),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(self.runtime.device),
            "position": self.loader.position,
            "data_sha256": self.data_sha256,
            "batch_size": self.batch_size,
            "processes": self.process_group.world_size,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "val_loss": self.val_loss,
            "val_step": self.val_step,
            "best_val_loss": self.best_val_loss,
            "best_step": self.best_step,
            "seconds": self.seconds,
        }

    def restore(self, state: State) -> None:
        """Continue from a full state.

        Args:
            state: Content of a checkpoint, as `full` returned it.
        """
        self.model.load_state_dict(clean(state["model"]))
        load_moments(self.optimizer, state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        restore_rng(state["rng"], self.runtime.device)
        self.loader.position = state["position"]
        self.resize(self._fitting(state.get("batch_size", self.config.training.batch_size)))
        self.step, self.loss, self.grad_norm = state["step"], state["loss"], state["grad_norm"]
        self.val_loss, self.val_step = state["val_loss"], state["val_step"]
        self.best_val_loss, self.best_step = state["best_val_loss"], state["best_step"]
        self.seconds = state["seconds"]

    def _fitting(self, batch_size: int) -> int:
        """Keep another run's micro batch, unless a step is no whole number of them here."""
        training = self.config.training
        rows = training.total_batch_size // (training.sequence_length * self.process_group.world_size)
        return training.batch_size if rows % batch_size else batch_size


@dataclass(frozen=True)
class StepResult:
    """What one step measured.

    Attributes:
        loss: Mean training loss in nats per token.
        lr: Learning rate of the step.
        grad_norm: Norm of the gradients, before clipping.
        tokens_per_s: Tokens of all processes per second.
        overflowed_scale: With float16, the scale at which the gradients overflowed, so that the step updated nothing.
    """

    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float
    overflowed_scale: float | None = None


class Callback:
    """Base class of what observes the training loop.

    A callback may read the state, and must change nothing on which the next step depends.
    """

    def on_start(self, state: TrainState) -> None:
        """Run before the first step of the attempt.

        Args:
            state: State before the step.
        """

    def on_halved(self, state: TrainState, before: int) -> None:
        """Run when a step did not fit in memory, before it is taken again with fewer rows.

        Args:
            state: State with the smaller micro batch.
            before: Rows of a micro batch that did not fit.
        """

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Run after every step.

        Args:
            state: State after the step.
            result: What the step measured.
        """

    def on_end(self, state: TrainState, *, stopped: bool) -> None:
        """Run after the last step, or when the run was asked to stop.

        Args:
            state: State after the last step taken.
            stopped: Whether the run ends before its last step.
        """

    def close(self) -> None:
        """Run last, also after an error."""


def train(state: TrainState, callbacks: Sequence[Callback], should_stop: Callable[[], bool]) -> bool:
    """Run the loop.

    Args:
        state: Where to begin; it is changed.
        callbacks: Called in this order.
        should_stop: Checked between steps; all processes stop at the same one.

    Returns:
        Whether the run reached its last step.

    Raises:
        RankLost: Another process is gone; the callbacks ran as for a stop, so the state is saved.
        NonFiniteLoss: The loss is not finite; the state is that of the step before.
        OutOfMemory: A step does not fit, and the micro batch must not or cannot be smaller; likewise.
    """
    try:
        for callback in callbacks:
            callback.on_start(state)
        stopped = state.process_group.any(should_stop())
        while not stopped and state.step < state.max_steps:
            result = _fitting_step(state, callbacks)
            for callback in callbacks:
                callback.on_step(state, result)
            stopped = state.process_group.any(should_stop()) and state.step < state.max_steps
        for callback in callbacks:
            callback.on_end(state, stopped=stopped)
    except RankLost:
        for callback in callbacks:
            callback.on_end(state, stopped=True)
        raise
    finally:
        for callback in callbacks:
            callback.close()
    return not stopped


def take_step(state: TrainState) -> StepResult:
    """Accumulate gradients over the micro batches of all processes and update once.

    With float16, gradients that overflow are no error: the scaler skips the update and lowers its scale.

    Args:
        state: State before the step; it is changed.

    Returns:
        What the step measured.

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
        share = per_process_config(config, state.process_group.world_size)
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
    state.throughput.add(config.training.total_batch_size, elapsed, waiting_s)
    speed = config.training.total_batch_size / elapsed
    return StepResult(loss, lr, grad_norm, speed, scale if is_skipped else None)


def rng_state(device: str) -> dict[str, Any]:
    """Read the states of the random number generators.

    Args:
        device: Device of the model, in PyTorch's notation.

    Returns:
        The states of ``cpu``, ``cuda`` and ``mps``; None for a device that is not used.
    """
    cuda = torch.cuda.get_rng_state(device) if device.startswith("cuda") else None
    mps = torch.mps.get_rng_state() if device == "mps" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda, "mps": mps}


def restore_rng(state: dict[str, Any], device: str) -> None:
    """Restore the states of the random number generators.

    Args:
        state: States from `rng_state`; a device without a state keeps its own.
        device: Device of the model.
    """
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.startswith("cuda"):
        torch.cuda.set_rng_state(state["cuda"], device)
    if state.get("mps") is not None and device == "mps":
        torch.mps.set_rng_state(state["mps"])


def _fitting_step(state: TrainState, callbacks: Sequence[Callback]) -> StepResult:
    """Take a step, with smaller micro batches for as long as memory runs out and the configuration allows it."""
    while True:
        try:
            return take_step(state)
        except OutOfMemory:
            smaller = fewer_rows(per_process_config(state.config, state.process_group.world_size), state.batch_size)
            if state.config.training.on_oom == "fail" or smaller is None:
                raise
        before = state.batch_size  # outside of `except`, because the error keeps the step's tensors alive
        state.resize(smaller)
        if state.runtime.device_type == "cuda":
            torch.cuda.empty_cache()
        for callback in callbacks:
            callback.on_halved(state, before)


def _accumulate_together(state: TrainState) -> tuple[float, float, bool]:
    """Average loss and gradients over all processes, if the rows of each fit in its memory.

    Returns:
        The loss, the seconds spent on waiting for data, and whether all fitted; if not, the gradients are useless.
    """
    state.process_group.seed_rank(state.config.device.seed, state.step)
    try:
        loss, waiting_s, fits = *_accumulate(state), True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        loss, waiting_s, fits = 0.0, 0.0, False
    loss, fits = state.process_group.all_agree(loss, fits=fits)
    if fits:
        state.process_group.all_reduce_grads(state.model)
    return loss, waiting_s, fits


def _accumulate(state: TrainState) -> tuple[float, float]:
    """Add up the gradients of a step's micro batches; returns the loss, and the seconds spent on waiting for data."""
    total, waiting_s = torch.zeros((), device=state.runtime.device), 0.0
    for _ in range(state.accumulation):
        began = time.perf_counter()
        idx, targets = state.loader.next_batch()
        waiting_s += time.perf_counter() - began
        with state.runtime.autocast(), state.runtime.attention():
            loss = state.forward(idx, targets)[1]
        assert loss is not None
        loss = loss / state.accumulation
        total = total + loss.detach()
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return total.item(), waiting_s


def _undo(state: TrainState, position: int, rng: dict[str, Any]) -> None:
    """Restore what a step without an update has changed."""
    state.optimizer.zero_grad(set_to_none=True)
    state.loader.position = position
    restore_rng(rng, state.runtime.device)


def _update(state: TrainState) -> None:
    """Apply the gradients; with a scaler, a step whose gradients overflowed is skipped."""
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
