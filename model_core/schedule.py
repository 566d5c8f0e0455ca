"""Number of steps of a run, and the learning rate of each."""

from __future__ import annotations

import math

from model_core.config import TrainingConfig
from model_core.errors import FieldProblem, InvalidConfig


def effective_steps(training: TrainingConfig, train_tokens: int | None) -> int:
    """Return the smallest of the budgets max_steps, max_tokens and max_epochs, in steps.

    Args:
        training: Section `training`.
        train_tokens: Tokens of the training split; only max_epochs needs them.

    Returns:
        Number of optimizer steps.

    Raises:
        InvalidConfig: The budget leaves no step after the warm-up.
    """
    budgets = {"max_steps": training.max_steps}
    if training.max_tokens is not None:
        budgets["max_tokens"] = math.ceil(training.max_tokens / training.total_batch_size)
    if training.max_epochs is not None and train_tokens is not None:
        budgets["max_epochs"] = max(1, math.ceil(training.max_epochs * train_tokens / training.total_batch_size))
    key, steps = min(budgets.items(), key=lambda item: item[1])
    if training.warmup_steps >= steps:
        detail = f"{training.warmup_steps} must be below the {steps} steps that training.{key} allows"
        raise InvalidConfig((FieldProblem("/training/warmup_steps", detail, training.warmup_steps, (steps - 1,)),))
    return steps


def get_lr(step: int, training: TrainingConfig, max_steps: int) -> float:
    """Compute the learning rate: linear warm-up, then half a cosine from max_lr to min_lr (Loshchilov & Hutter, 2017).

    Args:
        step: Updates done before this one, from 0.
        training: Section `training`.
        max_steps: Effective number of steps.

    Returns:
        The learning rate of the step.
    """
    if step < training.warmup_steps:
        return training.max_lr * (step + 1) / training.warmup_steps
    progress = min(1.0, (step - training.warmup_steps) / max(1, max_steps - training.warmup_steps))
    return training.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (training.max_lr - training.min_lr)
