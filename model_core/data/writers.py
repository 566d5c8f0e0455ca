"""Files that grow while documents stream through, and can be cut back to where they were safe.

Token ids and the index of the examples are .npy files whose header gets the length at the end; the examples are a
JSON array, one a line.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from model_core.errors import InvalidData
from model_core.records.examples import EXAMPLE_INDEX, EXAMPLES


class GrowingFile:
    """A file that is written at its end alone."""

    def __init__(self, path: Path, *, head: bytes, size: int) -> None:
        """Open a file for what comes after its first bytes.

        Args:
            path: The file; it is made when it is not there.
            head: What a new file begins with.
            size: How many bytes after that are kept.

        Raises:
            InvalidData: It has fewer.
        """
        self._head = head
        present = path.stat().st_size if path.exists() else 0
        if size and present < len(head) + size:
            raise InvalidData(f"{path} has lost bytes that were written; delete {path.parent} and prepare again")
        self._file: BinaryIO = path.open("r+b" if present else "w+b")
        self._file.truncate(len(head) + size)
        self.rewrite_head(head)
        self.size = size

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._file.write(data)
        self.size += len(data)

    def rewrite_head(self, head: bytes) -> None:
        """Replace what the file begins with by as many other bytes."""
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
    """A row of token ids, in as many files as it takes."""

    def __init__(self, directory: Path, split: str, dtype: str, shard_bytes: int, *, tokens: int) -> None:
        """Go on with a row.

        Args:
            directory: Where the files lie.
            split: What they are called after.
            dtype: Of an id.
            shard_bytes: Of ids in one file; every file but the last holds as many.
            tokens: Ids that are kept of what was written before.
        """
        self._directory, self._split, self._dtype = directory, split, np.dtype(dtype)
        self._limit = max(1, shard_bytes // self._dtype.itemsize) * self._dtype.itemsize
        size = tokens * self._dtype.itemsize
        complete = max(0, size - 1) // self._limit  # a full file is the last until there is more
        self.paths = [self._path(number) for number in range(complete)]
        self._open(size - complete * self._limit)

    def write(self, ids: bytes) -> None:
        """Append ids."""
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
        """Complete the last file; returns all of them in order."""
        self._complete()
        return self.paths

    def close(self) -> None:
        """Close what is open, as it is."""
        self._file.close()

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._split}_{number:05d}.npy"

    def _open(self, size: int) -> None:
        path = self._path(len(self.paths))
        self._file = GrowingFile(path, head=_head(self._dtype, (0,)), size=size)
        self.paths.append(path)

    def _complete(self) -> None:
        self._file.rewrite_head(_head(self._dtype, (self._file.size // self._dtype.itemsize,)))
        self._file.sync()
        self._file.close()


class Examples:
    """test_examples.json, and where in it each example stands."""

    _ROW = np.dtype("<u8")

    def __init__(self, directory: Path, *, count: int, size: int) -> None:
        """Go on with the examples.

        Args:
            directory: Where both files lie.
            count: Examples that are kept of what was written before.
            size: Their bytes.
        """
        self.count = count
        self._file = GrowingFile(directory / EXAMPLES, head=b"[", size=size)
        row = 2 * self._ROW.itemsize
        self._index = GrowingFile(directory / EXAMPLE_INDEX, head=_head(self._ROW, (0, 2)), size=count * row)

    @property
    def size(self) -> int:
        """Bytes of the examples."""
        return self._file.size

    def write(self, examples: Sequence[bytes]) -> None:
        """Append JSON objects."""
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
