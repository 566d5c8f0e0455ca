"""Writes a record of attention in blocks of queries, so that no layer is in memory as a whole.

What is written stands aside until the record is complete. Then it takes the place of a shorter one, if there is one.

Shapes: H heads of one layer, T tokens, R queries of a block, K keys that they see.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from model_core.attention.record import (
    ATTENTION,
    MANIFEST,
    NORMS,
    STATISTICS,
    AttentionRecord,
    Manifest,
    layer_file,
    mark_used,
    quantize,
    remove_record,
    stamp_of,
)
from model_core.attention.statistics import HeadAccumulator, HeadStatistics, layer_statistics, statistics_record
from model_core.storage.files import now, translate_disk_full, write_json

Array = NDArray[Any]

SCHEMA_VERSION = 2  # 2: norms, and where the text of each token ends
_STAGING = ".capture"
_BLOCK = 128  # queries


class RecordWriter:
    """Writes and measures a record in blocks of queries; it takes its place once `finish` has written all of it.

    Args:
        path: Directory of the record; a shorter record of the same checkpoint and text is replaced.
        n_layer: Number of layers.
        tokens: Number of tokens, T.
    """

    def __init__(self, path: Path, n_layer: int, tokens: int) -> None:
        self._path, self._n_layer, self._tokens = path, n_layer, tokens
        self._staging = path / _STAGING
        self._layer: _LayerWriter | None = None
        self._statistics: list[dict[str, Any]] = []
        shutil.rmtree(self._staging, ignore_errors=True)  # of a process that died
        with translate_disk_full(self._staging):
            for part in (ATTENTION, NORMS):
                (self._staging / part).mkdir(parents=True)

    def add(self, attention: Array, *, value_norms: Array | None = None, output_norms: Array | None = None) -> None:
        """Store and measure the next layer.

        Args:
            attention: Exact attention, (H, T, T).
            value_norms: Norm of what each value contributes, (H, T).
            output_norms: Norm of what each head adds to each token, (H, T).
        """
        for first in range(0, self._tokens, _BLOCK):
            stop = min(first + _BLOCK, self._tokens)
            self.add_block(
                first,
                attention[:, first:stop, :stop],
                value_norms=None if value_norms is None else value_norms[:, :stop],
                output_norms=None if output_norms is None else output_norms[:, first:stop],
            )

    def add_block(
        self, first: int, attention: Array, *, value_norms: Array | None = None, output_norms: Array | None = None
    ) -> None:
        """Store and measure the next queries of a layer; after its last query, the next layer begins.

        Args:
            first: Index of the first query.
            attention: Exact attention of the queries, (H, R, K) with K = first + R.
            value_norms: Norm of what each value contributes, (H, K).
            output_norms: Norm of what each head adds to each query, (H, R).

        Raises:
            DiskFull: No space is left.
        """
        with translate_disk_full(self._staging):
            if self._layer is None:
                name = layer_file(len(self._statistics), self._n_layer, "npy")
                self._layer = _LayerWriter(self._staging, name, len(attention), self._tokens)
            self._layer.add(first, attention, value_norms, output_norms)
            if attention.shape[2] == self._tokens:
                self._statistics.append(layer_statistics(len(self._statistics), self._layer.finish()))
                self._layer = None

    def finish(self, fields: Manifest) -> AttentionRecord:
        """Write the statistics and the manifest, and put the record in its place.

        Args:
            fields: Fields of the manifest, without its version and time.

        Returns:
            The record.

        Raises:
            DiskFull: No space is left.
        """
        assert len(self._statistics) == self._n_layer
        write_json(self._staging / STATISTICS, statistics_record(self._statistics, self._tokens))
        remove_record(self._path, keep_pictures=True)
        for part in (ATTENTION, NORMS, STATISTICS):
            (self._staging / part).replace(self._path / part)
        manifest = {"schema_version": SCHEMA_VERSION, **fields, "created_at": now()}
        write_json(self._path / MANIFEST, manifest)
        self._staging.rmdir()
        mark_used(self._path)
        return AttentionRecord(self._path, manifest, self._tokens, stamp_of(self._path))

    def discard(self) -> None:
        """Remove what was written of a record that will not be finished."""
        if self._layer is not None:
            self._layer.close()
        shutil.rmtree(self._staging, ignore_errors=True)


class _LayerWriter:
    """Writes levels and norms of one layer, row after row, and measures its heads.

    Args:
        directory: Directory of the record.
        name: File name of the layer.
        n_head: Number of heads, H.
        tokens: Number of tokens, T.
    """

    def __init__(self, directory: Path, name: str, n_head: int, tokens: int) -> None:
        self._norms_file = directory / NORMS / name
        self._n_head, self._tokens = n_head, tokens
        self._heads = HeadAccumulator(tokens, n_head)
        self._norms = np.zeros((2, n_head, tokens), dtype=np.float32)  # (2, H, T) of values and outputs
        self._has_norms = False
        self._file: IO[bytes] = (directory / ATTENTION / name).open("wb")
        header = {"descr": "|u1", "fortran_order": False, "shape": (n_head, tokens, tokens)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._begin = self._file.tell()

    def add(self, first: int, attention: Array, value_norms: Array | None, output_norms: Array | None) -> None:
        H, R, K = attention.shape  # noqa: N806 - the letters of the shape legend
        rows = np.zeros((H, R, self._tokens), dtype=np.uint8)  # (H, R, T)
        rows[:, :, :K] = quantize(attention)
        for head, own in enumerate(rows):
            self._file.seek(self._begin + (head * self._tokens + first) * self._tokens)
            self._file.write(own.data)
        self._heads.add(first, attention, value_norms=value_norms, output_norms=output_norms)
        if value_norms is not None and output_norms is not None:
            self._norms[0, :, :K] = value_norms
            self._norms[1, :, first : first + R] = output_norms
            self._has_norms = True

    def finish(self) -> list[HeadStatistics]:
        if self._has_norms:
            np.save(self._norms_file, self._norms)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        return self._heads.finish()

    def close(self) -> None:
        self._file.close()
