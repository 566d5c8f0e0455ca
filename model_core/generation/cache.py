"""Keys and values of everything read so far: one static tensor a layer, one row a text.

Rows in use are always the first ones, so a step reads them as a view and never gathers. Layers differ in H and D,
so there is one tensor a layer and nothing is padded.

Shapes: R rows, A rows in use, T positions, H heads of this layer, D head_dim of this layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model_core.config import ModelConfig


class KVCache:
    """Room for `rows` texts of `length` tokens."""

    def __init__(
        self, config: ModelConfig, *, rows: int, length: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        shapes = zip(config.heads, config.head_dims, strict=True)
        self._layers = [_zeros((2, rows, h, length, d), dtype, device) for h, d in shapes]  # (2, R, H, T, D) each
        self._device = device

    def fill(self, layer: int, row: int, kv: Tensor) -> None:
        """Store a whole prompt.

        Args:
            layer: Which layer.
            row: Whose text.
            kv: Keys and values, (2, H, T, D).
        """
        self._layers[layer][:, row, :, : kv.size(2)] = kv

    def append(self, layer: int, positions: Tensor, kv: Tensor) -> None:
        """Store one token of each row in use, keys and values in one copy.

        Args:
            layer: Which layer.
            positions: Where each row writes, (A,).
            kv: Keys and values, (A, 2, H, D).
        """
        rows = torch.arange(len(positions), device=self._device)  # (A,)
        self._layers[layer][:, rows, :, positions] = kv.to(self.dtype)

    def past(self, layer: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `rows` rows and `length` positions, each (A, H, length, D); views."""
        keys, values = self._layers[layer][:, :rows, :, :length].unbind(0)
        return keys, values

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Give a row the first `length` positions of another."""
        for kv in self._layers:
            kv[:, target, :, :length] = kv[:, source, :, :length]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of keys and values."""
        return self._layers[0].dtype


def cache_bytes(config: ModelConfig, *, rows: int, length: int, item_bytes: int = 4) -> int:
    """Memory of a full cache."""
    width = sum(h * d for h, d in zip(config.heads, config.head_dims, strict=True))
    return 2 * rows * length * width * item_bytes


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: str) -> Tensor:
    if device == "cpu" and dtype == torch.float32:
        # numpy takes zeroed pages from the kernel, which cost nothing before they are written; torch writes them all
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(*shape, dtype=dtype, device=device)
