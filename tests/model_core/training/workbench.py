"""A training that is about to begin, and what its callbacks emit."""

from dataclasses import dataclass, field
from typing import Any

from model_core.storage.dataset import Dataset
from model_core.storage.run import Run
from model_core.training.callbacks import build_callbacks
from model_core.training.trainer import Callback, StepResult, TrainState, train


@dataclass
class Bench:
    """A training about to begin, and what it emits."""

    state: TrainState
    run: Run
    dataset: Dataset
    events: list[dict[str, Any]] = field(default_factory=list)

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, **fields})

    def listeners(self) -> list[Callback]:
        return build_callbacks(self.state.config, self.run, attempt=1, dataset=self.dataset, emit=self.emit)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


class Losses(Callback):
    def __init__(self) -> None:
        self.told: list[float] = []

    def on_step(self, state: TrainState, result: StepResult) -> None:
        self.told.append(result.loss)


def run_with(state: TrainState, *listeners: Callback) -> list[float]:
    losses = Losses()
    train(state, [*listeners, losses], lambda: False)
    return losses.told
