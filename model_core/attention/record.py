"""Attention on disk: what every head computed for one text under one checkpoint, readable with numpy alone.

A record is a directory: weights/layer00.npy ... (uint8 of the square root of the attention, so that faint values keep
their detail), statistics.json (from the exact values), manifest.json (written last: without it there is no record) and
the pictures drawn from it. The record of the first captured checkpoint is ``<run>/<id>/``, others are below it.

Attention is causal, so the attention of the beginning of a text is the beginning of its attention: pictures of fewer
tokens are drawn from the same record.

Shapes: H heads of one layer, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from model_core.attention.selection import check_head, check_layer
from model_core.attention.statistics import head_statistics, layer_statistics, statistics_record, upgrade_record
from model_core.config import TestingConfig
from model_core.storage.files import Layout, atomic_write, checked_name, now, read_json, write_json, write_text
from model_core.storage.run import Run

Array = NDArray[Any]
Manifest = dict[str, Any]

SCHEMA_VERSION = 1
MANIFEST, STATISTICS, ATTENTION, TEXT = "manifest.json", "statistics.json", "weights", "text.txt"


@dataclass(frozen=True)
class AttentionRecord:
    """One captured text.

    Attributes:
        path: Directory of the record.
        manifest: ``{schema_version, run, id, checkpoint, step, sha256, text, tokens, token_ids, max_tokens,
            truncated_from, block_size, created_at, layers: [{layer, n_head, head_dim, png}]}``. `tokens` are
            readable labels; `truncated_from` is the length of the text in tokens, or None when nothing was cut.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> AttentionRecord | None:
        """Open a record.

        Args:
            path: Directory of the record.

        Returns:
            The record; None if there is none, or if one of its files is missing.
        """
        if not (path / MANIFEST).is_file():
            return None
        record = cls(path, read_json(path / MANIFEST))
        parts = [path / STATISTICS, *(record._layer_path(layer) for layer in range(record.n_layer))]
        return record if all(part.is_file() for part in parts) else None

    @classmethod
    def find(
        cls, layout: Layout, run: str, id: str, sha256: str, *, max_tokens: int | None = None  # noqa: A002 - the name in the address
    ) -> AttentionRecord | None:  # fmt: skip
        """Find what was captured of a text under a checkpoint.

        Args:
            layout: Paths of the data root.
            run: Name of the run.
            id: Number of a test example, or the id of a text.
            sha256: Hash of the checkpoint's file, hex.
            max_tokens: Most tokens to capture; None takes the run's `default_max_tokens`.

        Returns:
            The record with exactly the tokens that a capture would store; None if there is none.
        """
        directory = text_directory(layout, run, id)
        if not directory.is_dir():
            return None
        limit = max_tokens
        if limit is None:
            limit = default_max_tokens(Run.open(layout.run(run)).config().testing)
        for record in list_records(directory):
            if record.manifest["sha256"] == sha256 and record._has_length(limit):
                return record
        return None

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self.manifest["layers"])

    @property
    def heads(self) -> tuple[int, ...]:
        """Head count of every layer."""
        return tuple(layer["n_head"] for layer in self.manifest["layers"])

    @property
    def tokens(self) -> list[str]:
        """Readable label of every token."""
        labels: list[str] = self.manifest["tokens"]
        return labels

    def layer(self, layer: int, *, first: int | None = None) -> NDArray[np.uint8]:
        """Read one layer.

        Args:
            layer: Index of the layer.
            first: Number of tokens from the beginning of the text; None reads all.

        Returns:
            Quantized attention, (H, T, T); see `quantize`.

        Raises:
            InvalidParameters: There is no such layer.
        """
        mapped = np.load(self._layer_path(check_layer(layer, self.heads)), mmap_mode="r")  # (H, T, T)
        return np.array(mapped[:, :first, :first])  # (H, first, first)

    def head(self, layer: int, head: int, *, first: int | None = None) -> NDArray[np.uint8]:
        """Read one head.

        Args:
            layer: Index of the layer.
            head: Index of the head in its layer.
            first: Number of tokens from the beginning of the text; None reads all.

        Returns:
            Quantized attention, (T, T); see `quantize`.

        Raises:
            InvalidParameters: There is no such layer or head.
        """
        mapped = np.load(self._layer_path(check_layer(layer, self.heads)), mmap_mode="r")  # (H, T, T)
        return np.array(mapped[check_head(head, layer, self.heads), :first, :first])  # (first, first)

    def statistics(self) -> dict[str, Any]:
        """Read the statistics.

        Returns:
            The content of statistics.json in its present version; see `statistics_record`.
        """
        return upgrade_record(read_json(self.path / STATISTICS), len(self.manifest["token_ids"]))

    def _layer_path(self, layer: int) -> Path:
        return self.path / ATTENTION / layer_file(layer, self.n_layer, "npy")

    def _has_length(self, max_tokens: int) -> bool:
        captured = len(self.manifest["token_ids"])
        whole = self.manifest["truncated_from"] or captured
        return bool(captured == min(whole, max_tokens, self.manifest["block_size"]))


class RecordWriter:
    """Writes a record layer by layer; it exists once `finish` has written the manifest.

    Args:
        path: Directory of the record.
        n_layer: Number of layers.
    """

    def __init__(self, path: Path, n_layer: int) -> None:
        self._path, self._n_layer = path, n_layer
        self._statistics: list[dict[str, Any]] = []
        (path / MANIFEST).unlink(missing_ok=True)  # a record that lost a file is no record while it is rewritten

    def add(self, attention: Array) -> None:
        """Store and measure the next layer.

        Args:
            attention: Exact attention, (H, T, T).
        """
        layer = len(self._statistics)
        with atomic_write(self._path / ATTENTION / layer_file(layer, self._n_layer, "npy")) as file:
            np.save(file, quantize(attention))
        self._statistics.append(layer_statistics(layer, head_statistics(attention)))

    def finish(self, fields: Manifest) -> AttentionRecord:
        """Write the statistics and the manifest.

        Args:
            fields: Fields of the manifest, without its version and time.

        Returns:
            The record.
        """
        assert len(self._statistics) == self._n_layer
        write_json(self._path / STATISTICS, statistics_record(self._statistics, len(fields["token_ids"])))
        manifest = {"schema_version": SCHEMA_VERSION, **fields, "created_at": now()}
        write_json(self._path / MANIFEST, manifest)
        return AttentionRecord(self._path, manifest)


def quantize(attention: Array) -> NDArray[np.uint8]:
    """Quantize attention to uint8 of its square root.

    Args:
        attention: Values from 0 to 1, (..., T, T); uint8 is returned as it is.

    Returns:
        Levels from 0 to 255, (..., T, T).
    """
    if attention.dtype == np.uint8:
        return attention
    levels = np.empty(attention.shape, dtype=np.uint8)
    for head in np.ndindex(attention.shape[:-2]):  # one at a time: a whole layer can be half a gigabyte
        levels[head] = np.rint(np.sqrt(np.clip(attention[head], 0.0, 1.0)) * 255)
    return levels


def dequantize(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Restore attention from its levels.

    Args:
        levels: As `quantize` returns them.

    Returns:
        Values from 0 to 1, of the same shape; the error is at most 0.004.
    """
    attention: NDArray[np.float32] = np.square(levels.astype(np.float32) / 255)
    return attention


def layer_file(layer: int, n_layer: int = 0, suffix: str = "png") -> str:
    """Return the file name of a layer.

    Args:
        layer: Index of the layer.
        n_layer: Number of layers.
        suffix: Suffix of the file.

    Returns:
        ``layer00.png``, with more digits where the model has more layers, so that names sort.
    """
    digits = max(2, len(str(max(layer, n_layer - 1))))
    return f"layer{layer:0{digits}d}.{suffix}"


def text_directory(layout: Layout, run: str, id: str) -> Path:  # noqa: A002 - the name that clients see
    """Return the directory of everything captured of a text.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        id: Number of a test example, or the id of a text.

    Returns:
        The directory.
    """
    return layout.attention_of(run) / checked_name("example", id)


def list_records(directory: Path) -> Iterator[AttentionRecord]:
    """Iterate over the records of a text.

    Args:
        directory: The text's directory.

    Yields:
        Its records, the first captured first.
    """
    for path in (directory, *sorted(child for child in directory.iterdir() if child.is_dir())):
        if record := AttentionRecord.open(path):
            yield record


def free_directory(directory: Path, sha256: str, tokens: int) -> Path:
    """Choose the directory of a new record.

    Args:
        directory: The text's directory.
        sha256: Hash of the checkpoint's file, hex.
        tokens: Number of captured tokens.

    Returns:
        The first without a record of: the text's directory, ``<sha256[:8]>/`` and ``<sha256[:8]>-<tokens>/`` in it.
    """
    candidates = (directory, directory / sha256[:8], directory / f"{sha256[:8]}-{tokens}")
    return next((path for path in candidates if AttentionRecord.open(path) is None), candidates[-1])


def default_max_tokens(testing: TestingConfig) -> int:
    """Return how many tokens are captured when a request gives no limit.

    Args:
        testing: Section `testing` of the run's configuration.

    Returns:
        The smaller of `testing.max_seq_len_viz` and `testing.test_sample_length`.
    """
    return min(testing.max_seq_len_viz, testing.test_sample_length)


def save_text(directory: Path, text: str) -> None:
    """Store the whole of a text, so that it can be captured under another checkpoint.

    Args:
        directory: The text's directory.
        text: The text.
    """
    write_text(directory / TEXT, text)


def load_text(directory: Path) -> str | None:
    """Load the text that `save_text` stored.

    Args:
        directory: The text's directory.

    Returns:
        The text; None if none was stored.
    """
    file = directory / TEXT
    return file.read_bytes().decode() if file.is_file() else None


@contextmanager
def capture_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a text: one thread of all processes captures it at a time.

    Args:
        directory: The text's directory; created if necessary.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        yield
