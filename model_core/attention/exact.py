"""Exact attention of a record, float32 on disk beside its levels, and as an archive for numpy.

It is written when it is first asked for, by a process that has the model, and goes with the record. An archive is
made piece by piece, uncompressed: deflating float32 would save half of it and take a minute.

Shapes: H heads of one layer, T tokens of the record, R tokens of a range.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.attention.record import AttentionRecord, layer_file
from model_core.attention.selection import TokenRange

Array = NDArray[Any]

EXACT = "exact"  # directory in that of the record
ITEM_BYTES = 4
_PIECE = 1 << 20  # values of one piece
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same archive has the same bytes


@dataclass(frozen=True)
class ExactWeights:
    """Exact attention of a record.

    Attributes:
        record: The record.
    """

    record: AttentionRecord

    @property
    def directory(self) -> Path:
        """Directory of the layers."""
        return self.record.path / EXACT

    @classmethod
    def find(cls, record: AttentionRecord) -> ExactWeights | None:
        """Find what was written for a record.

        Args:
            record: The record.

        Returns:
            The exact attention; None if it was not asked for yet.
        """
        found = cls(record)
        return found if found.directory.is_dir() else None

    def layer(self, layer: int) -> NDArray[np.float32]:
        """Map a layer into memory.

        Args:
            layer: Index of the layer.

        Returns:
            Attention, (H, T, T); read from disk where it is used.

        Raises:
            FileNotFoundError: It was deleted or replaced with its record.
        """
        path = self.directory / layer_file(layer, self.record.n_layer, "npy")
        mapped: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self.record.unchanged(mapped)


def exact_bytes(heads: Sequence[int], tokens: int) -> int:
    """Compute the size of exact attention on disk.

    Args:
        heads: Head count of every layer.
        tokens: Number of tokens, T.

    Returns:
        Size in bytes.
    """
    return ITEM_BYTES * sum(heads) * tokens**2


def npz_pieces(
    weights: ExactWeights, heads: Iterable[tuple[int, Sequence[int]]], tokens: TokenRange, dtype: str
) -> Iterator[bytes]:
    """Write an archive of arrays ``layer00``, ``layer01``, ... for `numpy.load`.

    Args:
        weights: Exact attention.
        heads: Chosen layers, each with its chosen heads.
        tokens: The chosen queries and keys.
        dtype: ``float32`` or ``float16``.

    Yields:
        Pieces of the archive; the arrays are (H, R, R).
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for layer, chosen in heads:
            mapped = weights.layer(layer)  # (H, T, T)
            name = zipfile.ZipInfo(layer_file(layer, weights.record.n_layer, "npy"), _EPOCH)
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(_header((len(chosen), len(tokens), len(tokens)), dtype))
                for head in chosen:
                    for rows in _rows(mapped[head], tokens):
                        file.write(np.ascontiguousarray(rows, dtype=dtype).tobytes())
                        yield sink.taken()
    yield sink.taken()


def _rows(attention: Array, tokens: TokenRange) -> Iterator[Array]:
    count = max(1, _PIECE // len(tokens))
    for low in range(tokens.start, tokens.stop, count):
        yield attention[low : min(low + count, tokens.stop), tokens.start : tokens.stop]


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


class _Sink(io.RawIOBase):
    """A file that is only written, whose bytes are taken out piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
