"""The different words of a text, by numpy alone, which releases the interpreter's lock.

A word begins with a white space that something else follows, and goes on to the next such white space. GPT-2's pattern
ends a piece wherever a word ends, and what it makes of a word does not depend on the words around.

Equal words find each other in a table of hashes: every word takes the seat of its hash from whoever has it, and
compares itself with whoever has it at the end. Who differs from that one, or is long, counts as a word that is not
repeated, which costs time and nothing else.

Shapes: W words, U different words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

END = "\x03"  # ASCII's own end of a text

_COMPARED = 16  # bytes of a word; few are longer
_SEAT_BITS = 16
_MIX, _MIX_AGAIN = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, their bits without a pattern
_FIRST_BYTES = np.tri(_COMPARED + 1, _COMPARED, -1, np.uint8) * np.uint8(0xFF)  # row n leaves n bytes


def _table_of_gaps() -> NDArray[np.bool_]:
    """Which characters are white space to the pattern, or `END`; the last entry stands for all above it."""
    points = [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F]
    table = np.zeros(0x3002, np.bool_)
    table[[*points, 0x3000, ord(END)]] = True
    return table


_IS_GAP = _table_of_gaps()
_IS_GAP_IN_ASCII = _IS_GAP[:256].tobytes()


def distinct_words(text: str) -> tuple[NDArray[np.int64], list[bytes]]:
    """Cut a text into words.

    Args:
        text: Documents, `END` behind each; UTF-8 can hold it.

    Returns:
        The words of the text as numbers in a list, (W,), and that list: UTF-8 of U words, of which few are equal. One
        after the other, the words are the text.
    """
    raw = text.encode()
    starts = _starts(text, raw)  # (W,)
    lengths = np.diff(starts, append=len(raw))  # (W,)
    equal = _equal_word(raw, starts, lengths)  # (W,)
    is_kept = equal == np.arange(len(equal))  # (W,)
    begins = starts[is_kept]  # (U,)
    ends = begins + lengths[is_kept]  # (U,)
    words = [raw[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    return (np.cumsum(is_kept) - 1).take(equal), words  # (W,), U of them


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


def _equal_word(raw: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of an equal word, for every word; equal words are given one place, that of one of them, (W,)."""
    low, high = _first_bytes(raw, starts, lengths)  # (W,), (W,)
    seats = ((low * _MIX ^ high) * _MIX_AGAIN >> np.uint64(64 - _SEAT_BITS)).astype(np.int64)  # (W,)
    places = np.arange(len(starts))  # (W,)
    seated = np.empty(1 << _SEAT_BITS, np.int64)  # (seats,); only those that are taken are looked at
    seated[seats] = places
    other = seated.take(seats)  # (W,)
    is_equal = (low[other] == low) & (high[other] == high) & (lengths[other] == lengths)  # (W,)
    return np.where(is_equal & (lengths <= _COMPARED), other, places)  # (W,)


def _first_bytes(raw: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The first sixteen bytes of words as two numbers, (2, W); what shorter ones lack is zero."""
    from_each_byte = np.ndarray(len(raw) + 1, f"V{_COMPARED}", raw + bytes(_COMPARED), strides=(1,))  # (bytes + 1,)
    numbers = from_each_byte[starts].view("<u8").reshape(-1, 2)  # (W, 2)
    numbers &= _FIRST_BYTES.view("<u8").take(lengths, axis=0, mode="clip")  # (W, 2)
    return numbers.T  # (2, W)
