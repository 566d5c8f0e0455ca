"""The forward pass through torch.compile, with the eager model in reserve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model_core.errors import is_out_of_memory
from model_core.gpt import GPT, Forward


def compiled(model: GPT, mode: str, emit: Callable[..., Any]) -> Forward:
    """Compile a model; its parameters stay the model's own, so checkpoints do not tell.

    Args:
        model: What is compiled.
        mode: As torch.compile takes it.
        emit: Told ``warning`` when the compiler fails.
    """
    return with_reserve(torch.compile(model, mode=mode), model, emit)


def with_reserve(first: Forward, model: Forward, emit: Callable[..., Any]) -> Forward:
    """A forward pass that falls back for good: the first call shows whether the compiler works here.

    Args:
        first: Tried first.
        model: Used when that fails, unless it only lacked memory.
        emit: Told ``warning``.
    """
    chosen: list[Forward] = [first]

    def forward(idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        try:
            return chosen[0](idx, targets)
        except Exception as error:
            if chosen[0] is model or is_out_of_memory(error):
                raise
            emit("warning", code="compile_failed", detail=f"{type(error).__name__}: {str(error)[:300]}")
            chosen[0] = model
            return forward(idx, targets)

    return forward
