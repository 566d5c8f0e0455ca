"""Batches from memory-mapped token ids.

The token ids are divided into windows of T. Each step takes the next windows in the order of the epoch, B for each
rank, so the state is one number: how many windows all ranks have consumed.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_core.data.token_arrays import ShardedTokens as ShardedTokens
from model_core.data.token_arrays import Tokens as Tokens
from model_core.data.token_arrays import load_tokens as load_tokens
from model_core.errors import InvalidData

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LoaderConfig:
    """Size, order and distribution of batches.

    Attributes:
        batch_size: Rows of a batch on each rank, B.
        sequence_length: Tokens of a row, T.
        shuffle: ``block`` permutes the windows in each epoch, ``none`` keeps their order in the file.
        seed: Seed of the permutations.
        vocab_size: Ids at or above it are an error.
        rank: Rank of this process, from 0.
        world_size: Number of ranks; each gets different windows.
    """

    batch_size: int
    sequence_length: int
    shuffle: str = "none"
    seed: int = 0
    vocab_size: int = 2**32
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} does not exist in a group of {self.world_size} processes")

    @property
    def windows(self) -> int:
        """Windows that all ranks together consume in one step."""
        return self.batch_size * self.world_size


class TokenLoader:
    """Endless batches of tokens, epoch after epoch.

    Attributes:
        windows: Windows of an epoch.
        position: Windows that all ranks have consumed so far; assign it to resume.

    Args:
        tokens: Token ids, (tokens,).
        config: Size, order and distribution of batches.
        device: Device of the batches.
        pin_memory: Copy batches to the device asynchronously, from pinned memory.
        read_ahead: Read the next batch on a thread. None: if memory is pinned.
        name: Name of the data in errors.

    Raises:
        InvalidData: There are too few tokens for one batch.
    """

    def __init__(
        self, tokens: Tokens, config: LoaderConfig, *, device: str = "cpu", pin_memory: bool = False,
        read_ahead: bool | None = None, name: str = "the file",
    ) -> None:  # fmt: skip
        self._tokens, self._config, self._device, self._name = tokens, config, device, name
        self._pin_memory = pin_memory
        self.windows = max(0, (len(tokens) - 1) // config.sequence_length)
        if self.windows < config.windows:
            needed = config.windows * config.sequence_length + 1
            advice = "lower training.batch_size or training.sequence_length, or prepare more text"
            raise InvalidData(f"{name} has {len(tokens)} tokens; one batch takes {needed}: {advice}")
        self.position = 0
        self._permuted: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))  # epoch, order of its windows
        uses_thread = pin_memory if read_ahead is None else read_ahead
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead") if uses_thread else None
        self._prefetched: tuple[tuple[int, int], Future[Rows]] | None = None

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.position / self.windows

    def resize(self, batch_size: int) -> None:
        """Change the batch size from the next batch on; the order of the windows stays the same.

        Args:
            batch_size: Rows of a batch, B.
        """
        self._config = replace(self._config, batch_size=batch_size)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next batch.

        Returns:
            Ids and targets, which are the ids shifted by one; each (B, T) int64 on the device.

        Raises:
            InvalidData: An id is outside the vocabulary.
        """
        batch = torch.from_numpy(self._next_rows())  # (B, T+1)
        if self._pin_memory:
            batch = batch.pin_memory()
        batch = batch.to(self._device, non_blocking=self._pin_memory)
        return batch[:, :-1], batch[:, 1:]  # 2 x (B, T)

    def _next_rows(self) -> Rows:
        """Return the next rows, (B, T+1), prefetched unless position or batch size changed."""
        request = (self.position, self._config.batch_size)
        is_prefetched = self._prefetched is not None and self._prefetched[0] == request
        rows = self._prefetched[1].result() if self._prefetched and is_prefetched else self._read(*request)  # (B, T+1)
        self.position += self._config.windows
        if self._reader is not None:
            following = (self.position, self._config.batch_size)
            self._prefetched = (following, self._reader.submit(self._read, *following))
        return rows

    def _read(self, position: int, size: int) -> Rows:
        """Read the rows of this rank, (B, T+1), after `position` windows."""
        length, first = self._config.sequence_length, position + self._config.rank * size
        starts = [self._window(first + row) * length for row in range(size)]
        rows = np.empty((size, length + 1), np.int64)  # (B, T+1)
        for row, start in enumerate(starts):
            rows[row] = self._tokens[start : start + length + 1]
        largest = int(rows.max())
        if largest >= self._config.vocab_size:
            row, column = divmod(int(rows.argmax()), length + 1)
            found = f"id {largest} at token {starts[row] + column}"
            raise InvalidData(f"{self._name} contains {found}; the vocabulary has {self._config.vocab_size} ids")
        return rows

    def _window(self, position: int) -> int:
        epoch, index = divmod(position, self.windows)
        return index if self._config.shuffle == "none" else int(self._permutation(epoch)[index])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        cached = self._permuted  # read once: the read-ahead thread may replace it with the next epoch's
        if cached[0] != epoch:
            generator = np.random.default_rng([self._config.seed, epoch])
            cached = self._permuted = (epoch, generator.permutation(self.windows))
        return cached[1]
