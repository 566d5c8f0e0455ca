"""Attention on disk: the weights of one text under one checkpoint, readable with numpy alone.

A record is a directory: weights/layer00.npy ... (uint8 of the square root of the weight, so that faint weights
keep their detail), statistics.json (from the exact weights), manifest.json (written last: without it there is no
record) and the pictures drawn from it. The first captured checkpoint's record lies in ``<run>/<id>/``, another's
below it.

Attention is causal, so the weights of a text's beginning are the beginning of its weights: pictures of fewer
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

from model_core.attention.statistics import layer_statistics, statistics_record
from model_core.errors import InvalidParameter
from model_core.storage.files import Layout, checked_name, now, read_json, replacing, write_json, write_text
from model_core.storage.run import Run

Array = NDArray[Any]
Manifest = dict[str, Any]

SCHEMA_VERSION = 1
MANIFEST, STATISTICS, WEIGHTS, TEXT = "manifest.json", "statistics.json", "weights", "text.txt"


def quantized(weights: Array) -> NDArray[np.uint8]:
    """Weights from 0 to 1 as uint8 of their square root; what is uint8 already is returned as it is."""
    if weights.dtype == np.uint8:
        return weights
    levels = np.empty(weights.shape, dtype=np.uint8)
    for head in np.ndindex(weights.shape[:-2]):  # one at a time: a whole layer can be half a gigabyte
        levels[head] = np.rint(np.sqrt(np.clip(weights[head], 0.0, 1.0)) * 255)
    return levels


def restored(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Weights from their stored form; the error is at most 0.004."""
    weights: NDArray[np.float32] = np.square(levels.astype(np.float32) / 255)
    return weights


def layer_name(layer: int, n_layer: int = 0, suffix: str = "png") -> str:
    """File name of a layer: two digits, more where the model has more layers, so that names sort."""
    digits = max(2, len(str(max(layer, n_layer - 1))))
    return f"layer{layer:0{digits}d}.{suffix}"


@dataclass(frozen=True)
class AttentionRecord:
    """One captured text.

    Attributes:
        path: Its directory.
        manifest: ``{schema_version, run, id, checkpoint, step, sha256, text, tokens, token_ids, max_tokens,
            truncated_from, block_size, created_at, layers: [{layer, n_head, head_dim, png}]}``. `tokens` are
            readable labels; `truncated_from` is the length of the text in tokens, or None when nothing was cut.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> AttentionRecord | None:
        """Open a record; None if there is none, or if a file of it is gone."""
        if not (path / MANIFEST).is_file():
            return None
        record = cls(path, read_json(path / MANIFEST))
        parts = [path / STATISTICS, *(record._weights_file(layer) for layer in range(record.n_layer))]
        return record if all(part.is_file() for part in parts) else None

    @classmethod
    def find(
        cls, layout: Layout, run: str, id: str, sha256: str, *, max_tokens: int | None = None  # noqa: A002 - the name in the address
    ) -> AttentionRecord | None:  # fmt: skip
        """Find what was captured.

        Args:
            layout: Where runs and records lie.
            run: Name of the run.
            id: Number of a test example, or the id of a text.
            sha256: Of the checkpoint's file, hex.
            max_tokens: The longest text wanted; None: as many as the run's own configuration draws.

        Returns:
            The record that holds just these tokens, or None: it has to be captured first.
        """
        home = home_of(layout, run, id)
        if not home.is_dir():
            return None
        wanted = max_tokens if max_tokens is not None else default_max_tokens(layout, run)
        for record in records_in(home):
            if record.manifest["sha256"] == sha256 and record._holds(wanted):
                return record
        return None

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return len(self.manifest["layers"])

    @property
    def heads(self) -> tuple[int, ...]:
        """Head count of every layer."""
        return tuple(layer["n_head"] for layer in self.manifest["layers"])

    @property
    def tokens(self) -> list[str]:
        """One readable label a token."""
        labels: list[str] = self.manifest["tokens"]
        return labels

    def layer(self, layer: int, *, first: int | None = None) -> NDArray[np.uint8]:
        """Read one layer, and nothing of the others.

        Args:
            layer: Its number.
            first: Tokens from the beginning of the text; None: all.

        Returns:
            uint8 of the square root of the weights, (H, T, T). `restored` gives the weights.

        Raises:
            InvalidParameter: There is no such layer.
        """
        mapped = np.load(self._weights_file(self._checked(layer)), mmap_mode="r")
        return np.array(mapped[:, :first, :first])

    def head(self, layer: int, head: int, *, first: int | None = None) -> NDArray[np.uint8]:
        """Read one head, and nothing of the others: (T, T), otherwise as `layer`."""
        mapped = np.load(self._weights_file(self._checked(layer)), mmap_mode="r")
        if not 0 <= head < len(mapped):
            raise InvalidParameter(f"layer {layer} has no head {head}; its heads are 0 to {len(mapped) - 1}")
        return np.array(mapped[head, :first, :first])

    def statistics(self) -> dict[str, Any]:
        """Numbers by layer and head, with what they mean."""
        numbers: dict[str, Any] = read_json(self.path / STATISTICS)
        return numbers

    def _checked(self, layer: int) -> int:
        if not 0 <= layer < self.n_layer:
            raise InvalidParameter(f"the model has no layer {layer}; its layers are 0 to {self.n_layer - 1}")
        return layer

    def _weights_file(self, layer: int) -> Path:
        return self.path / WEIGHTS / layer_name(layer, self.n_layer, "npy")

    def _holds(self, wanted: int) -> bool:
        have = len(self.manifest["token_ids"])
        whole = self.manifest["truncated_from"] or have
        return bool(have == min(whole, wanted, self.manifest["block_size"]))


class RecordWriter:
    """Writes a record layer by layer; it exists once `finish` has written the manifest."""

    def __init__(self, path: Path, n_layer: int) -> None:
        self._path, self._n_layer = path, n_layer
        self._statistics: list[dict[str, Any]] = []
        (path / MANIFEST).unlink(missing_ok=True)  # a record that lost a file is no record while it is rewritten

    def add(self, weights: Array) -> None:
        """Store and measure the exact weights of the next layer, (H, T, T)."""
        layer = len(self._statistics)
        with replacing(self._path / WEIGHTS / layer_name(layer, self._n_layer, "npy")) as file:
            np.save(file, quantized(weights))
        self._statistics.append(layer_statistics(layer, weights))

    def finish(self, facts: Manifest) -> AttentionRecord:
        """Make it a record.

        Args:
            facts: The manifest's fields, but for its version and time.
        """
        assert len(self._statistics) == self._n_layer
        write_json(self._path / STATISTICS, statistics_record(self._statistics))
        manifest = {"schema_version": SCHEMA_VERSION, **facts, "created_at": now()}
        write_json(self._path / MANIFEST, manifest)
        return AttentionRecord(self._path, manifest)


def home_of(layout: Layout, run: str, id: str) -> Path:  # noqa: A002 - the name that clients see
    """Directory of everything captured of a text."""
    return layout.attention_of(run) / checked_name("example", id)


def records_in(home: Path) -> Iterator[AttentionRecord]:
    """Every record of a text, the first captured first."""
    for path in (home, *sorted(child for child in home.iterdir() if child.is_dir())):
        if record := AttentionRecord.open(path):
            yield record


def free_place(home: Path, sha256: str, tokens: int) -> Path:
    """Where the record of a checkpoint goes when it is not there yet: the first free of three places."""
    places = (home, home / sha256[:8], home / f"{sha256[:8]}-{tokens}")
    return next((place for place in places if AttentionRecord.open(place) is None), places[-1])


def default_max_tokens(layout: Layout, run: str) -> int:
    """How many tokens are captured when nobody says: what the run's configuration draws."""
    testing = Run.open(layout.run(run)).config().testing
    return min(testing.max_seq_len_viz, testing.test_sample_length)


def keep_text(home: Path, text: str) -> None:
    """Remember the whole of a text, so that another checkpoint can look at it too."""
    write_text(home / TEXT, text)


def kept_text(home: Path) -> str | None:
    """The text that `keep_text` stored there."""
    file = home / TEXT
    return file.read_bytes().decode() if file.is_file() else None


@contextmanager
def capturing(home: Path) -> Iterator[None]:
    """Let one at a time, of all threads and processes, capture a text."""
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        yield
