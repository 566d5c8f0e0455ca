"""Callbacks of the training loop: events, validation, samples, checkpoints, log lines and the progress bar.

They are called in one order, so that a checkpoint has the validation loss of its step. None of them changes the random
numbers or the data of the next step.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model_core.budget import compute_budget
from model_core.checkpoint import State, parameters_state, writer
from model_core.config import ExperimentConfig
from model_core.data.loader import LoaderConfig, load_tokens
from model_core.entrypoint import Emit
from model_core.errors import NonFiniteLoss, is_out_of_memory
from model_core.generation.engine import generate
from model_core.hardware.memory import fewer_rows, out_of_memory, peak_bytes
from model_core.hardware.throughput import peak_flops
from model_core.storage.checkpoints import BEST, FINAL, LATEST, PREVIOUS, periodic_name
from model_core.storage.dataset import Dataset, bits_per_byte
from model_core.storage.files import require_space
from model_core.storage.run import Run
from model_core.training.evaluate import mean_loss
from model_core.training.head_probing import HeadHistory
from model_core.training.tracking import trackers
from model_core.training.trainer import Callback, StepResult, TrainState

log = logging.getLogger(__name__)

_OVERHEAD_BYTES = 64 << 10  # of a checkpoint: names, configuration and the archive itself
_TEXT_OVERHEAD_BYTES = 16


def build_callbacks(
    config: ExperimentConfig, run: Run, *, attempt: int, dataset: Dataset, emit: Emit
) -> list[Callback]:
    """Build the callbacks of a run.

    Args:
        config: Configuration of the run.
        run: Directory of the run.
        attempt: Number of the attempt.
        dataset: Dataset with the validation split.
        emit: Writes events.

    Returns:
        The callbacks, in the order in which the loop calls them.
    """
    present: list[Callback] = [Events(emit), Validation(dataset, emit)]
    if config.evaluation.sample_num:
        present.append(Samples(emit))
    if config.evaluation.head_statistics:
        present.append(HeadHistory(dataset, run, emit))
    present += [Checkpoints(run, attempt, emit), LogLines(), *trackers(config, run, dataset=dataset, emit=emit)]
    if config.logging.verbose and sys.stderr.isatty():
        present.append(ProgressBar())
    return present


class Events(Callback):
    """Writes ``step`` events, and warnings about what a step did.

    Args:
        emit: Writes events.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._mfu_per_speed: float | None = None  # None where the peak of the device is not known

    def on_start(self, state: TrainState) -> None:
        """Look up the peak of the device, and warn when the micro batch is still smaller than configured.

        Args:
            state: State before the step.
        """
        runtime = state.runtime
        peak = peak_flops(runtime.gpu.name, runtime.dtype, tf32=runtime.tf32) if runtime.gpu else None
        if peak is not None:
            flops = compute_budget(state.config).flops_per_token
            self._mfu_per_speed = flops / (peak * state.process_group.world_size)
        configured = state.config.training.batch_size
        if state.batch_size < configured:
            detail = f"memory ran out earlier in this run: batch_size stays {state.batch_size} instead of {configured}"
            self._emit_halved(state, configured, detail)

    def on_halved(self, state: TrainState, before: int) -> None:
        """Warn that the micro batch is smaller from here on.

        Args:
            state: State with the smaller micro batch.
            before: Rows of a micro batch that did not fit.
        """
        where = f"memory ran out at step {state.step + 1} with batch_size {before}"
        self._emit_halved(state, before, f"{where}; going on with {state.batch_size} at the same total")

    def _emit_halved(self, state: TrainState, old: int, detail: str) -> None:
        self._emit("warning", code="batch_halved", detail=detail, step=state.step, old=old, new=state.batch_size)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Write loss, learning rate, gradient norm, speed, peak memory and MFU; warn when nothing was updated.

        Args:
            state: State after the step.
            result: What the step measured.
        """
        if result.overflowed_scale is not None:
            detail = (
                f"gradients overflowed float16 at scale {result.overflowed_scale:g}; step {state.step} updated nothing"
            )
            self._emit("warning", code="step_skipped", detail=detail, step=state.step)
        self._emit(
            "step",
            step=state.step,
            loss=result.loss,
            lr=result.lr,
            grad_norm=result.grad_norm,
            tokens_per_s=round(result.tokens_per_s, 1),
            **self._measured(state, result),
        )

    def _measured(self, state: TrainState, result: StepResult) -> dict[str, Any]:
        """Peak memory so far and MFU, where they are known."""
        memory, per_speed = peak_bytes(state.runtime), self._mfu_per_speed
        found = {} if memory is None else {"memory_bytes": memory}
        return found if per_speed is None else {**found, "mfu": round(result.tokens_per_s * per_speed, 4)}


class Validation(Callback):
    """Measures the validation loss before the first step, every ``val_loss_every`` steps, and after the last.

    It always reads the same windows. When memory runs out it uses fewer rows at once, independently of the training.

    Args:
        dataset: Dataset with the validation split.
        emit: Writes ``validation`` events and warnings.
    """

    def __init__(self, dataset: Dataset, emit: Emit) -> None:
        self._dataset, self._emit = dataset, emit
        self._tokens = load_tokens(dataset.val)
        self._most_rows: int | None = None
        self._has_warned = False

    def on_start(self, state: TrainState) -> None:
        """Measure the loss of the untrained model.

        Args:
            state: State before the step.
        """
        if state.step == 0:
            self._validate(state)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Measure the loss when it is due, and record the best in the state.

        Args:
            state: State after the step.
            result: What the step measured.
        """
        if state.step % state.config.evaluation.val_loss_every and state.step != state.max_steps:
            return
        self._validate(state)
        if state.val_step == state.step and state.val_loss is not None and state.val_loss < state.best_val_loss:
            state.best_val_loss, state.best_step = state.val_loss, state.step

    def _validate(self, state: TrainState) -> None:
        loss = self._mean_loss(state)
        if loss is None:
            if not self._has_warned:
                detail = f"the validation split has {len(self._tokens)} tokens, fewer than one row takes"
                self._emit("warning", code="no_val_loss", detail=detail)
            self._has_warned = True
            return
        if not math.isfinite(loss):
            raise NonFiniteLoss(state.step, loss, state.grad_norm)
        state.val_loss, state.val_step = loss, state.step
        bits = bits_per_byte(loss, self._dataset, "val")
        self._emit("validation", step=state.step, val_loss=loss, bits_per_byte=bits)
        log.info("validated step=%d val_loss=%.4f bits_per_byte=%s", state.step, loss, bits and f"{bits:.4f}")

    def _mean_loss(self, state: TrainState) -> float | None:
        rows, was_training = min(state.batch_size, self._most_rows or state.batch_size), state.model.training
        try:
            return self._loss_by(rows, state)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = fewer_rows(state.config, rows)
            if state.config.training.on_oom == "fail" or smaller is None:
                raise out_of_memory(state.config, state.runtime, step=state.step, batch_size=rows) from None
        self._most_rows = smaller
        state.model.train(was_training)
        return self._mean_loss(state)

    def _loss_by(self, rows: int, state: TrainState) -> float | None:
        training, most = state.config.training, state.config.evaluation.val_max_steps
        windows = (len(self._tokens) - 1) // training.sequence_length
        if windows < 1:
            return None
        whole = min(training.batch_size, windows)
        rows = min(rows, whole)
        batches = min(most, windows // whole) * whole // rows
        loader = LoaderConfig(rows, training.sequence_length, vocab_size=state.config.model.vocab_size)
        return mean_loss(state.model, self._tokens, loader, state.runtime, batches)


class Samples(Callback):
    """Generates samples every ``sample_every`` steps.

    Args:
        emit: Writes ``sample`` events.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Generate samples when they are due.

        Args:
            state: State after the step.
            result: What the step measured.
        """
        evaluation = state.config.evaluation
        if state.step % evaluation.sample_every and state.step != state.max_steps:
            return
        texts = generate(
            state.model,
            state.tokenizer,
            "",
            n=evaluation.sample_num,
            max_new_tokens=evaluation.sample_length,
            temperature=evaluation.sample_temperature,
            top_k=evaluation.sample_top_k,
            seed=(state.config.device.seed + state.step) % 2**63,
        )
        self._emit("sample", step=state.step, texts=texts)


class Checkpoints(Callback):
    """Saves the best and the final parameters, periodic full states and a rolling one.

    Args:
        run: Directory of the run.
        attempt: Number of the attempt, for the sidecars.
        emit: Writes ``checkpoint`` events.
    """

    def __init__(self, run: Run, attempt: int, emit: Emit) -> None:
        self._run, self._attempt, self._emit = run, attempt, emit
        self._last_full = time.monotonic()

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Save the checkpoints that are due.

        Args:
            state: State after the step.
            result: What the step measured.
        """
        keep = state.config.checkpoint
        if keep.save_best and state.best_step == state.step:
            self._save(state, BEST, _parameters(state), full=False)
        if state.step % state.config.evaluation.checkpoint_every == 0:
            self._save(state, periodic_name(state.step), state.full(), full=True)
            self._run.prune(state.config.evaluation.max_checkpoints_to_keep)
        if time.monotonic() - self._last_full >= keep.resume_every_minutes * 60:
            self._save_latest(state)

    def on_end(self, state: TrainState, *, stopped: bool) -> None:
        """Save the state to continue from, and the final parameters if the run is complete.

        Args:
            state: State after the last step taken.
            stopped: Whether the run ends before its last step.
        """
        self._save_latest(state)
        if state.config.checkpoint.save_final and not stopped:
            self._save(state, FINAL, _parameters(state), full=False)

    def _save_latest(self, state: TrainState) -> None:
        self._save(state, LATEST, state.full(), full=True, keep_as=PREVIOUS)

    def _save(self, state: TrainState, file: str, content: State, *, full: bool, keep_as: str | None = None) -> None:
        require_space(self._run.path / file, size_bytes(content))
        info = self._run.publish(
            file, writer(content), attempt=self._attempt, step=state.step, full=full,
            loss=state.loss, val_loss=state.val_loss, keep_as=keep_as, data_sha256=state.data_sha256,
        )  # fmt: skip
        if full:
            self._last_full = time.monotonic()
        self._emit("checkpoint", step=state.step, file=file, sha256=info.sha256)
        log.info("checkpoint saved run=%s file=%s step=%d", self._run.name, file, state.step)


class LogLines(Callback):
    """Logs one line every ``log_interval`` steps."""

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Log the line when it is due.

        Args:
            state: State after the step.
            result: What the step measured.
        """
        if state.step % state.config.logging.log_interval == 0:
            log.info(
                "step=%d/%d loss=%.4f lr=%.3e grad_norm=%.3f tokens_per_s=%.0f",
                state.step, state.max_steps, result.loss, result.lr, result.grad_norm, result.tokens_per_s,
            )  # fmt: skip


class ProgressBar(Callback):
    """Shows a progress bar on the terminal."""

    def __init__(self) -> None:
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  val {task.fields[val]}  {task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))

    def on_start(self, state: TrainState) -> None:
        """Show the bar.

        Args:
            state: State before the step.
        """
        self._progress.start()
        self._task = self._progress.add_task(
            "train", total=state.max_steps, completed=state.step, loss="-", val="-", speed="-"
        )

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Advance the bar.

        Args:
            state: State after the step.
            result: What the step measured.
        """
        val = "-" if state.val_loss is None else f"{state.val_loss:.3f}"
        speed = f"{result.tokens_per_s:,.0f}"
        self._progress.update(self._task, completed=state.step, loss=f"{result.loss:.3f}", val=val, speed=speed)

    def close(self) -> None:
        """Stop the bar and leave its last state on the terminal."""
        self._progress.stop()


def size_bytes(state: State) -> int:
    """Estimate the size of a state's file: the tensors, shared ones once, the texts, and a constant.

    Args:
        state: Content of the checkpoint.

    Returns:
        An upper bound in bytes.
    """
    numbers: dict[int, int] = {}
    texts, waiting = 0, [state]
    while waiting:
        value: Any = waiting.pop()
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            numbers[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, str):
            texts += len(value) + _TEXT_OVERHEAD_BYTES
        elif isinstance(value, dict | list | tuple):
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return sum(numbers.values()) + texts + _OVERHEAD_BYTES


def _parameters(state: TrainState) -> State:
    return parameters_state(state.model, state.config, state.tokenizer, state.step)
