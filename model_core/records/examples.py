"""test_examples.json: documents of the test split, of which any is read without the others.

An index says where each stands. Preparation writes it; for a user's own file it is made at the first question and
kept beside it, for as long as the file stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.errors import InvalidData
from model_core.records.errors import DiskFull
from model_core.records.files import replacing

EXAMPLES, EXAMPLE_INDEX = "test_examples.json", "test_examples_index.npy"
_OWN_INDEX = ".test_examples_index.npy"  # its first row is size and time of the file that it belongs to
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[][{}]', re.DOTALL)

Places = NDArray[np.uint64]


@dataclass(frozen=True)
class Example:
    """One document of the test split.

    Attributes:
        id: Its number, from 0.
        text: The document.
        tokens: Its ids, without the end of text.
    """

    id: int
    text: str
    tokens: tuple[int, ...]


class ExampleFile:
    """The examples of a directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EXAMPLES

    def exists(self) -> bool:
        """Whether there is such a file."""
        return self._path.is_file()

    def count(self) -> int:
        """How many examples it has.

        Raises:
            InvalidData: It is no JSON array of objects.
        """
        return len(self._places())

    def read(self, number: int) -> Example:
        """Read one example that it has.

        Raises:
            InvalidData: What stands there is no example.
        """
        start, end = (int(place) for place in self._places()[number])
        with self._path.open("rb") as file:
            file.seek(start)
            text = file.read(end - start)
        try:
            record = json.loads(text)
            return Example(number, record["text"], tuple(record["tokens"]))
        except (ValueError, KeyError, TypeError):
            detail = f"example {number}, at byte {start}, is no object with text and tokens"
            raise InvalidData(f"{self._path}: {detail}; prepare the dataset again") from None

    def _places(self) -> Places:
        """First byte of every example and the byte after its last, (examples, 2)."""
        prepared, own = self._path.with_name(EXAMPLE_INDEX), self._path.with_name(_OWN_INDEX)
        if prepared.is_file():
            return _load(prepared)
        facts = self._path.stat()
        signature = (facts.st_size, facts.st_mtime_ns)
        if own.is_file():
            rows = _load(own)  # (examples + 1, 2)
            if len(rows) and tuple(rows[0].tolist()) == signature:
                return rows[1:]  # (examples, 2)
        rows = np.array([signature, *_find_objects(self._path)], np.uint64)  # (examples + 1, 2)
        with contextlib.suppress(OSError, DiskFull), replacing(own) as file:
            np.save(file, rows)  # where nothing may be written, the next question takes as long
        return rows[1:]  # (examples, 2)


def _load(path: Path) -> Places:
    places: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return places


def _find_objects(path: Path) -> Iterator[tuple[int, int]]:
    """Where the objects of a JSON array stand, found without holding the file in memory."""
    depth = start = 0
    if not path.stat().st_size:
        raise InvalidData(f"{path} is empty; it should be a list of objects with id, text and tokens")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
            raise InvalidData(f"{path} is no JSON array; it should be a list of objects with id, text and tokens")
        for match in _MARKS.finditer(data):
            mark = match[0]
            if mark in (b"[", b"{"):
                depth += 1
                start = match.start() if depth == 2 else start
            elif mark in (b"]", b"}"):
                depth -= 1
                if depth == 1:
                    yield start, match.end()
        if depth:
            raise InvalidData(f"{path} ends in the middle of its JSON array; was it cut off?")
