"""Ids of many documents in one call, the same as one by one and several times as fast.

Text repeats itself, so each different word of it is tokenized once, and the ids are put together again. A word goes
from a white space that something else follows to the next such one. GPT-2's pattern always ends a piece there, and
what is in a word does not depend on what is around it.

The pattern looks ahead in one place: of several white spaces before something else, all but the last are a piece of
their own. No word holds that place, and a pattern that does not look ahead runs as an automaton, twice as fast. All of
it releases the interpreter's lock, so several threads do it at once.

Shapes: N documents, W words, U different words, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import tiktoken
from numpy.typing import NDArray

from model_core.tokenizer import Tokenizer

Ids = NDArray[np.uint32]

_END, _CUT = "\x03", "\x1f"  # ASCII's own end of a text and of a unit; documents that hold them are encoded alone
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
_LONGEST = 100_000  # characters; longer documents may hold what needs more care


def _table_of_gaps() -> NDArray[np.bool_]:
    """Which characters are white space to the pattern, or end a document; the last entry stands for all above it."""
    points = [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F]
    table = np.zeros(0x3002, np.bool_)
    table[[*points, 0x3000, ord(_END)]] = True
    return table


_IS_GAP = _table_of_gaps()


@lru_cache(maxsize=2)
def bulk_encoder(tokenizer: Tokenizer) -> BulkEncoder:
    """The encoder of a tokenizer; building it anew takes a second."""
    return BulkEncoder(tokenizer)


class BulkEncoder:
    """Encodes documents with a tokenizer; one encoder serves all threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._cut_id = tokenizer, tokenizer.n_vocab
        self._encoding = tiktoken.Encoding(
            f"{tokenizer.kind}-bulk",
            pat_str=_PATTERN,
            mergeable_ranks=tokenizer.ranks,
            special_tokens={_END: tokenizer.eot, _CUT: self._cut_id},
        )

    def encode(self, texts: Sequence[str]) -> tuple[Ids, NDArray[np.int64]]:
        """Encode documents, an end of text behind each.

        Args:
            texts: Documents, N of them, that UTF-8 can hold.

        Returns:
            Ids of all of them, (T,), and how many belong to each, (N,).
        """
        parts: list[Ids] = []
        plain: list[str] = []
        for text in texts:
            if len(text) <= _LONGEST and _END not in text and _CUT not in text:
                plain.append(text)
                continue
            parts += [self._together(plain), self._alone(text)]
            plain = []
        ids = np.concatenate([*parts, self._together(plain)])  # (T,)
        ends = np.flatnonzero(ids == self._tokenizer.eot)  # (N,)
        return ids, np.diff(ends, prepend=-1)  # (T,), (N,)

    def _together(self, texts: list[str]) -> Ids:
        if not texts:
            return np.empty(0, np.uint32)
        numbers, words = _distinct_words(_END.join((*texts, "")))  # (W,), U of them
        marked = _CUT.join((*words, ""))
        ids = self._encoding.encode_to_numpy(marked, allowed_special="all", disallowed_special=())  # (T of words + U,)
        ends = np.flatnonzero(ids == self._cut_id)  # (U,)
        lengths = np.diff(ends, prepend=-1) - 1  # (U,)
        joined: Ids = ids.take(_places((ends - lengths).take(numbers), lengths.take(numbers)))  # (T,)
        return joined

    def _alone(self, text: str) -> Ids:
        return np.array([*self._tokenizer.encode(text), self._tokenizer.eot], np.uint32)  # (T,)


def _distinct_words(text: str) -> tuple[NDArray[np.int32], list[str]]:
    """The words of a text, as numbers (W,) in a list of the different ones."""
    import pyarrow as pa

    raw = text.encode()
    starts = _starts(text, raw)  # (W,)
    offsets = np.concatenate([starts, [len(raw)]], dtype=np.int32)  # (W + 1,)
    words = pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(raw)).dictionary_encode()
    return words.indices.to_numpy(), words.dictionary.to_pylist()


def _starts(text: str, raw: bytes) -> NDArray[np.int64]:
    """Where in its UTF-8 the words of a text begin, (W,)."""
    octets = np.frombuffer(raw, np.uint8)  # (bytes,)
    points = octets if text.isascii() else np.frombuffer(text.encode("utf-32-le"), "<u4")  # (characters,)
    gaps = _IS_GAP.take(points, mode="clip")  # (characters,)
    starts = np.append(0, np.flatnonzero(gaps[:-1] & ~gaps[1:]))  # (W,)
    return starts if text.isascii() else np.flatnonzero((octets & 0xC0) != 0x80).take(starts)  # (W,)


def _places(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every place of W spans, one span after the other, (T,)."""
    ends = np.cumsum(lengths)  # (W,)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(ends[-1])  # (T,)
