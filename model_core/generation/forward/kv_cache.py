"""Keys and values of every running sequence: one tensor a layer, because layers differ in H and D.

Head-major, because attention over token-major keys is 2 to 5 times slower on a CPU. The tensors are only as long as the
longest sequence needs: attention over the beginning of a longer tensor is up to 1.7 times
slower. Nor are there more rows than a power of two that holds those in use, so memory follows use in both directions.
Positions that were never written are zeros, so a masked position adds nothing.

Shapes: R rows allocated, A rows in use (the first ones), L positions allocated, H heads and D head_dim of a layer.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.config import ModelConfig

CHUNK = 64  # positions by which the cache grows, and tokens of a full chunk of a prompt

_SHRINK_ROWS, _SHRINK_LENGTH = 4, 2  # shrink when this part would do: rows come and go faster than lengths change

Block = tuple[Tensor, ...]  # CHUNK positions of one row: (2, H, CHUNK, D) of every layer


class KVCache:
    """Keys and values of some rows.

    Args:
        config: Shape of the model.
        rows: Most sequences. All of them are allocated until `use_rows` says how many are in use.
        shortest: Least positions to allocate for each row.
        dtype: Number format of keys and values.
        device: Device, as torch writes it.

    Attributes:
        length: Positions allocated for each row, L.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rows: int,
        shortest: int = CHUNK,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self._config, self._shapes = config, tuple(zip(config.heads, config.head_dims, strict=True))
        self._most, self._used, self._dtype, self._device = rows, rows, dtype, device
        self._longest = 0
        self._written = [0] * rows  # positions of each row that hold its sequence
        self._offsets: dict[int, Tensor] = {}  # by H: where each key and value of position 0 is, (R, 2, H)
        self._layers: list[Tensor] = []
        self._rows = self.length = 0
        self._shortest = _rounded(shortest)
        self._resize(rows, self._shortest)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of keys and values."""
        return self._dtype

    def use_rows(self, count: int, longest: int = 0) -> None:
        """Announce how many rows are in use, so that they exist and others take no memory.

        Args:
            count: Number of rows, A; the others were freed.
            longest: Most positions that one of them will have. A cache that grows does so in fewer steps up to that.
        """
        self._used, self._longest = count, longest
        self._fit()

    def write(self, row: int, start: int, count: int) -> None:
        """Announce that positions of a row will be written, so that they exist; ends the row behind them.

        Args:
            row: Row of the sequence.
            start: First position.
            count: Number of positions.
        """
        self._written[row] = start + count
        self._fit()

    def write_next(self, positions: Sequence[int]) -> None:
        """Announce that each row in use will write one position.

        Args:
            positions: Position that each row writes, A of them.
        """
        self._written[: len(positions)] = [position + 1 for position in positions]
        self._fit()

    def free_row(self, row: int) -> None:
        """Forget the sequence of a row.

        Args:
            row: Row of the sequence.
        """
        self._written[row] = 0

    def clear_row(self, row: int) -> None:
        """Write zeros over a row, and forget its sequence; for a row with values that are not finite.

        Args:
            row: Row of the sequence.
        """
        for kv in self._layers:
            kv[:, row] = 0
        self._written[row] = 0

    def row(self, layer: int, row: int, start: int, end: int) -> Tensor:
        """Return a view of positions of a row.

        Args:
            layer: Index of the layer.
            row: Row of the sequence.
            start: First position.
            end: Position behind the last one.

        Returns:
            Keys and values, (2, H, end - start, D).
        """
        return self._layers[layer][:, row, :, start:end]  # (2, H, end - start, D)

    def rows(self, layer: int, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Return views of the rows in use.

        Args:
            layer: Index of the layer.
            count: Number of rows, A.
            length: Number of positions, at most L.

        Returns:
            Keys and values, each (A * H, length, D).
        """
        keys, values = self._flat_heads[layer]  # 2 x (R * H, L, D)
        heads = count * self._shapes[layer][0]
        return keys[:heads, :length], values[:heads, :length]  # 2 x (A * H, length, D)

    def indices(self, positions: Tensor, rows: Tensor | None = None) -> dict[int, Tensor]:
        """Compute where one position of each row in use is in the tensors of `append`.

        Args:
            positions: Position of each row, (A,).
            rows: Rows that are written, (A,); None is the first ones.

        Returns:
            Indices by number of heads, each (A, 2, H).
        """
        at, used = positions[:, None, None], slice(len(positions)) if rows is None else rows  # (A, 1, 1)
        return {heads: offsets[used] + at for heads, offsets in self._offsets.items()}

    def append(self, layer: int, indices: Tensor, kv: Tensor) -> None:
        """Store one position of each row in use, keys and values in one copy.

        Args:
            layer: Index of the layer.
            indices: Those of `indices` for this layer's number of heads, (A, 2, H).
            kv: Keys and values, (A, 2, H, D).
        """
        self._flat[layer].index_put_((indices,), kv)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the beginning of a row to another, in every layer.

        Args:
            source: Row to copy from.
            target: Row to copy to.
            length: Number of positions to copy.
        """
        for kv in self._layers:
            kv[:, target, :, :length] = kv[:, source, :, :length]
        self._written[target] = length

    def swap_rows(self, first: int, second: int) -> None:
        """Exchange two rows, in every layer.

        Args:
            first: One row.
            second: The other.
        """
        length = max(self._written[first], self._written[second])
        for kv in self._layers:
            kept = kv[:, first, :, :length].clone()  # (2, H, length, D)
            kv[:, first, :, :length] = kv[:, second, :, :length]
            kv[:, second, :, :length] = kept
        self._written[first], self._written[second] = self._written[second], self._written[first]

    def read_block(self, row: int, start: int) -> Block:
        """Copy CHUNK positions out of a row.

        Args:
            row: Row of the sequence.
            start: First position.

        Returns:
            Keys and values of every layer.
        """
        return tuple(kv[:, row, :, start : start + CHUNK].clone() for kv in self._layers)

    def write_block(self, row: int, start: int, block: Block) -> None:
        """Copy CHUNK positions into a row.

        Args:
            row: Row of the sequence.
            start: First position.
            block: What `read_block` returned, for the same position.
        """
        self.write(row, start, CHUNK)
        for kv, part in zip(self._layers, block, strict=True):
            kv[:, row, :, start : start + CHUNK] = part

    @property
    def size_bytes(self) -> int:
        """Memory of the cache."""
        return self._bytes(self._rows, self.length)

    def need_bytes(self, rows: int, length: int) -> int:
        """Compute the memory that the cache has grown to when some rows have their longest sequence.

        Args:
            rows: Rows in use.
            length: Positions of the longest sequence.

        Returns:
            Bytes.
        """
        return self._bytes(self._allocated(rows), max(length, self._shortest))

    @property
    def block_bytes(self) -> int:
        """Memory of a `Block`."""
        return self._bytes(1, CHUNK)

    def _bytes(self, rows: int, length: int) -> int:
        return cache_bytes(self._config, rows=rows, length=length, item_bytes=self._dtype.itemsize)

    def _allocated(self, rows: int) -> int:
        return min(1 << max(rows - 1, 0).bit_length(), self._most)

    def _fit(self) -> None:
        """Grow to the rows in use and the longest of them, or shrink when a part of the memory would do."""
        rows, length = self._allocated(self._used), max(_rounded(max(self._written)), self._shortest)
        if length > self.length:  # by half where it will be needed: each growth copies everything
            length = max(length, min(_rounded(self.length * 3 // 2), _rounded(self._longest)))
        is_small = rows > self._rows or length > self.length
        if is_small or rows * _SHRINK_ROWS <= self._rows or length * _SHRINK_LENGTH <= self.length:
            self._resize(rows, length)

    def _resize(self, rows: int, length: int) -> None:
        old, self._layers = self._layers, []
        for h, d in self._shapes:
            kv = _zeros((2, rows, h, length, d), self._dtype, self._device)  # (2, R, H, L, D)
            if old:
                self._copy(old.pop(0), kv)  # its memory is free before the next layer needs some
            self._layers.append(kv)
        self._rows, self.length = rows, length
        self._flat = [kv.view(-1, kv.size(-1)) for kv in self._layers]  # (2 * R * H * L, D)
        self._flat_heads = [kv.flatten(1, 2).unbind(0) for kv in self._layers]  # 2 x (R * H, L, D)
        for h in {h for h, _ in self._shapes}:
            offsets = torch.arange(2 * rows * h, device=self._device) * length  # (2 * R * H,)
            self._offsets[h] = offsets.view(2, rows, h).transpose(0, 1).contiguous()  # (R, 2, H)

    def _copy(self, source: Tensor, target: Tensor) -> None:
        """Copy what sequences wrote, and no more: a page that is not touched costs no memory."""
        for row, written in enumerate(self._written[: min(source.size(1), target.size(1))]):
            if kept := min(written, source.size(3), target.size(3)):
                target[:, row, :, :kept] = source[:, row, :, :kept]


def cache_bytes(config: ModelConfig, *, rows: int, length: int, item_bytes: int = 4) -> int:
    """Compute the memory of a `KVCache`.

    Args:
        config: Shape of the model.
        rows: Sequences.
        length: Positions of the longest sequence.
        item_bytes: Bytes of a number.

    Returns:
        Bytes.
    """
    width = sum(h * d for h, d in zip(config.heads, config.head_dims, strict=True))
    return 2 * rows * -(-length // CHUNK) * CHUNK * width * item_bytes


def _rounded(length: int) -> int:
    return -(-length // CHUNK) * CHUNK


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Allocate zeros; on the CPU in small pages, which cost nothing before they are written.

    In huge pages, which numpy asks for, the positions of one row would clear megabytes of every other row: growing took
    0.3 to 0.7 s instead of 0.1 s.
    """
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # on Linux
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)  # (2, R, H, L, D)
