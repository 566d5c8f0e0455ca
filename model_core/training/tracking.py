"""The curves of a run for TensorBoard and for Weights & Biases: the numbers of events.jsonl, in their files.

Each is a package of its own that is imported only where the configuration turns it on. A later attempt goes on in the
same series. A tracker that fails is left with a warning: no training ends for it.
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
    """Where a tracker writes."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each series."""

    def close(self) -> None:
        """Put everything on disk."""


def require_trackers(config: ExperimentConfig) -> None:
    """Refuse a configuration whose trackers are not installed.

    Raises:
        PackageMissing: It names the key, and what to install.
    """
    chosen = {"tensorboard": config.logging.tensorboard, "wandb": config.logging.wandb != "off"}
    for name, is_on in chosen.items():
        if is_on and find_spec(name) is None:
            raise PackageMissing(f"logging.{name}", name)


def trackers(config: ExperimentConfig, run: Run, *, dataset: Dataset, emit: Emit) -> list[Callback]:
    """The trackers that the configuration turns on."""
    require_trackers(config)
    mode, present = config.logging.wandb, []
    if config.logging.tensorboard:
        present.append(Tracker(lambda first: TensorBoard(run.path / "tensorboard", first), dataset, emit))
    if mode != "off":
        present.append(Tracker(lambda _: WeightsAndBiases(run, config, mode, emit), dataset, emit))
    return list(present)


class Tracker(Callback):
    """Tells a book what the events tell of losses and speed."""

    def __init__(self, begin: Callable[[int], ExperimentLogger], dataset: Dataset, emit: Emit) -> None:
        """Prepare to.

        Args:
            begin: Opens the book, given the first step that will be told.
            dataset: For bits a byte.
            emit: Told ``warning`` when the book fails.
        """
        self._begin, self._dataset, self._emit = begin, dataset, emit
        self._book: ExperimentLogger | None = None

    def on_start(self, state: TrainState) -> None:
        """Open the book; before the first step it holds the validation loss of the untrained model."""

        def begin() -> None:
            self._book = self._begin(state.step + 1 if state.step else 0)
            if state.step == 0:
                self._book.write(0, self._validation(state))

        self._try(begin)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Add what the step measured."""
        values = {
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "tokens_per_s": round(result.tokens_per_s, 1),
        }
        if book := self._book:
            self._try(lambda: book.write(state.step, values | self._validation(state)))

    def close(self) -> None:
        """Close the book."""
        if book := self._book:
            self._try(book.close)

    def _validation(self, state: TrainState) -> dict[str, float]:
        if state.val_loss is None or state.val_step != state.step:
            return {}
        bits = bits_per_byte(state.val_loss, self._dataset, "val")
        return {"val_loss": state.val_loss, **({} if bits is None else {"bits_per_byte": bits})}

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a program of others: whatever breaks there, the training goes on
            self._book = None
            self._emit("warning", code="tracking_stopped", detail=f"{type(error).__name__}: {str(error)[:300]}")


class TensorBoard:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, directory: Path, first: int) -> None:
        """Open a file beside those of earlier attempts.

        Args:
            directory: Where the files lie.
            first: What earlier attempts told of this step and later ones is void.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=first)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each series."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill loses no step that events.jsonl has

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run for `wandb sync`, or one that is sent while it grows."""

    def __init__(self, run: Run, config: ExperimentConfig, mode: Mode, emit: Emit) -> None:
        """Begin, or go on with what earlier attempts began.

        Args:
            run: Its directory holds the files.
            config: Shown beside the curves, without paths of this machine.
            mode: ``offline`` writes files alone; ``online`` sends them too, and writes them alone where it cannot.
            emit: Told ``warning`` in that case.
        """
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
            wandb.teardown()  # it still holds the run that did not come to be
            self._run = begin("offline")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each series."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the files, and send what is left."""
        self._run.finish()


def _identity(directory: Path) -> str:
    """The run's name over there: made by the first attempt, kept for all later ones."""
    file = directory / "id"
    if not file.exists():
        directory.mkdir(exist_ok=True)
        write_text(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8")
