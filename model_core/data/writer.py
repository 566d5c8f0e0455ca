"""Append-only files of a dataset under construction, and the record of what is safe on disk.

Files are synced from time to time, and a small record states how far. After a kill, what was written beyond the
record is cut off. Complete files move to their final names, the training tokens last, so a dataset is never half ready.
Token ids and the example index are .npy files whose length is filled in at the end.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from model_core.data.chunking import HASH_BYTES, Counts, Encoded
from model_core.errors import InvalidData
from model_core.storage.dataset import EXAMPLE_INDEX, EXAMPLES, MANIFEST, SPLITS, TOKENIZER, Dataset
from model_core.storage.files import read_json, sync_directory, write_json


class AppendFile:
    """A file that only grows at its end.

    Args:
        path: The file; it is made when it is not there.
        head: What a new file begins with.
        size: How many bytes after that are kept.

    Raises:
        InvalidData: It has fewer.
    """

    def __init__(self, path: Path, *, head: bytes, size: int) -> None:
        self._head = head
        present = path.stat().st_size if path.exists() else 0
        if size and present < len(head) + size:
            raise InvalidData(f"{path} has lost bytes that were written; delete {path.parent} and prepare again")
        self._file: BinaryIO = path.open("r+b" if present else "w+b")
        self._file.truncate(len(head) + size)
        self.rewrite_head(head)
        self.size = size

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Args:
            data: Bytes to append.
        """
        self._file.write(data)
        self.size += len(data)

    def rewrite_head(self, head: bytes) -> None:
        """Replace the head of the file by one of equal length.

        Args:
            head: New head.
        """
        assert len(head) == len(self._head)
        self._file.seek(0)
        self._file.write(head)
        self._file.seek(0, os.SEEK_END)

    def sync(self) -> None:
        """Put everything on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it."""
        self._file.close()


class Shards:
    """The token ids of a split, in as many files as they need.

    Args:
        directory: Where the files lie.
        split: What they are called after.
        dtype: Of an id.
        shard_bytes: Of ids in one file; every file but the last holds as many.
        tokens: Ids that are kept of what was written before.
    """

    def __init__(self, directory: Path, split: str, dtype: str, shard_bytes: int, *, tokens: int) -> None:
        self._directory, self._split, self._dtype = directory, split, np.dtype(dtype)
        self._limit = max(1, shard_bytes // self._dtype.itemsize) * self._dtype.itemsize
        size = tokens * self._dtype.itemsize
        complete = max(0, size - 1) // self._limit  # a full file is the last until there is more
        self.paths = [self._path(number) for number in range(complete)]
        self._open(size - complete * self._limit)

    def write(self, ids: bytes) -> None:
        """Append token ids.

        Args:
            ids: Ids in the byte order and type of the file.
        """
        rest = memoryview(ids)
        while len(rest) > (room := self._limit - self._file.size):
            self._file.write(rest[:room])
            self._complete()
            self._open(0)
            rest = rest[room:]
        self._file.write(rest)

    def sync(self) -> None:
        """Put everything on disk."""
        self._file.sync()

    def finish(self) -> list[Path]:
        """Complete the last file.

        Returns:
            All files in order.
        """
        self._complete()
        return self.paths

    def close(self) -> None:
        """Close what is open, as it is."""
        self._file.close()

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._split}_{number:05d}.npy"

    def _open(self, size: int) -> None:
        path = self._path(len(self.paths))
        self._file = AppendFile(path, head=_head(self._dtype, (0,)), size=size)
        self.paths.append(path)

    def _complete(self) -> None:
        self._file.rewrite_head(_head(self._dtype, (self._file.size // self._dtype.itemsize,)))
        self._file.sync()
        self._file.close()


class Examples:
    """Writer of test_examples.json and its index.

    Args:
        directory: Where both files lie.
        count: Examples that are kept of what was written before.
        size: Their bytes.
    """

    _ROW = np.dtype("<u8")

    def __init__(self, directory: Path, *, count: int, size: int) -> None:
        self.count = count
        self._file = AppendFile(directory / EXAMPLES, head=b"[", size=size)
        row = 2 * self._ROW.itemsize
        self._index = AppendFile(directory / EXAMPLE_INDEX, head=_head(self._ROW, (0, 2)), size=count * row)

    @property
    def size(self) -> int:
        """Bytes of the examples."""
        return self._file.size

    def write(self, examples: Sequence[bytes]) -> None:
        """Append test examples.

        Args:
            examples: JSON objects, encoded.
        """
        places: list[tuple[int, int]] = []
        for example in examples:
            self._file.write(b",\n" if self.count + len(places) else b"\n")
            begin = self._file.size + 1  # after the bracket
            self._file.write(example)
            places.append((begin, begin + len(example)))
        self._index.write(np.array(places, self._ROW).tobytes())
        self.count += len(places)

    def sync(self) -> None:
        """Put everything on disk."""
        self._file.sync()
        self._index.sync()

    def finish(self) -> None:
        """Complete both files."""
        self._file.write(b"\n]\n")
        self._index.rewrite_head(_head(self._ROW, (self.count, 2)))
        self.sync()
        self.close()

    def close(self) -> None:
        """Close both files, as they are."""
        self._file.close()
        self._index.close()


def _head(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """The header of a .npy; numpy leaves room in it for any length of the first dimension."""
    head = io.BytesIO()
    facts = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, facts)
    return head.getvalue()


RECORD = "progress.json"
_FOLDER, _HASHES = ".building", "hashes"
_MOST_CATEGORIES, _FURTHER = 256, "(further categories)"


@dataclass
class BuildProgress:
    """What was written so far.

    Attributes:
        read: Documents of the source, duplicates among them.
        splits: What each holds.
        categories: What of each kind there is; empty when the source has none.
        example_bytes: Of the test examples.
        places: When all is complete, the name each file gets, in the order in which they move.
    """

    read: int = 0
    splits: dict[str, Counts] = field(default_factory=lambda: {split: Counts() for split in SPLITS})
    categories: dict[str, Counts] = field(default_factory=dict)
    example_bytes: int = 0
    places: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Restore the progress from a record.

        Args:
            record: A dictionary that `asdict` returned.

        Returns:
            The progress.
        """
        counts = {key: {name: Counts(**c) for name, c in record[key].items()} for key in ("splits", "categories")}
        return cls(record["read"], **counts, example_bytes=record["example_bytes"], places=dict(record["places"]))

    @property
    def kept(self) -> int:
        """Documents that are in a split."""
        return sum(counts.documents for counts in self.splits.values())

    @property
    def tokens(self) -> int:
        """Of all splits."""
        return sum(counts.tokens for counts in self.splits.values())

    @property
    def text_bytes(self) -> int:
        """Of all splits."""
        return sum(counts.text_bytes for counts in self.splits.values())

    def add(self, encoded: Encoded, *, example_bytes: int) -> None:
        """Count a chunk that was written.

        Args:
            encoded: The chunk.
            example_bytes: Size of the test examples after it.
        """
        self.read = encoded.chunk.parts[-1][1].number
        self.example_bytes = example_bytes
        for split, counts in encoded.splits.items():
            self.splits[split].add(counts)
        for name, counts in encoded.categories.items():
            known = name in self.categories or len(self.categories) < _MOST_CATEGORIES
            self.categories.setdefault(name if known else _FURTHER, Counts()).add(counts)


class DatasetBuild:
    """A dataset that is being written by one process at a time.

    Attributes:
        progress: What was written, and counts as safe after the next `commit`.

    Args:
        dataset: Where the complete files go.
        identity: Whatever decides their bytes.
    """

    def __init__(self, dataset: Dataset, identity: Mapping[str, Any]) -> None:
        self._dataset, self.directory = dataset, dataset.directory / _FOLDER
        self._identity = dict(identity)
        file = self.directory / RECORD
        record = read_json(file) if file.is_file() else {}
        self.progress = BuildProgress()
        if record.get("identity") == self._identity:
            self.progress = BuildProgress.of(record["ledger"])
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir(parents=True)
            self.record(asdict(self.progress))

    def size_bytes(self) -> int:
        """Return the size of all files written so far.

        Returns:
            Size in bytes.
        """
        return sum(file.stat().st_size for file in self.directory.iterdir() if file.is_file())

    def hashes(self) -> bytes:
        """Return the hashes of the documents that were kept.

        Returns:
            The concatenated hashes; empty if duplicates are not dropped.
        """
        file = self.directory / _HASHES
        return file.read_bytes()[: HASH_BYTES * self.progress.kept] if file.exists() else b""

    def discard(self) -> None:
        """Leave nothing of it."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def open(self, dtype: str, shard_bytes: int, *, dedupe: bool) -> OpenFiles:
        """Open the files at the recorded position.

        Args:
            dtype: Of a token id.
            shard_bytes: Of ids in one file.
            dedupe: Whether hashes of documents are kept too.

        Returns:
            The open files.
        """
        return OpenFiles(self, dtype, shard_bytes, dedupe=dedupe)

    def complete(self, manifest: Mapping[str, Any]) -> None:
        """Record that every file is complete.

        Args:
            manifest: What the dataset's will be.
        """
        write_json(self.directory / MANIFEST, manifest)
        self.progress.places = {name: name for name in (MANIFEST, TOKENIZER, EXAMPLES, EXAMPLE_INDEX)}
        for split in reversed(SPLITS):
            facts = manifest["splits"][split]
            names = [shard["file"] for shard in facts.get("files", [facts])]
            self.progress.places |= {f"{split}_{n:05d}.npy": name for n, name in enumerate(names)}
        self.record(asdict(self.progress))

    def move(self) -> None:
        """Give every complete file its name; again after a kill in between."""
        for written, place in self.progress.places.items():
            if (self.directory / written).exists():
                (self.directory / written).replace(self._dataset.directory / place)
        sync_directory(self._dataset.directory)
        self.discard()

    def record(self, progress: Mapping[str, Any]) -> None:
        """Write down what is safe on disk.

        Args:
            progress: As `asdict` gives it.
        """
        write_json(self.directory / RECORD, {"schema_version": 1, "identity": self._identity, "ledger": progress})


class OpenFiles:
    """The open files of a `DatasetBuild`.

    Args:
        build: The build; its progress says where to continue.
        dtype: Type of a token id on disk.
        shard_bytes: Size at which a token file is continued in another one.
        dedupe: Whether hashes of documents are kept.
    """

    def __init__(self, build: DatasetBuild, dtype: str, shard_bytes: int, *, dedupe: bool) -> None:
        self._build, progress, directory = build, build.progress, build.directory
        self.shards = {
            split: Shards(directory, split, dtype, shard_bytes, tokens=counts.tokens)
            for split, counts in progress.splits.items()
        }
        self._examples = Examples(directory, count=progress.splits["test"].documents, size=progress.example_bytes)
        kept_bytes = HASH_BYTES * progress.kept
        self._hashes = AppendFile(directory / _HASHES, head=b"", size=kept_bytes) if dedupe else None
        files: tuple[Shards | Examples | AppendFile | None, ...]
        files = (*self.shards.values(), self._examples, self._hashes)
        self._files = tuple(file for file in files if file is not None)
        self._safe = asdict(progress)

    def add(self, encoded: Encoded) -> None:
        """Append a chunk.

        Args:
            encoded: The tokenized chunk.
        """
        for split, ids in encoded.tokens.items():
            self.shards[split].write(ids)
        self._examples.write(encoded.examples)
        if self._hashes is not None:
            self._hashes.write(b"".join(part.hash for _, part in encoded.chunk.parts))
        self._build.progress.add(encoded, example_bytes=self._examples.size)
        if encoded.chunk.ends_block:
            self._safe = asdict(self._build.progress)

    def commit(self) -> None:
        """Make safe what ends with a block of the split."""
        for file in self._files:
            file.sync()
        self._build.record(self._safe)

    def finish(self) -> dict[str, list[Path]]:
        """Complete all files.

        Returns:
            Token files by split.
        """
        self._examples.finish()
        return {split: shards.finish() for split, shards in self.shards.items()}

    def close(self) -> None:
        """Close what is open, as it is."""
        for file in self._files:
            file.close()
