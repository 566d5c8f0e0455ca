"""Files that grow while documents stream through: tokens as .npy, examples as a JSON array with an index."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike

from model_core.records.files import replacing, sha256_of


class _Growing(ABC):
    """A file that gets its name when it is complete and on disk; on an error there is none.

    Raises:
        DiskFull: On leaving, when no space is left.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replacing = replacing(path)

    def __enter__(self) -> Self:
        self._file: BinaryIO = self._replacing.__enter__()
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if error is None:
            try:
                self._end()
            except BaseException as failure:
                self._replacing.__exit__(type(failure), failure, failure.__traceback__)
                raise
        return self._replacing.__exit__(kind, error, trace)

    @abstractmethod
    def _begin(self) -> None:
        """Write what comes before the first document."""

    @abstractmethod
    def _end(self) -> None:
        """Write what can be written at the end alone."""


class TokenWriter(_Growing):
    """A one-dimensional .npy whose length is known at the end alone."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        super().__init__(path)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self.documents = self._tokens = self._text_bytes = 0

    def add(self, tokens: list[int], *, text_bytes: int) -> None:
        """Append one document.

        Args:
            tokens: Its ids, the end of text among them.
            text_bytes: Length of its text in UTF-8.
        """
        self._file.write(np.asarray(tokens, self._dtype).tobytes())
        self.documents += 1
        self._tokens += len(tokens)
        self._text_bytes += text_bytes

    def facts(self, file: str) -> dict[str, Any]:
        """What the manifest says of the complete file.

        Args:
            file: The name it will have.
        """
        return {
            "file": file,
            "documents": self.documents,
            "tokens": self._tokens,
            "text_bytes": self._text_bytes,
            "size_bytes": self.path.stat().st_size,
            "sha256": sha256_of(self.path),
            "dtype": self._dtype.name,
        }

    def _begin(self) -> None:
        self._header_bytes = self._write_header()

    def _end(self) -> None:
        self._file.seek(0)
        assert self._write_header() == self._header_bytes  # numpy leaves room for any length

    def _write_header(self) -> int:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._tokens,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


class ExampleWriter(_Growing):
    """test_examples.json, one example a line, and where in it each example stands."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._places: list[tuple[int, int]] = []

    def add(self, text: str, tokens: list[int]) -> None:
        """Append one example; its number is the count of those before it."""
        self._file.write(b",\n" if self._places else b"\n")
        start = self._file.tell()
        record = {"id": len(self._places), "text": text, "tokens": tokens}
        self._file.write(json.dumps(record, ensure_ascii=False).encode())
        self._places.append((start, self._file.tell()))

    def write_index(self, path: Path) -> None:
        """Write first and last byte of every example, (examples, 2)."""
        with replacing(path) as file:
            np.save(file, np.array(self._places, "<u8").reshape(-1, 2))

    def facts(self, file: str, index: str) -> dict[str, Any]:
        """What the manifest says of the complete file.

        Args:
            file: The name it will have.
            index: The name of its index.
        """
        size, sha256 = self.path.stat().st_size, sha256_of(self.path)
        return {"file": file, "index": index, "count": len(self._places), "size_bytes": size, "sha256": sha256}

    def _begin(self) -> None:
        self._file.write(b"[")

    def _end(self) -> None:
        self._file.write(b"\n]\n")
