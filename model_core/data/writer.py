"""Append-only files of a dataset that is being built, and the record of its committed progress.

A commit syncs the files and records their lengths. After a crash, data beyond the record is truncated. Complete files
move to their final names, the training tokens last, so that a partial dataset never looks complete. Token ids and the
example index are .npy files whose header gets its final length at the end.
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
from numpy.typing import NDArray

from model_core.data.chunking import HASH_BYTES, Counts, Encoded
from model_core.errors import InvalidData
from model_core.storage.dataset import EXAMPLE_INDEX, EXAMPLES, MANIFEST, SPLITS, TOKENIZER, Dataset
from model_core.storage.files import read_json, sync_directory, write_json

PROGRESS_FILE = "progress.json"
_FOLDER, _HASHES, _LENGTHS = ".building", "hashes", "lengths"
_LENGTH_BYTES = 4
_FIRST_DOCUMENTS, _FIRST_CHARACTERS = 2, 200  # of the first documents, which the manifest shows
_MAX_CATEGORIES, _OTHER_CATEGORIES = 256, "(further categories)"


class AppendFile:
    """A file that grows only at its end.

    Attributes:
        size: Bytes after the header.

    Args:
        path: Path of the file, which is created if it does not exist.
        header: First bytes of the file.
        size: Bytes after the header to keep; the rest is truncated.

    Raises:
        InvalidData: The file is shorter.
    """

    def __init__(self, path: Path, *, header: bytes, size: int) -> None:
        self._header = header
        size_on_disk = path.stat().st_size if path.exists() else 0
        if size and size_on_disk < len(header) + size:
            raise InvalidData(f"{path} has lost bytes that were written; delete {path.parent} and prepare again")
        self._file: BinaryIO = path.open("r+b" if size_on_disk else "w+b")
        self._file.truncate(len(header) + size)
        self.rewrite_header(header)
        self.size = size

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Args:
            data: Bytes to append.
        """
        self._file.write(data)
        self.size += len(data)

    def rewrite_header(self, header: bytes) -> None:
        """Replace the header by another one of equal length.

        Args:
            header: New header.
        """
        assert len(header) == len(self._header)
        self._file.seek(0)
        self._file.write(header)
        self._file.seek(0, os.SEEK_END)

    def sync(self) -> None:
        """Flush all data to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ShardWriter:
    """Writes the token ids of a split to one or more files.

    Attributes:
        paths: Files in order.

    Args:
        directory: Directory of the files.
        split: Name of the split and prefix of the files.
        dtype: Type of a token id on disk.
        shard_bytes: Size of the token ids in every file except the last.
        tokens: Token ids that an earlier process committed.
    """

    def __init__(self, directory: Path, split: str, dtype: str, shard_bytes: int, *, tokens: int) -> None:
        self._directory, self._split, self._dtype = directory, split, np.dtype(dtype)
        self._limit = max(1, shard_bytes // self._dtype.itemsize) * self._dtype.itemsize
        size = tokens * self._dtype.itemsize
        complete = max(0, size - 1) // self._limit  # a full file stays open until more ids arrive
        self.paths = [self._path(number) for number in range(complete)]
        self._open(size - complete * self._limit)

    def write(self, ids: bytes) -> None:
        """Append token ids.

        Args:
            ids: Bytes of the ids, in the type of the file.
        """
        rest = memoryview(ids)
        while len(rest) > (room := self._limit - self._file.size):
            self._file.write(rest[:room])
            self._complete()
            self._open(0)
            rest = rest[room:]
        self._file.write(rest)

    def sync(self) -> None:
        """Flush all data to disk."""
        self._file.sync()

    def finish(self) -> list[Path]:
        """Complete the last file.

        Returns:
            Paths of all files in order.
        """
        self._complete()
        return self.paths

    def close(self) -> None:
        """Close the open files without completing them."""
        self._file.close()

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._split}_{number:05d}.npy"

    def _open(self, size: int) -> None:
        path = self._path(len(self.paths))
        self._file = AppendFile(path, header=_npy_header(self._dtype, (0,)), size=size)
        self.paths.append(path)

    def _complete(self) -> None:
        self._file.rewrite_header(_npy_header(self._dtype, (self._file.size // self._dtype.itemsize,)))
        self._file.sync()
        self._file.close()


class ExampleWriter:
    """Writes test_examples.json and its index.

    Attributes:
        count: Examples written so far.

    Args:
        directory: Directory of both files.
        count: Examples that an earlier process committed.
        size: Size of these examples in bytes.
    """

    _OFFSET = np.dtype("<u8")

    def __init__(self, directory: Path, *, count: int, size: int) -> None:
        self.count = count
        self._file = AppendFile(directory / EXAMPLES, header=b"[", size=size)
        index_size = count * 2 * self._OFFSET.itemsize
        self._index = AppendFile(directory / EXAMPLE_INDEX, header=_npy_header(self._OFFSET, (0, 2)), size=index_size)

    @property
    def size(self) -> int:
        """Size of the examples in bytes."""
        return self._file.size

    def write(self, examples: Sequence[bytes]) -> None:
        """Append test examples.

        Args:
            examples: JSON objects, encoded as UTF-8.
        """
        positions: list[tuple[int, int]] = []
        for example in examples:
            self._file.write(b",\n" if self.count + len(positions) else b"\n")
            start = self._file.size + 1  # the opening bracket precedes the examples
            self._file.write(example)
            positions.append((start, start + len(example)))
        self._index.write(np.array(positions, self._OFFSET).tobytes())
        self.count += len(positions)

    def sync(self) -> None:
        """Flush all data to disk."""
        self._file.sync()
        self._index.sync()

    def finish(self) -> None:
        """Complete both files."""
        self._file.write(b"\n]\n")
        self._index.rewrite_header(_npy_header(self._OFFSET, (self.count, 2)))
        self.sync()
        self.close()

    def close(self) -> None:
        """Close both files without completing them."""
        self._file.close()
        self._index.close()


@dataclass
class BuildProgress:
    """Amount of data written so far. The fields are the keys of the record on disk.

    Attributes:
        read: Documents read from the source, including duplicates.
        splits: Counts by split.
        categories: Counts by category; empty if the source has no categories.
        example_bytes: Size of the test examples.
        places: Final name of each file, in the order of the moves; empty until all files are complete.
        special_texts: End-of-text markers inside documents.
        zero_bytes: Zero bytes that were replaced.
        first: Start of the first documents.
    """

    read: int = 0
    splits: dict[str, Counts] = field(default_factory=lambda: {split: Counts() for split in SPLITS})
    categories: dict[str, Counts] = field(default_factory=dict)
    example_bytes: int = 0
    places: dict[str, str] = field(default_factory=dict)
    special_texts: int = 0
    zero_bytes: int = 0
    first: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Restore the progress from a record.

        Args:
            record: A dictionary that `asdict` returned.

        Returns:
            The progress.
        """
        counts = {key: {name: Counts(**c) for name, c in record[key].items()} for key in ("splits", "categories")}
        return cls(**{**record, **counts})

    @property
    def kept(self) -> int:
        """Documents in all splits."""
        return sum(counts.documents for counts in self.splits.values())

    @property
    def tokens(self) -> int:
        """Tokens in all splits."""
        return sum(counts.tokens for counts in self.splits.values())

    @property
    def text_bytes(self) -> int:
        """Bytes of text in all splits."""
        return sum(counts.text_bytes for counts in self.splits.values())

    def add(self, encoded: Encoded, *, example_bytes: int) -> None:
        """Add the counts of a chunk that was written.

        Args:
            encoded: Encoded chunk.
            example_bytes: Size of all test examples, including those of the chunk.
        """
        self.read = encoded.chunk.documents[-1][1].number
        self.example_bytes = example_bytes
        self.special_texts += encoded.special_texts
        self.zero_bytes += sum(document.zero_bytes for _, document in encoded.chunk.documents)
        for _, document in encoded.chunk.documents[: _FIRST_DOCUMENTS - len(self.first)]:
            self.first.append(document.text[:_FIRST_CHARACTERS])
        for split, counts in encoded.splits.items():
            self.splits[split].add(counts)
        for name, counts in encoded.categories.items():
            is_listed = name in self.categories or len(self.categories) < _MAX_CATEGORIES
            self.categories.setdefault(name if is_listed else _OTHER_CATEGORIES, Counts()).add(counts)


class DatasetBuild:
    """An unfinished dataset, which one process at a time writes. Resumes a build with the same identity.

    Attributes:
        directory: Directory of the unfinished files.
        progress: Progress of the build, including data that is not committed yet.

    Args:
        dataset: Final location of the files.
        identity: Everything that determines the bytes of the files.
    """

    def __init__(self, dataset: Dataset, identity: Mapping[str, Any]) -> None:
        self._dataset, self.directory = dataset, dataset.directory / _FOLDER
        self._identity = dict(identity)
        file = self.directory / PROGRESS_FILE
        record = read_json(file) if file.is_file() else {}
        self.progress = BuildProgress()
        if record.get("identity") == self._identity:
            self.progress = BuildProgress.of(record["ledger"])
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir(parents=True)
            self.save_progress(asdict(self.progress))

    def size_bytes(self) -> int:
        """Return the size of all files written so far.

        Returns:
            Size in bytes.
        """
        return sum(file.stat().st_size for file in self.directory.iterdir() if file.is_file())

    def hashes(self) -> bytes:
        """Return the hashes of the documents kept so far.

        Returns:
            Concatenated hashes; empty if duplicates are kept.
        """
        file = self.directory / _HASHES
        return file.read_bytes()[: HASH_BYTES * self.progress.kept] if file.exists() else b""

    def lengths(self) -> NDArray[np.uint32]:
        """Return the lengths of the documents.

        Returns:
            Characters of each document, (N,).
        """
        return np.fromfile(self.directory / _LENGTHS, "<u4")

    def discard(self) -> None:
        """Delete all files of the build."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def open(self, dtype: str, shard_bytes: int, *, dedupe: bool) -> OpenFiles:
        """Open the files at the committed position.

        Args:
            dtype: Type of a token id on disk.
            shard_bytes: Maximum size of the token ids in one file.
            dedupe: Whether to store the hashes of the documents.

        Returns:
            The open files.
        """
        return OpenFiles(self, dtype, shard_bytes, dedupe=dedupe)

    def mark_complete(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest and record that every file is complete.

        Args:
            manifest: Manifest of the dataset.
        """
        write_json(self.directory / MANIFEST, manifest)
        self.progress.places = {name: name for name in (MANIFEST, TOKENIZER, EXAMPLES, EXAMPLE_INDEX)}
        for split in reversed(SPLITS):
            entry = manifest["splits"][split]
            names = [shard["file"] for shard in entry.get("files", [entry])]
            self.progress.places |= {f"{split}_{n:05d}.npy": name for n, name in enumerate(names)}
        self.save_progress(asdict(self.progress))

    def publish(self) -> None:
        """Move every complete file to its final name. Can be repeated after a crash."""
        for written_name, final_name in self.progress.places.items():
            if (self.directory / written_name).exists():
                (self.directory / written_name).replace(self._dataset.directory / final_name)
        sync_directory(self._dataset.directory)
        self.discard()

    def save_progress(self, progress: Mapping[str, Any]) -> None:
        """Record the progress that is on disk.

        Args:
            progress: A `BuildProgress` as a dictionary.
        """
        write_json(
            self.directory / PROGRESS_FILE, {"schema_version": 1, "identity": self._identity, "ledger": progress}
        )


class OpenFiles:
    """The open files of a `DatasetBuild`.

    Args:
        build: Build to continue, from its progress.
        dtype: Type of a token id on disk.
        shard_bytes: Maximum size of the token ids in one file.
        dedupe: Whether to store the hashes of the documents.
    """

    def __init__(self, build: DatasetBuild, dtype: str, shard_bytes: int, *, dedupe: bool) -> None:
        self._build, progress, directory = build, build.progress, build.directory
        self.shards = {
            split: ShardWriter(directory, split, dtype, shard_bytes, tokens=counts.tokens)
            for split, counts in progress.splits.items()
        }
        self._examples = ExampleWriter(directory, count=progress.splits["test"].documents, size=progress.example_bytes)
        hash_bytes = HASH_BYTES * progress.kept
        self._hashes = AppendFile(directory / _HASHES, header=b"", size=hash_bytes) if dedupe else None
        self._lengths = AppendFile(directory / _LENGTHS, header=b"", size=_LENGTH_BYTES * progress.kept)
        files: tuple[ShardWriter | ExampleWriter | AppendFile | None, ...]
        files = (*self.shards.values(), self._examples, self._lengths, self._hashes)
        self._files = tuple(file for file in files if file is not None)
        self._committable = asdict(progress)  # progress at the end of the last block

    def add(self, encoded: Encoded) -> None:
        """Append a chunk.

        Args:
            encoded: Encoded chunk.
        """
        for split, ids in encoded.tokens.items():
            self.shards[split].write(ids)
        self._examples.write(encoded.examples)
        self._lengths.write(encoded.characters)
        if self._hashes is not None:
            self._hashes.write(b"".join(document.hash for _, document in encoded.chunk.documents))
        self._build.progress.add(encoded, example_bytes=self._examples.size)
        if encoded.chunk.ends_block:
            self._committable = asdict(self._build.progress)

    def commit(self) -> None:
        """Sync all files and record the progress up to the last complete block."""
        for file in self._files:
            file.sync()
        self._build.save_progress(self._committable)

    def finish(self) -> dict[str, list[Path]]:
        """Complete all files.

        Returns:
            Token files by split.
        """
        self._examples.finish()
        self._lengths.sync()
        return {split: shards.finish() for split, shards in self.shards.items()}

    def close(self) -> None:
        """Close the open files without completing them."""
        for file in self._files:
            file.close()


def _npy_header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file; NumPy pads it, so its size does not depend on the length of the array."""
    header = io.BytesIO()
    fields = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
