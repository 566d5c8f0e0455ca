"""An observer that does nothing, to build others on."""

from __future__ import annotations

from model_core.training.state import TrainState
from model_core.training.trainer import StepResult


class Listener:
    """Hears everything, and does nothing about it."""

    def on_start(self, state: TrainState) -> None:
        """Nothing."""

    def on_halved(self, state: TrainState, before: int) -> None:
        """Nothing."""

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Nothing."""

    def on_end(self, state: TrainState, *, stopped: bool) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
