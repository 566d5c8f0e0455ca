"""What every head of a checkpoint attends to in the same windows of text, small enough to compare all pairs of heads.

Only the lower triangle is kept, as levels of sqrt(p): the Hellinger distance needs square roots, so comparing all heads
of two models is one matrix product a window. Without torch: the attention comes in blocks of queries.

Shapes: N heads of all layers, W windows, T tokens of a window, P weights of a window: queries 1 to T - 1 with all keys
that each sees, row by row. The first query sees one key and says nothing. B windows, H heads, R queries and K keys of
a block.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from model_core.attention.head_metrics import METRICS
from model_core.attention.quota import PATTERN_FILES, PATTERNS
from model_core.attention.record import quantize
from model_core.attention.statistics import HeadAccumulator
from model_core.errors import DatasetNotReady
from model_core.storage.dataset import Dataset, file_entries, token_files
from model_core.storage.files import Layout, atomic_write

Array = NDArray[Any]

WINDOW = 128  # most tokens of a window of the probe
MAX_HEADS = 2048  # of a model: 8 windows of 128 tokens take 135 MB
MAX_FILES = 16  # of a run
MEASURED = tuple(name for name, metric in METRICS.items() if metric.in_text and metric.in_history)

_EDITION = 1  # increase it when other windows are chosen
_NAMES_BYTES = 4096
_DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


class Block(Protocol):
    """Attention of some queries of a layer, as tensors; see `capture.AttentionBlock`."""

    @property
    def layer(self) -> int:
        """Index of the layer."""

    @property
    def first(self) -> int:
        """Index of the first query."""

    @property
    def attention(self) -> Any:
        """Attention, (B, H, R, K)."""

    @property
    def value_norms(self) -> Any:
        """Norms of the values, (B, H, K)."""

    @property
    def output_norms(self) -> Any:
        """Norms of what the heads add, (B, H, R)."""


@dataclass(frozen=True)
class HeadPatterns:
    """Attention of all heads of a model to the same windows.

    Attributes:
        heads: Head count of every layer.
        tokens: Tokens of a window, T.
        levels: Levels of sqrt(p), (N, W, P) uint8; see `record.quantize`.
        values: For each metric of `MEASURED` the mean over windows of every head, (N,).
        probe: Hash of the probe whose windows they are, hex.
    """

    heads: tuple[int, ...]
    tokens: int
    levels: NDArray[np.uint8]
    values: dict[str, NDArray[np.float64]]
    probe: str = ""

    @classmethod
    def of(cls, blocks: Iterable[Block], *, heads: tuple[int, ...], windows: int, tokens: int, probe: str = "") -> Self:
        """Keep and measure the attention of a model.

        Args:
            blocks: Attention of all layers to W windows of T tokens, with norms, layer by layer.
            heads: Head count of every layer.
            windows: Number of windows, W.
            tokens: Tokens of a window, T; at least 2.
            probe: See `HeadPatterns`.

        Returns:
            The patterns.
        """
        first_heads = np.cumsum((0, *heads))  # first head of each layer
        levels = np.zeros((sum(heads), windows, row_starts(tokens)[-1]), dtype=np.uint8)  # (N, W, P)
        measuring = [[HeadAccumulator(tokens, n_head) for _ in range(windows)] for n_head in heads]
        for block in blocks:
            attention = block.attention.numpy()  # (B, H, R, K)
            of_layer = levels[first_heads[block.layer] : first_heads[block.layer + 1]]  # (H, W, P)
            _store(of_layer, block.first, attention, tokens)
            for window, measured in enumerate(measuring[block.layer]):
                measured.add(
                    block.first,
                    attention[window],
                    value_norms=block.value_norms[window].numpy(),
                    output_norms=block.output_norms[window].numpy(),
                )
        return cls(heads, tokens, levels, _means(measuring), probe)

    @property
    def names(self) -> list[tuple[int, int]]:
        """Layer and head of every head, N."""
        return [(layer, head) for layer, n_head in enumerate(self.heads) for head in range(n_head)]

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """What makes sqrt(p) of levels, so that each row of p sums to 1, (N, W, T-1)."""
        starts = row_starts(self.tokens)[:-1]
        totals = np.add.reduceat(np.square(self.levels, dtype=np.float32), starts, axis=-1)  # (N, W, T-1)
        return np.reciprocal(np.sqrt(np.maximum(totals, 1))).astype(np.float32)  # (N, W, T-1)

    def roots(self, window: int) -> NDArray[np.float32]:
        """Restore sqrt(p) of one window.

        Args:
            window: Index of the window.

        Returns:
            Square roots, whose squares sum to 1 in each row, (N, P).
        """
        lengths = np.arange(2, self.tokens + 1)  # (T-1,)
        scales = np.repeat(self.scales[:, window], lengths, axis=-1)  # (N, P)
        return self.levels[:, window] * scales  # (N, P)

    def save(self, path: Path) -> None:
        """Write the patterns to a file.

        Args:
            path: The file; its directory is made if it does not exist.

        Raises:
            DiskFull: No space is left; a file that was there is intact.
        """
        facts = json.dumps({"heads": self.heads, "tokens": self.tokens, "probe": self.probe}).encode()
        values = {f"value_{name}": column for name, column in self.values.items()}
        with atomic_write(path) as file:
            np.savez(file, facts=np.frombuffer(facts, dtype=np.uint8), levels=self.levels, **values)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read the patterns from a file.

        Args:
            path: The file.

        Returns:
            The patterns; None if there is no such file, or it is damaged.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                facts = json.loads(stored["facts"].tobytes())
                values = {name: stored[f"value_{name}"] for name in MEASURED}
                found = cls(tuple(facts["heads"]), int(facts["tokens"]), stored["levels"], values, str(facts["probe"]))
        except _DAMAGED:
            return None
        with contextlib.suppress(OSError):  # a data root that can only be read
            os.utime(path)  # used now, for the quota
        return found


def patterns_file(layout: Layout, run: str, sha256: str, key: str) -> Path:
    """Return the file that keeps the patterns of a checkpoint.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        sha256: Hash of the checkpoint's file, hex.
        key: Of the windows; see `windows_key`.

    Returns:
        The file, which may not exist.
    """
    return layout.attention_of(run) / PATTERNS / f"{sha256[:8]}-{key}.npz"


def patterns_bytes(n_heads: int, windows: int, tokens: int) -> int:
    """Compute the size of a file of patterns.

    Args:
        n_heads: Heads of all layers, N.
        windows: Number of windows, W.
        tokens: Tokens of a window, T.

    Returns:
        Bytes, with some for the names of the arrays.
    """
    return n_heads * (windows * int(row_starts(tokens)[-1]) + 8 * len(MEASURED)) + _NAMES_BYTES


def windows_key(dataset: Dataset, tokens: int) -> str:
    """Identify the windows of a dataset without reading them.

    Args:
        dataset: The dataset, whose validation split they are of.
        tokens: Tokens of a window.

    Returns:
        8 hexadecimal digits.

    Raises:
        DatasetNotReady: The split has no token file.
        InvalidData: The manifest is damaged.
    """
    manifest = dataset.manifest()
    if manifest is not None:
        identity: list[Any] = [entry["sha256"] for entry in file_entries(manifest["splits"]["val"])]
    else:
        try:
            stats = [path.stat() for path in token_files(dataset.val)]
        except FileNotFoundError as error:
            raise DatasetNotReady(f"dataset {dataset.name!r} lacks {Path(error.filename).name}") from None
        identity = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    return hashlib.sha256(repr((_EDITION, identity, tokens)).encode()).hexdigest()[:8]


def thin_patterns(directory: Path, most: int = MAX_FILES) -> None:
    """Delete the least recently used patterns where a run has too many; they can be captured again.

    Args:
        directory: Directory of `patterns_file`.
        most: Number of files to keep.
    """
    with contextlib.suppress(OSError):  # another process deletes them too
        files = sorted(directory.glob(PATTERN_FILES), key=lambda path: path.stat().st_mtime_ns)
        for path in files[: max(0, len(files) - most)]:
            path.unlink(missing_ok=True)


def row_starts(tokens: int) -> NDArray[np.intp]:
    """Return where the row of each query begins.

    Args:
        tokens: Tokens of a window, T.

    Returns:
        Offsets of the rows of queries 1 to T - 1, and P after them, (T,).
    """
    starts: NDArray[np.intp] = np.concatenate([[0], np.cumsum(np.arange(2, tokens + 1))])
    return starts


def _store(of_layer: NDArray[np.uint8], first: int, attention: Array, tokens: int) -> None:
    starts = row_starts(tokens)
    quantized = quantize(attention).swapaxes(0, 1)  # (H, B, R, K)
    for row in range(quantized.shape[2]):
        query = first + row
        if query:
            of_layer[:, :, starts[query - 1] : starts[query]] = quantized[:, :, row, : query + 1]  # (H, W, query + 1)


def _means(measuring: list[list[HeadAccumulator]]) -> dict[str, NDArray[np.float64]]:
    found: dict[str, list[Array]] = {name: [] for name in MEASURED}
    for windows in measuring:
        columns = [measured.columns() for measured in windows]
        for name, column in found.items():
            column.append(np.mean(np.array([window[name] for window in columns]), axis=0))  # (H,)
    return {name: np.concatenate(column) for name, column in found.items()}  # (N,)
