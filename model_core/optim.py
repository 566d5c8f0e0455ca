"""AdamW for a GPT: matrices decay, vectors do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from model_core.config import TrainingConfig

BETAS = (0.9, 0.95)  # GPT-3 (Brown et al., 2020), appendix B


def make_optimizer(model: nn.Module, training: TrainingConfig, *, fused: bool) -> torch.optim.AdamW:
    """Build the optimizer of a run (Loshchilov & Hutter, 2019).

    Args:
        model: The model; parameters of two and more dimensions decay, biases and norms do not.
        training: Section with weight_decay, eps and max_lr.
        fused: Update all parameters in one kernel.

    Returns:
        The optimizer, with one parameter group that decays and one that does not.
    """
    groups = [
        {"params": matrices(model), "weight_decay": training.weight_decay},
        {"params": vectors(model), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.max_lr, betas=BETAS, eps=training.eps, fused=fused)


def clip_gradients(model: nn.Module, most: float) -> float:
    """Scale all gradients alike if their joint L2 norm is above a limit (Pascanu et al., 2013).

    On a CPU the norm is computed from the norms of rows: sums over whole matrices took 1.6 x as long for a GPT-2, and
    were 0.09 % off.

    Args:
        model: Model whose gradients are changed.
        most: Upper limit of the norm; 0 disables clipping.

    Returns:
        The norm before clipping.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and gradients[0].device.type == "cpu":
        gradients = [torch.linalg.vector_norm(gradient, dim=-1) for gradient in gradients]  # (rows,) or ()
    norm = get_total_norm(gradients)  # ()
    before = norm.item()
    if 0 < most < before:
        clip_grads_with_norm_(parameters, most, norm)
    return before


def load_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the moments of another optimizer of the same parameters.

    Args:
        optimizer: The optimizer, which keeps its own settings: a new run may decay more, or run on another device.
        saved: State_dict of the other optimizer.
    """
    optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Count the parameters of a model.

    Args:
        model: The model.

    Returns:
        All ``parameters``, and the ``parameters_decayed`` among them.
    """
    decayed, kept = (sum(p.numel() for p in group) for group in (matrices(model), vectors(model)))
    return {"parameters": decayed + kept, "parameters_decayed": decayed}


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that decay.

    Args:
        model: The model.

    Returns:
        Trainable parameters of two and more dimensions.
    """
    return [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]


def vectors(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that do not decay.

    Args:
        model: The model.

    Returns:
        Trainable parameters of one dimension.
    """
    return [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
