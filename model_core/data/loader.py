"""Batches from memory-mapped rows of tokens.

A row of tokens is cut into windows of T. A step of the loader takes the next windows in the order of its epoch, B for
each process that trains, so the whole state is one number: how many windows were handed out, to all of them.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_core.errors import InvalidData
from model_core.storage.dataset import token_files

Ids = NDArray[np.unsignedinteger]
Rows = NDArray[np.int64]


class Tokens(Protocol):
    """A row of token ids: an array, or what reads like one where a part of it is concerned."""

    def __len__(self) -> int:
        """How many ids it has."""

    def __getitem__(self, part: slice, /) -> Ids:
        """Some ids that follow each other."""


class ShardedTokens:
    """Token ids in several arrays that read as one; only slices across a border are copied.

    Args:
        shards: Token ids, one-dimensional arrays in order.
    """

    def __init__(self, shards: Sequence[Ids]) -> None:
        self._shards = [shard for shard in shards if len(shard)]
        self._ends = list(accumulate(map(len, self._shards)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, part: slice, /) -> Ids:
        start, end, _ = part.indices(len(self))
        pieces: list[Ids] = []
        while start < end:
            number = bisect_right(self._ends, start)
            base = self._ends[number] - len(self._shards[number])
            pieces.append(self._shards[number][start - base : end - base])
            start += len(pieces[-1])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint16)


def load_tokens(path: Path) -> Tokens:
    """Map token ids into memory.

    Args:
        path: A one-dimensional .npy of uint16 or uint32; or, when there is no such file, what several are called
            after that are read as one: ``x_train_00000.npy``, ``x_train_00001.npy`` ... of ``x_train.npy``.

    Returns:
        The ids; the file is read on access.

    Raises:
        InvalidData: It is something else.
    """
    shards = [_load(file) for file in token_files(path)]
    return shards[0] if len(shards) == 1 else ShardedTokens(shards)


def _load(path: Path) -> Ids:
    try:
        tokens: Ids = np.load(path, mmap_mode="r", allow_pickle=False)
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
        rank: Which of the processes that train together this is, from 0.
        ranks: How many there are; each gets other windows.
    """

    batch_size: int
    sequence_length: int
    shuffle: str = "none"
    seed: int = 0
    vocab_size: int = 2**32
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} is not one of {self.ranks}; ranks are numbered from 0")

    @property
    def windows(self) -> int:
        """Windows that all processes together take at a time."""
        return self.batch_size * self.ranks


class TokenLoader:
    """Endless batches of tokens, epoch after epoch.

    Attributes:
        windows: How many an epoch has.
        position: Windows handed out so far, to all processes; set it to go on from there.

    Args:
        tokens: The row.
        config: How it is cut.
        device: Where batches go.
        pinned: Copy to the device while it computes.
        ahead: Read the next batch meanwhile, on a thread; None: where batches are pinned.
        name: What errors call the row.

    Raises:
        InvalidData: It is shorter than one batch.
    """

    def __init__(
        self, tokens: Tokens, config: LoaderConfig, *, device: str = "cpu", pinned: bool = False,
        ahead: bool | None = None, name: str = "the file",
    ) -> None:  # fmt: skip
        self._tokens, self._config, self._device, self._pinned, self._name = tokens, config, device, pinned, name
        self.windows = max(0, (len(tokens) - 1) // config.sequence_length)
        if self.windows < config.windows:
            needed = config.windows * config.sequence_length + 1
            raise InvalidData(f"{name} has {len(tokens)} tokens; one batch takes {needed}")
        self.position = 0
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._reader = (
            ThreadPoolExecutor(1, thread_name_prefix="read-ahead") if (pinned if ahead is None else ahead) else None
        )
        self._ahead: tuple[tuple[int, int], Future[Rows]] | None = None

    @property
    def epoch(self) -> float:
        """Passes over the row so far."""
        return self.position / self.windows

    def resize(self, batch_size: int) -> None:
        """Change the batch size from the next batch on; the windows keep their order.

        Args:
            batch_size: Rows of a batch, B.
        """
        self._config = replace(self._config, batch_size=batch_size)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Hand out the next batch.

        Returns:
            Ids and the ids one further, each (B, T) int64 on the device.

        Raises:
            InvalidData: An id does not fit the vocabulary.
        """
        batch = torch.from_numpy(self._next_rows())  # (B, T+1)
        if self._pinned:
            batch = batch.pin_memory()
        batch = batch.to(self._device, non_blocking=self._pinned)
        return batch[:, :-1], batch[:, 1:]  # 2 x (B, T)

    def _next_rows(self) -> Rows:
        """The next rows, (B, T+1): read ahead, if what was read is what is wanted."""
        wanted = (self.position, self._config.batch_size)
        is_there = self._ahead is not None and self._ahead[0] == wanted
        rows = self._ahead[1].result() if self._ahead and is_there else self._read(*wanted)  # (B, T+1)
        self.position += self._config.windows
        if self._reader is not None:
            following = (self.position, self._config.batch_size)
            self._ahead = (following, self._reader.submit(self._read, *following))
        return rows

    def _read(self, position: int, size: int) -> Rows:
        """Rows of this process, (B, T+1), when `position` windows were handed out before."""
        length, first = self._config.sequence_length, position + self._config.rank * size
        starts = [self._window(first + row) * length for row in range(size)]
        rows = np.empty((size, length + 1), np.int64)  # (B, T+1)
        for row, start in enumerate(starts):
            rows[row] = self._tokens[start : start + length + 1]
        largest = int(rows.max())
        if largest >= self._config.vocab_size:
            row, column = divmod(int(rows.argmax()), length + 1)
            where = f"at token {starts[row] + column}"
            raise InvalidData(f"{self._name} holds id {largest} {where}; the vocabulary has {self._config.vocab_size}")
        return rows

    def _window(self, position: int) -> int:
        epoch, index = divmod(position, self.windows)
        return index if self._config.shuffle == "none" else int(self._permutation(epoch)[index])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        known = self._order  # once: the thread that reads ahead may be an epoch further
        if known[0] != epoch:
            generator = np.random.default_rng([self._config.seed, epoch])
            known = self._order = (epoch, generator.permutation(self.windows))
        return known[1]
