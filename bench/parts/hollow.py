"""Leaves the matrix products of a training on the CPU out, so that what lies between them can be measured.

A product, or the fused attention, answers with a tensor of the right shape, filled once, as a product fills its own;
everything else is computed as always.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

_ANYTHING = 0.01


@contextlib.contextmanager
def without_products() -> Iterator[None]:
    """A context in which no product is computed."""
    library = torch.library.Library("aten", "IMPL")
    kernels = {
        "mm": _product,
        "addmm": _plus_product,
        "addmm_": _plus_product_,
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a kernel is replaced is what we want
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CPU")
    yield
    del library  # the kernels stay for as long as it does


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a.new_full((a.size(0), b.size(1)), _ANYTHING)


def _plus_product(_: Tensor, a: Tensor, b: Tensor, **__: object) -> Tensor:
    return _product(a, b)


def _plus_product_(total: Tensor, *_: Tensor, **__: object) -> Tensor:
    return total.mul_(1 - _ANYTHING)


def _attention(q: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    return _heads_last(q), q.new_full(q.shape[:3], _ANYTHING, dtype=torch.float32)  # (B, H, T, D), (B, H, T)


def _attention_backward(_: Tensor, q: Tensor, *__: object, **___: object) -> tuple[Tensor, ...]:
    return _heads_last(q), _heads_last(q), _heads_last(q)  # 3 x (B, H, T, D)


def _heads_last(like: Tensor) -> Tensor:
    batch, heads, length, size = like.shape
    return like.new_full((batch, length, heads, size), _ANYTHING).transpose(1, 2)  # (B, H, T, D)
