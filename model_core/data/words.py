"""Text as words, so that each different one is worked on once: text repeats itself.

A word begins with a white space that something else follows, and goes on to the next such white space. GPT-2's pattern
ends a piece wherever a word ends, and what it makes of a word does not depend on the words around. Arrow finds the
different words in one step, without the interpreter's lock; many small steps would wait for it again and again.

Shapes: W words, U different words, T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

END = "\x03"  # ASCII's own end of a text


def _table_of_gaps() -> NDArray[np.bool_]:
    """Which characters are white space to the pattern, or `END`; the last entry stands for all above it."""
    points = [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F]
    table = np.zeros(0x3002, np.bool_)
    table[[*points, 0x3000, ord(END)]] = True
    return table


_IS_GAP = _table_of_gaps()
_IS_GAP_IN_ASCII = _IS_GAP[:256].tobytes()


class Words:
    """The words of a text.

    Attributes:
        different: U words, each of them once.
    """

    def __init__(self, text: str) -> None:
        """Cut a text into words.

        Args:
            text: Documents, `END` behind each; UTF-8 can hold it.
        """
        import pyarrow as pa

        raw = text.encode()
        starts = _starts(text, raw)  # (W,)
        offsets = np.append(starts, len(raw)).astype(np.int32)  # (W + 1,)
        words = pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(raw)).dictionary_encode()
        self._numbers, self.different = words.indices, words.dictionary.to_pylist()

    def replaced(self, ids: NDArray[np.uint32], ends: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The text with ids instead of words.

        Args:
            ids: Of the different words, one after the other, (ids,).
            ends: Where in it each of them ends, (U,).

        Returns:
            Ids of all words, (T,).
        """
        import pyarrow as pa

        offsets = np.append(0, ends).astype(np.int32)  # (U + 1,)
        values = pa.Array.from_buffers(pa.uint32(), len(ids), [None, pa.py_buffer(ids)])
        lists = pa.Array.from_buffers(
            pa.list_(pa.uint32()), len(ends), [None, pa.py_buffer(offsets)], children=[values]
        )
        return _as_numpy(lists.take(self._numbers).flatten())  # (T,)


def _as_numpy(array: Any) -> NDArray[np.uint32]:
    """An array of Arrow's; its own method would load pandas."""
    return np.frombuffer(array.buffers()[1], np.uint32)[array.offset :][: len(array)]


def _starts(text: str, raw: bytes) -> NDArray[np.int64]:
    """Where in its UTF-8 the words of a text begin, (W,)."""
    if text.isascii():
        return _after_gaps(np.frombuffer(raw.translate(_IS_GAP_IN_ASCII), np.bool_))  # (W,)
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")  # (characters,)
    begins_character = np.frombuffer(raw, np.uint8) & 0xC0 != 0x80  # (bytes,)
    return np.flatnonzero(begins_character).take(_after_gaps(_IS_GAP.take(points, mode="clip")))  # (W,)


def _after_gaps(is_gap: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The beginning, and every gap that something else follows, (W,)."""
    begins_word = np.append(is_gap[:-1] & ~is_gap[1:], False)  # (characters,)
    begins_word[0] = True
    return np.flatnonzero(begins_word)  # (W,)
