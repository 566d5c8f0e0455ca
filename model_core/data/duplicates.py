"""Which documents were there before, in 16 bytes of memory a document.

Hashes stand in sorted runs. A new one is looked for in each; runs of similar length are merged, so there are few.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 16
_DTYPE = f"S{HASH_BYTES}"  # of equal lengths, so it does not matter that numpy drops zeros at the end
_UNSORTED = 4096  # hashes that wait in a set for a run of their own


class SeenTexts:
    """The texts that were added, as hashes."""

    def __init__(self, hashes: bytes = b"") -> None:
        """Begin with the hashes of an earlier process, one after the other."""
        self._runs: list[NDArray[Any]] = [np.sort(np.frombuffer(hashes, _DTYPE))] if hashes else []
        self._recent: set[bytes] = set()

    def add(self, text: str) -> bytes | None:
        """Remember a text; returns its hash if it is new, else None."""
        found = hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()
        if found in self._recent or self._is_in_a_run(found):
            return None
        self._recent.add(found)
        if len(self._recent) == _UNSORTED:
            self._make_run()
        return found

    def _is_in_a_run(self, wanted: bytes) -> bool:
        key = np.array(wanted, _DTYPE)
        places = ((run, int(run.searchsorted(key))) for run in self._runs)
        return any(place < len(run) and run[place] == key for run, place in places)

    def _make_run(self) -> None:
        run = np.sort(np.array(list(self._recent), _DTYPE))
        self._recent.clear()
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")  # which merges
        self._runs.append(run)
