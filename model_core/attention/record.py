"""Attention on disk: what every head computed for one text under one checkpoint, readable with numpy alone.

A record is a directory: weights/layer00.npy ... (uint8 of the square root of the attention, so that faint values keep
their detail), norms/layer00.npy ... (how much each value and head writes), statistics.json (from the exact values),
manifest.json (written last: without it there is no record) and the pictures drawn from it. The record of the first
captured checkpoint is ``<run>/<id>/``, others are below it.

Attention is causal, so the attention of the beginning of a text is the beginning of its attention. There is one record
of a checkpoint and text, the longest that was captured, and a shorter text is read as its beginning.

Shapes: H heads of one layer, T tokens, R queries of a block, K keys that they see.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_core.attention.selection import check_head, check_layer
from model_core.attention.statistics import layer_statistics, range_statistics, statistics_record, upgrade_record
from model_core.config import TestingConfig
from model_core.storage.files import Layout, checked_name, read_json
from model_core.storage.run import Run

Array = NDArray[Any]
Manifest = dict[str, Any]
_T = TypeVar("_T")

MANIFEST, STATISTICS, ATTENTION, NORMS = "manifest.json", "statistics.json", "weights", "norms"
TEXT, TOKENS = "text.txt", "tokens.json"  # the whole of a text as it was sent
USED = ".used"  # its modification time is when the record was last looked at
_OF_CHECKPOINT = re.compile(r"[0-9a-f]{8}(-\d+)?")  # directory of a further checkpoint of the same text


class RecordReplaced(FileNotFoundError):
    """A record was deleted or replaced while it was read; looking for it again finds what there is now."""


@dataclass(frozen=True)
class AttentionRecord:
    """One captured text, or its beginning.

    Attributes:
        path: Directory of the record.
        manifest: ``{schema_version, run, id, checkpoint, step, sha256, text, tokens, token_ids, ends, max_tokens,
            truncated_from, block_size, created_at, layers: [{layer, n_head, head_dim, png}]}``. `tokens` are
            readable labels; `ends` are the characters of `text` up to the end of each token, which older records
            lack; `truncated_from` is the length of the text in tokens, or None when nothing was cut.
        stored_tokens: Number of tokens on disk; a beginning has fewer.
    """

    path: Path
    manifest: Manifest
    stored_tokens: int
    _stamp: tuple[int, int] = field(compare=False)  # of the manifest's file

    @classmethod
    def open(cls, path: Path) -> AttentionRecord | None:
        """Open a record.

        Args:
            path: Directory of the record.

        Returns:
            The record; None if there is none, or if one of its files is missing.
        """
        try:
            stamp = stamp_of(path)
            manifest = read_json(path / MANIFEST)
        except FileNotFoundError:
            return None
        record = cls(path, manifest, len(manifest["token_ids"]), stamp)
        parts = [path / STATISTICS, *(record._layer_path(layer) for layer in range(record.n_layer))]
        return record if all(part.is_file() for part in parts) else None

    @classmethod
    def find(
        cls, layout: Layout, run: str, id: str, sha256: str, *, max_tokens: int | None = None  # noqa: A002 - the name in the address
    ) -> AttentionRecord | None:  # fmt: skip
        """Find what was captured of a text under a checkpoint, and note that it is used.

        Args:
            layout: Paths of the data root.
            run: Name of the run.
            id: Number of a test example, or the id of a text.
            sha256: Hash of the checkpoint's file, hex.
            max_tokens: Most tokens to show; None takes the run's `default_max_tokens` of an example, and the whole of a
                text.

        Returns:
            The record, or its beginning, with exactly the tokens that a capture would show; None if fewer are stored.
        """
        directory = text_directory(layout, run, id)
        if not directory.is_dir():
            return None
        limit = max_tokens
        if limit is None and is_example(id):
            limit = default_max_tokens(Run.open(layout.run(run)).config().testing)
        for record in list_records(directory):
            if record.manifest["sha256"] == sha256 and record._reaches(limit):
                mark_used(record.path)
                return record if limit is None else record.beginning(limit)
        return None

    @property
    def stamp(self) -> tuple[int, int]:
        """Identity of this version of the record; another one in its place has another."""
        return self._stamp

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

    @property
    def text_directory(self) -> Path:
        """Directory of the text, which has this record or the directory of this record."""
        return self.path if self.path.name == self.manifest["id"] else self.path.parent

    @property
    def whole_tokens(self) -> int:
        """Number of tokens of the text, those that were cut included."""
        return int(self.manifest["truncated_from"] or len(self.tokens))

    def beginning(self, tokens: int) -> AttentionRecord:
        """Show only the first tokens: layers, heads, norms and statistics are theirs.

        Args:
            tokens: Number of tokens, at least 1.

        Returns:
            The beginning; this record if it has no more tokens.
        """
        if tokens >= len(self.tokens):
            return self
        facts = self.manifest
        ends = facts.get("ends")
        text = "".join(facts["tokens"][:tokens]) if ends is None else facts["text"][: ends[tokens - 1]]
        shown: Manifest = {name: facts[name][:tokens] for name in ("tokens", "token_ids", "ends") if name in facts}
        return replace(
            self, manifest={**facts, **shown, "text": text, "max_tokens": tokens, "truncated_from": self.whole_tokens}
        )

    def layer(self, layer: int, *, first: int | None = None) -> NDArray[np.uint8]:
        """Read one layer.

        Args:
            layer: Index of the layer.
            first: Number of tokens from the beginning of the text; None reads all.

        Returns:
            Quantized attention, (H, T, T); see `quantize`.

        Raises:
            InvalidParameters: There is no such layer.
            RecordReplaced: The record was deleted or replaced since it was opened.
        """
        count = self._count(first)
        mapped = np.load(self._layer_path(check_layer(layer, self.heads)), mmap_mode="r")  # (H, T, T)
        return self.unchanged(np.array(mapped[:, :count, :count]))  # (H, first, first)

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
            RecordReplaced: The record was deleted or replaced since it was opened.
        """
        count = self._count(first)
        mapped = np.load(self._layer_path(check_layer(layer, self.heads)), mmap_mode="r")  # (H, T, T)
        return self.unchanged(np.array(mapped[check_head(head, layer, self.heads), :count, :count]))  # (first, first)

    def norms(self, layer: int) -> NDArray[np.float32] | None:
        """Read how much each value contributes: |f(x_j)|, see `capture.AttentionBlock`.

        Args:
            layer: Index of the layer.

        Returns:
            Norms, (H, T); None in a record without them.

        Raises:
            InvalidParameters: There is no such layer.
            RecordReplaced: The record was deleted or replaced since it was opened.
        """
        return self._norms(layer, 0)

    def output_norms(self, layer: int) -> NDArray[np.float32] | None:
        """Read how much each head adds to each token, see `capture.AttentionBlock`.

        Args:
            layer: Index of the layer.

        Returns:
            Norms, (H, T); None in a record without them.

        Raises:
            InvalidParameters: There is no such layer.
            RecordReplaced: The record was deleted or replaced since it was opened.
        """
        return self._norms(layer, 1)

    def statistics(self) -> dict[str, Any]:
        """Read the statistics, or compute those of a beginning from what is stored.

        Returns:
            The content of statistics.json in its present version; see `statistics_record`.

        Raises:
            RecordReplaced: The record was deleted or replaced since it was opened.
        """
        if len(self.tokens) == self.stored_tokens:
            return self.unchanged(upgrade_record(read_json(self.path / STATISTICS), self.stored_tokens))
        layers = []
        for layer in range(self.n_layer):
            norms, outputs = self.norms(layer), self.output_norms(layer)
            levels = self.layer(layer)  # (H, T, T)
            heads = range_statistics(levels, 0, len(self.tokens), value_norms=norms, output_norms=outputs)
            layers.append(layer_statistics(layer, heads))
        return statistics_record(layers, len(self.tokens))

    def _norms(self, layer: int, kind: int) -> NDArray[np.float32] | None:
        path = self._layer_path(check_layer(layer, self.heads), NORMS)
        if not path.is_file():
            return self.unchanged(None)
        norms: NDArray[np.float32] = np.load(path)[kind, :, : len(self.tokens)]  # (H, T)
        return self.unchanged(norms)

    def _count(self, first: int | None) -> int:
        return len(self.tokens) if first is None else min(first, len(self.tokens))

    def unchanged(self, value: _T) -> _T:
        """Return what was read of the record, unless another record has taken its place.

        Args:
            value: What was read.

        Returns:
            The same.

        Raises:
            RecordReplaced: The record was deleted or replaced since it was opened.
        """
        if stamp_of(self.path) != self._stamp:
            raise RecordReplaced(self.path / MANIFEST)
        return value

    def _layer_path(self, layer: int, part: str = ATTENTION) -> Path:
        return self.path / part / layer_file(layer, self.n_layer, "npy")

    def _reaches(self, max_tokens: int | None) -> bool:
        wanted = min(self.whole_tokens, self.manifest["block_size"])
        return bool(self.stored_tokens >= (wanted if max_tokens is None else min(wanted, max_tokens)))


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
        Its records, that of the first captured checkpoint first.
    """
    for path in (directory, *further_directories(directory)):
        if record := AttentionRecord.open(path):
            yield record


def further_directories(directory: Path) -> list[Path]:
    """List the directories of further checkpoints of a text.

    Args:
        directory: The text's directory.

    Returns:
        The directories, by name.
    """
    return sorted(path for path in directory.iterdir() if _OF_CHECKPOINT.fullmatch(path.name) and path.is_dir())


def free_directory(directory: Path, sha256: str) -> Path:
    """Choose the directory of a new record.

    Args:
        directory: The text's directory.
        sha256: Hash of the checkpoint's file, hex.

    Returns:
        That of the checkpoint's present record, which is replaced; else the text's directory if it has no record; else
        ``<sha256[:8]>/`` in it.
    """
    if directory.is_dir():
        for record in list_records(directory):
            if record.manifest["sha256"] == sha256:
                return record.path
    return directory if AttentionRecord.open(directory) is None else directory / sha256[:8]


def remove_record(path: Path, *, keep_pictures: bool = False) -> None:
    """Remove a record, but not what else its directory holds: the text, and records of further checkpoints.

    Args:
        path: Directory of the record.
        keep_pictures: Whether the pictures stay, because a longer record of the same checkpoint takes its place.
    """
    (path / MANIFEST).unlink(missing_ok=True)  # first: from now on there is no record
    for part in [part for part in path.iterdir() if _is_part(part, keep_pictures=keep_pictures)]:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def default_max_tokens(testing: TestingConfig) -> int:
    """Return how many tokens of a test example are shown when a request gives no limit.

    Args:
        testing: Section `testing` of the run's configuration.

    Returns:
        The smaller of `testing.max_seq_len_viz` and `testing.test_sample_length`.
    """
    return min(testing.max_seq_len_viz, testing.test_sample_length)


def is_example(id: str) -> bool:  # noqa: A002 - the name that clients see
    """Return whether an id is the number of a test example, and not the id of a text.

    Args:
        id: The id.

    Returns:
        Whether it is a number.
    """
    return id.isdecimal()


def stamp_of(path: Path) -> tuple[int, int]:
    """Identify the present record of a directory.

    Args:
        path: Directory of the record.

    Returns:
        Inode and modification time of its manifest.

    Raises:
        FileNotFoundError: There is no record.
    """
    status = (path / MANIFEST).stat()
    return status.st_ino, status.st_mtime_ns


def mark_used(path: Path) -> None:
    """Note that a record is looked at, for the quota.

    Args:
        path: Directory of the record.
    """
    with contextlib.suppress(OSError):  # a data root that can only be read
        (path / USED).touch()


def _is_part(path: Path, *, keep_pictures: bool) -> bool:
    """Whether a file or directory belongs to the record of its directory."""
    if path.name.startswith(".") or path.name in {TEXT, TOKENS} or _OF_CHECKPOINT.fullmatch(path.name):
        return False
    is_picture = path.name == "pictures.json" or re.fullmatch(r"layer\d+\.(png|svg|pdf)", path.name) is not None
    return not (keep_pictures and is_picture)
