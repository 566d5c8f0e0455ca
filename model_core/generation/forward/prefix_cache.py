"""Keys and values of beginnings that prompts have in common, for later prompts that begin alike.

A block holds the keys and values of one full chunk of a prompt. Its key is a hash chain: the hash of the chunk's ids
and of the key of the chunk before it, so equal keys mean equal texts from the first token on. Chunks have the same
borders and are computed in the same way for every prompt, so a block has the bits that reading the chunk again gives.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from model_core.generation.forward.kv_cache import CHUNK, Block


class PrefixCache:
    """Blocks of read prompts, the least recently used dropped first.

    Args:
        max_bytes: Memory of all blocks together; 0 keeps none.

    Attributes:
        hits: Blocks that were found.
        size_bytes: Memory of the blocks that are kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()  # least recently used first
        self.hits, self.size_bytes = 0, 0

    def get(self, key: bytes) -> Block | None:
        """Find a block.

        Args:
            key: One of `chain`.

        Returns:
            The block, or None.
        """
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
            self.hits += 1
        return block

    def wants(self, key: bytes) -> bool:
        """Whether a block is worth reading out of the cache of a row.

        Args:
            key: One of `chain`.

        Returns:
            False where the block is kept already (it becomes the most recently used one), or nothing is ever kept.
        """
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return False
        return self._max_bytes > 0

    def put(self, key: bytes, block: Block) -> None:
        """Keep a block, unless it is larger than the whole cache.

        Args:
            key: One of `chain`.
            block: Keys and values, which nobody changes any more.
        """
        size = _bytes_of(block)
        if size > self._max_bytes or key in self._blocks:
            return
        while self.size_bytes + size > self._max_bytes:
            self.drop_oldest()
        self._blocks[key] = block
        self.size_bytes += size

    def drop_oldest(self) -> bool:
        """Drop the least recently used block.

        Returns:
            Whether there was one.
        """
        if not self._blocks:
            return False
        _, dropped = self._blocks.popitem(last=False)
        self.size_bytes -= _bytes_of(dropped)
        return True


def chain(ids: Sequence[int]) -> tuple[bytes, ...]:
    """Compute the keys of the full chunks of a prompt.

    Args:
        ids: Token ids of the prompt.

    Returns:
        One key for each full chunk.
    """
    keys: list[bytes] = []
    for end in range(CHUNK, len(ids) + 1, CHUNK):
        before = keys[-1] if keys else b""
        keys.append(hashlib.sha256(before + array("q", ids[end - CHUNK : end]).tobytes()).digest())
    return tuple(keys)


def _bytes_of(block: Block) -> int:
    return sum(part.numel() * part.element_size() for part in block)
