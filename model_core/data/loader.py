"""Batches from a memory-mapped file of tokens.

The file is cut into windows of T tokens. A batch takes the next B windows in the order of its epoch, so the whole
state of the loader is one number: how many windows were handed out. Of several processes that train together each takes
its own B of the next B x ranks windows, and counts them all.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_core.errors import InvalidData

Tokens = NDArray[np.unsignedinteger]


def load_tokens(path: Path) -> Tokens:
    """Map a token file into memory.

    Args:
        path: A one-dimensional .npy of uint16 or uint32.

    Raises:
        InvalidData: It is something else.
    """
    try:
        tokens: Tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidData(f"{path.name} is not a readable .npy file: {error}") from None
    if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        raise InvalidData(f"{path.name} holds {tokens.dtype} of shape {tokens.shape}, not one row of uint16 or uint32")
    return tokens


@dataclass(frozen=True)
class LoaderConfig:
    """How tokens become batches.

    Attributes:
        batch_size: Rows, B.
        sequence_length: Tokens of a row, T.
        shuffle: ``block`` draws the windows of each epoch in a new order, ``none`` takes them as they lie.
        seed: Of the orders.
        vocab_size: Ids at or above it are an error.
        rank: Number of this process among those that share the windows.
        ranks: How many these are.
    """

    batch_size: int
    sequence_length: int
    shuffle: str = "none"
    seed: int = 0
    vocab_size: int = 2**32
    rank: int = 0
    ranks: int = 1


class TokenLoader:
    """Endless batches, epoch after epoch.

    Attributes:
        position: Windows handed out so far, to all ranks; set it to go on from there.
    """

    def __init__(
        self, tokens: Tokens, config: LoaderConfig, *, device: str = "cpu", pinned: bool = False, name: str = "the file"
    ) -> None:
        self._tokens, self._config, self._device, self._pinned, self._name = tokens, config, device, pinned, name
        self.windows = max(0, (len(tokens) - 1) // config.sequence_length)
        if self.windows < config.batch_size * config.ranks:
            needed = config.batch_size * config.ranks * config.sequence_length + 1
            raise InvalidData(f"{name} has {len(tokens)} tokens; one batch takes {needed}")
        self.position = 0
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    @property
    def epoch(self) -> float:
        """Passes over the file so far."""
        return self.position / self.windows

    def resize(self, batch_size: int) -> None:
        """Hand out batches of another size from here on; the windows keep their order."""
        self._config = replace(self._config, batch_size=batch_size)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Hand out the next batch.

        Returns:
            Ids and the ids one further, each (B, T) int64 on the device.

        Raises:
            InvalidData: An id does not fit the vocabulary.
        """
        size, length = self._config.batch_size, self._config.sequence_length
        first = self.position + self._config.rank * size
        rows = np.empty((size, length + 1), np.int64)  # (B, T+1)
        for row in range(size):
            start = self._window(first + row) * length
            rows[row] = self._tokens[start : start + length + 1]
        self.position += size * self._config.ranks
        largest = int(rows.max())
        if largest >= self._config.vocab_size:
            raise InvalidData(f"{self._name} holds id {largest}; the vocabulary has {self._config.vocab_size}")
        batch = torch.from_numpy(rows)  # (B, T+1)
        if self._pinned:
            batch = batch.pin_memory()
        batch = batch.to(self._device, non_blocking=self._pinned)
        return batch[:, :-1], batch[:, 1:]  # 2 x (B, T)

    def _window(self, position: int) -> int:
        epoch, index = divmod(position, self.windows)
        if self._config.shuffle == "none":
            return index
        if self._order[0] != epoch:
            generator = np.random.default_rng([self._config.seed, epoch])
            self._order = (epoch, generator.permutation(self.windows))
        return int(self._order[1][index])
