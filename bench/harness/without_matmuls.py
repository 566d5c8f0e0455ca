"""Skips the matmuls of a training on the CPU, so that the operations between them can be measured.

A matmul, or the fused attention, returns a constant tensor of the right shape, written once as a matmul writes its
result. All other operations run as usual.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

_VALUE = 0.01


@contextlib.contextmanager
def skip_matmuls() -> Iterator[None]:
    """Context in which no matmul and no attention is computed."""
    library = torch.library.Library("aten", "IMPL")
    kernels = {
        "mm": _mm,
        "addmm": _addmm,
        "addmm_": _addmm_,
        "_scaled_dot_mm_flash_attention_for_cpu": _attention,
        "_scaled_dot_mm_flash_attention_for_cpu_backward": _attention_backward,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the replacement of a kernel is intended
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CPU")
    yield
    del library  # which restores the kernels


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return a.new_full((a.size(0), b.size(1)), _VALUE)


def _addmm(_: Tensor, a: Tensor, b: Tensor, **__: object) -> Tensor:
    return _mm(a, b)


def _addmm_(total: Tensor, *_: Tensor, **__: object) -> Tensor:
    return total.mul_(1 - _VALUE)


def _attention(q: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    return _heads_last(q), q.new_full(q.shape[:3], _VALUE, dtype=torch.float32)  # (B, H, T, D), (B, H, T)


def _attention_backward(_: Tensor, q: Tensor, *__: object, **___: object) -> tuple[Tensor, ...]:
    return _heads_last(q), _heads_last(q), _heads_last(q)  # 3 x (B, H, T, D)


def _heads_last(like: Tensor) -> Tensor:
    batch, heads, length, size = like.shape
    return like.new_full((batch, length, heads, size), _VALUE).transpose(1, 2)  # (B, H, T, D)
