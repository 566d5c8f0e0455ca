"""Readers of growing event files, kept between requests, so that reading again costs only the new events."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Generic, TypeVar

from anyio import CapacityLimiter

_MAX_FILES = 100
_THREADS = 2
_FIRST_LINE = 500  # bytes of it that are compared

R = TypeVar("R", bound=Sized)


class ReaderCache(Generic[R]):
    """Readers of recently read event files, by path and first event.

    The first event has the time at which it was written. So a run that is deleted and made again under its name has
    another reader, whatever inode its file has.

    Args:
        build: Makes the reader of a file; its length is the number of values in memory.
        max_values: Number of values to keep.

    Attributes:
        threads: Bounds the files that are read at the same time.
    """

    def __init__(self, build: Callable[[Path], R], *, max_values: int) -> None:
        self.threads, self._build, self._max_values = CapacityLimiter(_THREADS), build, max_values
        self._readers: OrderedDict[tuple[Path, bytes], R] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of values that are kept."""
        return sum(map(len, self._readers.values()))

    def reader(self, path: Path) -> R:
        """Find the reader of a file, or make it.

        Args:
            path: The event file.

        Returns:
            The reader; a new one that is not kept if there is no such file.
        """
        try:
            with path.open("rb") as file:
                key = (path, file.readline(_FIRST_LINE))
        except FileNotFoundError:
            return self._build(path)
        with self._lock:
            if key not in self._readers:
                self._readers[key] = self._build(path)
            self._readers.move_to_end(key)
            return self._readers[key]

    def evict(self) -> None:
        """Forget the readers that were not used for longest until the others fit; called after each reading."""
        with self._lock:
            while len(self._readers) > 1 and (len(self) > self._max_values or len(self._readers) > _MAX_FILES):
                self._readers.popitem(last=False)
