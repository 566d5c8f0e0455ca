"""Token ids of a split, mapped into memory: one array, or several that behave as one. Torch-free."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model_core.errors import InvalidData
from model_core.storage.dataset import token_files

Ids = NDArray[np.unsignedinteger]


class Tokens(Protocol):
    """A one-dimensional sequence of token ids that supports length and slices."""

    def __len__(self) -> int:
        """Return the number of ids."""

    def __getitem__(self, part: slice, /) -> Ids:
        """Return a slice of consecutive ids."""


class ShardedTokens:
    """Token ids in several arrays that behave as one; only slices that cross a boundary are copied.

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
            shard = bisect_right(self._ends, start)
            offset = self._ends[shard] - len(self._shards[shard])
            pieces.append(self._shards[shard][start - offset : end - offset])
            start += len(pieces[-1])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint16)


def load_tokens(path: Path) -> Tokens:
    """Map token ids into memory.

    Args:
        path: A one-dimensional .npy of uint16 or uint32. If the file does not exist, its shards are read as one:
            ``x_train_00000.npy``, ``x_train_00001.npy`` ... for ``x_train.npy``.

    Returns:
        The ids, (T,); the file is read on access.

    Raises:
        InvalidData: The file is not such an array.
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
