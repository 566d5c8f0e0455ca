"""Curves of a run for TensorBoard and for Weights & Biases, with the numbers of events.jsonl.

Each of the two packages is imported only if the configuration enables it. A later attempt continues the same series. A
logger that fails is dropped with a warning, and the training continues.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from model_core.config import ExperimentConfig
from model_core.entrypoint import Emit
from model_core.errors import PackageMissing
from model_core.storage.dataset import Dataset, bits_per_byte
from model_core.storage.files import write_text
from model_core.storage.run import Run
from model_core.training.trainer import Callback, StepResult, TrainState

Mode = Literal["offline", "online"]

_PROJECT = "headcount"
_ONLINE_TIMEOUT_S = 30.0


class ExperimentLogger(Protocol):
    """Writes time series, by step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each series.

        Args:
            step: Step of the values.
            values: Value by name of the series.
        """

    def close(self) -> None:
        """Write everything to disk."""


def require_trackers(config: ExperimentConfig) -> None:
    """Refuse a configuration whose loggers are not installed.

    Args:
        config: Section `logging` enables them.

    Raises:
        PackageMissing: A package is missing; the message names the key and what to install.
    """
    chosen = {"tensorboard": config.logging.tensorboard, "wandb": config.logging.wandb != "off"}
    for name, is_on in chosen.items():
        if is_on and find_spec(name) is None:
            raise PackageMissing(f"logging.{name}", name)


def trackers(config: ExperimentConfig, run: Run, *, dataset: Dataset, emit: Emit) -> list[Callback]:
    """Build the callbacks of the loggers that the configuration enables.

    Args:
        config: Section `logging` enables them.
        run: Directory of the run, for their files.
        dataset: Dataset, for bits per byte.
        emit: Writes warnings.

    Returns:
        The callbacks.

    Raises:
        PackageMissing: See `require_trackers`.
    """
    require_trackers(config)
    mode, present = config.logging.wandb, []
    if config.logging.tensorboard:
        present.append(Tracker(lambda first: TensorBoard(run.path / "tensorboard", first), dataset, emit))
    if mode != "off":
        present.append(Tracker(lambda _: WeightsAndBiases(run, config, mode, emit), dataset, emit))
    return list(present)


class Tracker(Callback):
    """Passes losses and speed to a logger.

    Args:
        open_logger: Opens the logger, given the first step that will be written.
        dataset: Dataset, for bits per byte.
        emit: Writes a warning when the logger fails.
    """

    def __init__(self, open_logger: Callable[[int], ExperimentLogger], dataset: Dataset, emit: Emit) -> None:
        self._open_logger, self._dataset, self._emit = open_logger, dataset, emit
        self._logger: ExperimentLogger | None = None

    def on_start(self, state: TrainState) -> None:
        """Open the logger, and write the validation loss of the untrained model at step 0.

        Args:
            state: State before the step.
        """

        def begin() -> None:
            self._logger = self._open_logger(state.step + 1 if state.step else 0)
            if state.step == 0:
                self._logger.write(0, self._validation(state))

        self._try(begin)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Write what the step measured.

        Args:
            state: State after the step.
            result: What the step measured.
        """
        values = {
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "tokens_per_s": round(result.tokens_per_s, 1),
        }
        if logger := self._logger:
            self._try(lambda: logger.write(state.step, values | self._validation(state)))

    def close(self) -> None:
        """Close the logger."""
        if logger := self._logger:
            self._try(logger.close)

    def _validation(self, state: TrainState) -> dict[str, float]:
        if state.val_loss is None or state.val_step != state.step:
            return {}
        bits = bits_per_byte(state.val_loss, self._dataset, "val")
        return {"val_loss": state.val_loss, **({} if bits is None else {"bits_per_byte": bits})}

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the training must survive any error of the package
            self._logger = None
            self._emit("warning", code="tracking_stopped", detail=f"{type(error).__name__}: {str(error)[:300]}")


class TensorBoard:
    """Event files for `tensorboard --logdir`, beside those of earlier attempts.

    Args:
        directory: Directory of the files.
        first: First step of this attempt; what earlier attempts wrote from it on is void.
    """

    def __init__(self, directory: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=first)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each series.

        Args:
            step: Step of the values.
            values: Value by name of the series.
        """
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill loses no step that events.jsonl has

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, which is sent while it grows, or later by `wandb sync`.

    It continues the one of earlier attempts.

    Args:
        run: Directory of the run, for the files.
        config: Configuration to show, without paths of this machine.
        mode: ``offline`` only writes files; ``online`` also sends them, and falls back to ``offline``.
        emit: Writes a warning about a fallback.
    """

    def __init__(self, run: Run, config: ExperimentConfig, mode: Mode, emit: Emit) -> None:
        import wandb

        def begin(mode: Mode) -> Any:
            quiet = wandb.Settings(
                silent=True, console="off", save_code=False, disable_git=True, disable_code=True, x_disable_stats=True,
                x_disable_meta=True, x_save_requirements=False, init_timeout=_ONLINE_TIMEOUT_S,
                finish_timeout=_ONLINE_TIMEOUT_S,
            )  # fmt: skip
            shown = config.model_dump(mode="json", exclude={"output": True, "data": {"data_dir"}})
            return wandb.init(
                project=_PROJECT, name=run.name, id=_identity(run.path / "wandb"), resume="allow", dir=str(run.path),
                config=shown, mode=mode, settings=quiet,
            )  # fmt: skip

        try:
            self._run = begin(mode)
        except wandb.Error as error:
            if mode == "offline":
                raise
            reason = str(error).partition("\n")[0][:300]
            detail = f"Weights & Biases cannot be reached, so its files stay here for wandb sync: {reason}"
            emit("warning", code="wandb_offline", detail=detail)
            wandb.teardown()  # it still holds the run that failed to start
            self._run = begin("offline")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each series.

        Args:
            step: Step of the values.
            values: Value by name of the series.
        """
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the files, and send what is left."""
        self._run.finish()


def _identity(directory: Path) -> str:
    """Return the run's id at Weights & Biases, which the first attempt draws."""
    file = directory / "id"
    if not file.exists():
        directory.mkdir(exist_ok=True)
        write_text(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8")
