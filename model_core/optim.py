"""AdamW for a GPT: matrices decay, vectors do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

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
