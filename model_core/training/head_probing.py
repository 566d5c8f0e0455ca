"""The history of a training's heads: a fixed probe, read at validations, becomes `heads` events and frames.

Which steps are due follows from the configuration and the size of the probe alone, so a resumed run has the events of
one that was never stopped. Between two readings at least 32 times the tokens of the probe are trained, so they cost
at most a few percent of a training however often it is validated.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from model_core.attention.heads.checkpoint_probe import as_reading, choose_probe
from model_core.attention.heads.frames import Frame, save_frame
from model_core.attention.heads.history import EVENT, MAX_HEADS
from model_core.attention.heads.probe import Probe, ProbeOutOfMemory, run_probe
from model_core.config import ExperimentConfig
from model_core.entrypoint import Emit
from model_core.errors import InvalidData, ModelCoreError
from model_core.storage.dataset import Dataset
from model_core.storage.run import Run
from model_core.training.trainer import Callback, StepResult, TrainState

log = logging.getLogger(__name__)

_LEAST_TRAINED = 32  # tokens between two readings, in sizes of the probe


@dataclass(frozen=True)
class ProbeSchedule:
    """Steps at which the probe is read: 0, validations that are far enough apart, and the end likewise.

    Attributes:
        every: Steps between two readings, a multiple of those between two validations.
        least: Steps between two readings at least.
        max_steps: Last step of the run.
    """

    every: int
    least: int
    max_steps: int

    @classmethod
    def of(cls, config: ExperimentConfig, probe_tokens: int) -> ProbeSchedule:
        """Space the readings of a run.

        Args:
            config: Its resolved configuration.
            probe_tokens: Tokens that one reading runs through the model.

        Returns:
            The schedule.
        """
        validated = config.evaluation.val_loss_every
        least = math.ceil(_LEAST_TRAINED * probe_tokens / config.training.total_batch_size)
        return cls(math.ceil(least / validated) * validated, least, config.training.max_steps)

    def is_due(self, step: int) -> bool:
        """Check whether the probe is read after a step.

        Args:
            step: Optimizer updates done.

        Returns:
            Whether it is.
        """
        since = step % self.every
        return since == 0 or (step == self.max_steps and since >= self.least)


class HeadHistory(Callback):
    """Reads the probe when it is due. What prevents a reading is a warning, and the training goes on.

    Args:
        dataset: Dataset with the validation split.
        run: Directory of the run, for the frames.
        emit: Writes ``heads`` events and warnings.
    """

    def __init__(self, dataset: Dataset, run: Run, emit: Emit) -> None:
        self._dataset, self._run, self._emit = dataset, run, emit
        self._probe: Probe | None = None
        self._schedule: ProbeSchedule | None = None
        self._labels: tuple[str, ...] = ()
        self._has_warned = False

    def on_start(self, state: TrainState) -> None:
        """Choose the texts, and read the untrained heads.

        Args:
            state: State before the step.
        """
        heads, model = sum(state.config.model.heads), state.config.model
        if heads > MAX_HEADS:
            detail = f"the history of heads is not kept for {heads:,} heads; {MAX_HEADS:,} are the most"
            self._emit("warning", code="heads_not_probed", detail=detail, heads=heads, most=MAX_HEADS)
            return
        try:
            probe = choose_probe(self._dataset, model)
        except InvalidData as error:
            self._warn(state, error)
            return
        self._probe, self._schedule = probe, ProbeSchedule.of(state.config, probe.size)
        self._labels = tuple(state.tokenizer.pieces(probe.windows[0].tolist()))
        if state.step == 0:
            self._read(state, probe, self._schedule)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Read the probe when it is due.

        Args:
            state: State after the step.
            result: What the step measured.
        """
        if self._probe is not None and self._schedule is not None and self._schedule.is_due(state.step):
            self._read(state, self._probe, self._schedule)

    def _read(self, state: TrainState, probe: Probe, schedule: ProbeSchedule) -> None:
        try:
            result = run_probe(state.model, probe)
        except ProbeOutOfMemory as error:
            self._warn(state, error)
            if state.runtime.device_type == "cuda":
                torch.cuda.empty_cache()
            return
        labels = self._labels[: result.frames[0].shape[-1]]
        try:
            save_frame(self._run.path, Frame(state.step, labels, tuple(result.frames)), every=schedule.every)
        except (ModelCoreError, OSError) as error:
            log.warning("frame not saved run=%s step=%d reason=%s", self._run.name, state.step, error)
        self._emit(EVENT, **as_reading(state.step, probe, result))
        log.info("heads probed step=%d labelled=%d", state.step, len(result.types))

    def _warn(self, state: TrainState, error: ModelCoreError) -> None:
        if not self._has_warned:
            detail = f"the heads are not probed at step {state.step}: {error}"
            self._emit("warning", code="heads_skipped", detail=detail, step=state.step)
        self._has_warned = True
