"""What a training is in between two steps, and how it goes in and out of a checkpoint.

Whatever a step changes, or the next one depends on, stands here and nowhere else: so a full state goes on exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from model_core.checkpoint import State, clean, weights_state
from model_core.config import ExperimentConfig
from model_core.data.loader import TokenLoader
from model_core.gpt import GPT, Forward
from model_core.hardware.device import Runtime
from model_core.hardware.rng import restore_rng, rng_state
from model_core.hardware.throughput import Pace
from model_core.optim import load_moments
from model_core.tokenizer import Tokenizer
from model_core.training.ranks import Ranks


@dataclass
class TrainState:
    """Everything that a step changes, or that the next one depends on.

    Attributes:
        forward: What a micro batch goes through: the model, or what a compiler made of it.
        batch_size: Rows of a micro batch; less than configured after memory ran out.
        ranks: The processes that take each step together.
        pace: What the steps of this process took.
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
    seconds: float = 0.0
    pace: Pace = field(default_factory=Pace)
    ranks: Ranks = field(default_factory=Ranks)
    batch_size: int = field(init=False)

    def __post_init__(self) -> None:
        self.batch_size = self.config.training.batch_size

    @property
    def max_steps(self) -> int:
        """Where the run ends: resolved before step 0."""
        return self.config.training.max_steps

    @property
    def accumulation(self) -> int:
        """Micro batches that each process computes in one step."""
        training = self.config.training
        return training.total_batch_size // (self.batch_size * training.sequence_length * self.ranks.world)

    def resize(self, batch_size: int) -> None:
        """Take a step's rows in micro batches of another size."""
        self.batch_size = batch_size
        self.loader.resize(batch_size)

    def full(self) -> State:
        """Everything needed to go on exactly."""
        return {
            **weights_state(self.model, self.config, self.tokenizer, self.step),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(self.runtime.device),
            "position": self.loader.position,
            "batch_size": self.batch_size,
            "processes": self.ranks.world,
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
        """A micro batch that another number of processes came to, unless a step is no whole number of those here."""
        training = self.config.training
        rows = training.total_batch_size // (training.sequence_length * self.ranks.world)
        return training.batch_size if rows % batch_size else batch_size
